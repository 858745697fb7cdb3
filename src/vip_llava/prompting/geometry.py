"""How an RGB image becomes the square that a vision tower reads.

Three geometries of the published models, byte-identical to their CLIP image processor (very long
images are exceptions, see `_padded` and `_cropped`):

- `pad`: centred on a square of the mean colour, then scaled (ViP-LLaVA's training and evaluation);
- `crop`: shortest edge scaled to the side, then a centre crop (stage 1);
- `resize`: stretched to the square.

This module uses numpy and Pillow. It does not open files, draw regions or use torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image

from vip_llava.errors import CheckpointError, ImageError

__all__ = ["CLIP_MEAN", "CLIP_STD", "ImageGeometry", "aspect_mode", "best_resolution"]

Mode: TypeAlias = Literal["pad", "crop", "resize"]
Size: TypeAlias = tuple[int, int]
Triple: TypeAlias = tuple[float, float, float]

CLIP_MEAN: Triple = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD: Triple = (0.26862954, 0.26130258, 0.27577711)

# `image_aspect_ratio` of a model folder -> mode.
_ASPECT_MODES: dict[str | None, Mode] = {
    None: "crop",
    "crop": "crop",
    "square": "crop",
    "pad": "pad",
    "resize": "resize",
}
# Beyond these the intermediate image of the original's arithmetic takes too much memory.
_LARGEST_CANVAS_SIDE = 4096
_LARGEST_ASPECT = 64


def aspect_mode(name: str | None) -> Mode:
    """The mode for a model folder's `image_aspect_ratio`; None and "square" mean "crop".

    Raises:
        CheckpointError: a value that no supported model has ("anyres" never ran in the original).
    """
    try:
        return _ASPECT_MODES[name]
    except (KeyError, TypeError):
        known = ", ".join(repr(known) for known in _ASPECT_MODES)
        raise CheckpointError(f"image_aspect_ratio {name!r} is not one of {known}") from None


@dataclass(frozen=True)
class ImageGeometry:
    """Maps an image of any size to `size` x `size` pixels.

    Attributes:
        mode: "pad", "crop" or "resize", see the module docstring.
        size: side of the model's input in pixels.
        mean: subtracted from each channel (0..1); padding has the colour `int(mean * 255)`.
        std: divides each channel after subtraction.
        resample: lower-case name of a Pillow filter.
    """

    mode: Mode = "pad"
    size: int = 336
    mean: Triple = CLIP_MEAN
    std: Triple = CLIP_STD
    resample: str = "bicubic"

    def __post_init__(self) -> None:
        if self.mode not in ("pad", "crop", "resize"):
            raise CheckpointError(f"image mode {self.mode!r} is not pad, crop or resize")
        if self.size < 1:
            raise CheckpointError(f"image size {self.size} is not a positive number of pixels")
        if self.resample.upper() not in Image.Resampling.__members__:
            known = ", ".join(sorted(name.lower() for name in Image.Resampling.__members__))
            raise CheckpointError(f"resample {self.resample!r} is not one of {known}")
        if len(self.mean) != 3 or len(self.std) != 3 or not all(value > 0 for value in self.std):
            raise CheckpointError("image mean and std must be three numbers each, std above 0")

    @classmethod
    def from_config(
        cls, config: Mapping[str, Any], mode: str | None = None, *, default: Mode = "crop"
    ) -> ImageGeometry:
        """Read a CLIPImageProcessor-style config (`preprocessor_config.json`).

        Args:
            mode: an `image_aspect_ratio` that overrides the file. Without it `do_pad` means "pad",
                `do_center_crop: false` with a fixed height and width means "resize", and anything
                else `default`.

        Raises:
            CheckpointError: settings that none of the geometries implements.
        """
        chosen = aspect_mode(mode) if mode is not None else _mode_of(config, default)
        return cls(
            mode=chosen,
            size=_side_of(config),
            mean=_triple(config, "image_mean", CLIP_MEAN),
            std=_triple(config, "image_std", CLIP_STD),
            resample=_filter_of(config),
        )

    @property
    def fill(self) -> tuple[int, int, int]:
        """The colour of padding."""
        red, green, blue = (int(value * 255) for value in self.mean)
        return red, green, blue

    def fit(self, image: Image.Image) -> Image.Image:
        """The RGB image of `size` x `size` pixels that the model reads.

        Raises:
            ImageError: `image` is not RGB; `vip_llava.images.open_image` converts it.
        """
        if image.mode != "RGB":
            raise ImageError(
                f"the model takes RGB images, not mode {image.mode!r}: open_image converts them"
            )
        if self.mode == "pad":
            return _padded(image, self.size, self._filter, self.fill)
        if self.mode == "crop":
            return _cropped(image, self.size, self._filter)
        # The original stretches with Pillow's default filter, whatever `resample` says.
        return _scaled(image, (self.size, self.size), Image.Resampling.BICUBIC)

    def pixels(self, image: Image.Image) -> npt.NDArray[np.float32]:
        """`pixel_values` of one RGB image: float32 [3, size, size], normalized."""
        square = np.asarray(self.fit(image))
        table = self._levels
        return np.stack([table[channel][square[..., channel]] for channel in range(3)])

    @property
    def _filter(self) -> Image.Resampling:
        return Image.Resampling[self.resample.upper()]

    @cached_property
    def _levels(self) -> npt.NDArray[np.float32]:
        """[3, 256]: the normalized value of each byte, rounded in the original's order."""
        unit = (np.arange(256) * (1 / 255)).astype(np.float32)
        mean = np.array(self.mean, dtype=np.float32)[:, None]
        std = np.array(self.std, dtype=np.float32)[:, None]
        levels: npt.NDArray[np.float32] = (unit - mean) / std
        return levels


def _padded(
    image: Image.Image, side: int, resample: Image.Resampling, fill: tuple[int, int, int]
) -> Image.Image:
    """Centre `image` on a square of colour `fill` and scale that to `side`.

    A square is scaled along its rows first (see `_scaled`). A wide image is therefore scaled along its
    rows before padding, which needs no large canvas. A tall image needs the canvas
    for identical bytes; above 4096 pixels its columns are scaled first, which may differ by one level.
    """
    width, height = image.size
    if width == height:
        return _scaled(image, (side, side), resample)
    longest = max(image.size)
    left, top = (longest - width) // 2, (longest - height) // 2
    if width > height:
        narrow = image.resize((side, height), resample)
        canvas = Image.new("RGB", (side, longest), fill)
        canvas.paste(narrow, (0, top))
    elif height <= _LARGEST_CANVAS_SIDE:
        canvas = Image.new("RGB", (longest, longest), fill)
        canvas.paste(image, (left, 0))
    else:
        canvas = Image.new("RGB", (longest, side), fill)
        canvas.paste(image.resize((width, side), resample), (left, 0))
    return _scaled(canvas, (side, side), resample)


def _scaled(image: Image.Image, size: Size, resample: Image.Resampling) -> Image.Image:
    """`image.resize`, with the order of passes of Pillow 13 in every version.

    Pillow scales along one axis at a time and rounds to bytes, clipping overshoot, in between. Version
    13, which the recorded results were made with, scales along the columns first if they lose more
    than twice as many pixels as the rows; older versions almost always begin with the rows. The
    results differ by up to 25 levels where overshoot was clipped. A single pass does not depend on the
    version.
    """
    width, height = size
    lost_rows, lost_columns = image.height - height, image.width - width
    if lost_rows > 0 and lost_rows > 2 * lost_columns:
        first_pass = (image.width, height)
    else:
        first_pass = (width, image.height)
    return image.resize(first_pass, resample).resize(size, resample)


def _shortest_edge(size: Size, side: int) -> Size:
    """The size after scaling the shortest edge to `side`; the other edge is rounded down."""
    width, height = size
    if width <= height:
        return side, int(side * height / width)
    return int(side * width / height), side


def _cropped(image: Image.Image, side: int, resample: Image.Resampling) -> Image.Image:
    """Scale the shortest edge to `side` and crop the centre.

    An image with an aspect above 64 is cropped while it is scaled: the part that the original scales
    and then crops away would take gigabytes.
    """
    width, height = _shortest_edge(image.size, side)
    left, top = (width - side) // 2, (height - side) // 2
    if max(width, height) <= side * _LARGEST_ASPECT:
        scaled = _scaled(image, (width, height), resample)
        return scaled.crop((left, top, left + side, top + side))
    x, y = image.width / width, image.height / height
    box = (
        left * x,
        top * y,
        min((left + side) * x, image.width),
        min((top + side) * y, image.height),
    )
    return image.resize((side, side), resample, box=box)


def _mode_of(config: Mapping[str, Any], default: Mode) -> Mode:
    if config.get("do_pad"):
        return "pad"
    size = config.get("size")
    fixed = isinstance(size, Mapping) and "height" in size
    return "resize" if fixed and not config.get("do_center_crop", True) else default


def _side_of(config: Mapping[str, Any]) -> int:
    """The side length; `size` and `crop_size` must agree on it."""
    sides: set[object] = set()
    for key in ("size", "crop_size"):
        value = config.get(key)
        if key == "crop_size" and not config.get("do_center_crop", True):
            continue
        if isinstance(value, Mapping):
            sides.update(
                value[name] for name in ("shortest_edge", "height", "width") if name in value
            )
        elif value is not None:
            sides.add(value)
    if len(sides) > 1:
        listed = ", ".join(sorted(map(str, sides)))
        raise CheckpointError(
            f"the image processor's size and crop_size must be one square: {listed}"
        )
    side = sides.pop() if sides else 336
    if not isinstance(side, int) or isinstance(side, bool) or side < 1:
        raise CheckpointError(f"the image processor's size {side!r} is not a number of pixels")
    for key, right in (("do_resize", True), ("do_rescale", True), ("do_normalize", True)):
        if config.get(key, right) is not right:
            raise CheckpointError(f"the image processor's {key} must be {right} for these models")
    factor = config.get("rescale_factor", 1 / 255)
    if not isinstance(factor, int | float) or abs(factor * 255 - 1) > 1e-6:
        raise CheckpointError(f"the image processor's rescale_factor {factor!r} is not 1/255")
    return side


def _triple(config: Mapping[str, Any], key: str, default: Triple) -> Triple:
    values = config.get(key)
    if values is None:
        return default
    numbers = isinstance(values, Sequence) and all(
        isinstance(value, int | float) for value in values
    )
    if not numbers or len(values) != 3:
        raise CheckpointError(f"the image processor's {key} must be three numbers, not {values!r}")
    first, second, third = (float(value) for value in values)
    return first, second, third


def _filter_of(config: Mapping[str, Any]) -> str:
    value = config.get("resample", "bicubic")
    if isinstance(value, int) and not isinstance(value, bool):
        try:
            return Image.Resampling(value).name.lower()
        except ValueError:
            raise CheckpointError(
                f"the image processor's resample {value} is not a Pillow filter"
            ) from None
    return str(value).lower()


def best_resolution(size: Size, candidates: Sequence[Size]) -> Size:
    """The candidate (width, height) that keeps most of an image's pixels, then wastes the fewest.

    Ties go to the first candidate.

    Raises:
        ValueError: no candidates.
    """
    if not candidates:
        raise ValueError("best_resolution needs at least one candidate (width, height)")
    width, height = size

    def merit(candidate: Size) -> tuple[int, int]:
        scale = min(candidate[0] / width, candidate[1] / height)
        kept = min(int(width * scale) * int(height * scale), width * height)
        return kept, kept - candidate[0] * candidate[1]

    return max(candidates, key=merit)
