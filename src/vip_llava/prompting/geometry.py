"""How an RGB image becomes the square that a vision tower sees, and how coordinates follow it.

Three geometries of the published models, identical to their CLIP image processor on every byte
(the exceptions, very long images, are named at `_padded` and `_cropped`):

- `pad`: centred on a square of the mean colour, then scaled (ViP-LLaVA's training and evaluation);
- `crop`: scaled by the shortest edge, then the centre is cut out (stage 1);
- `resize`: stretched to the square.

This module knows numpy and Pillow. It opens no files, draws nothing and has never heard of torch.
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

# What model folders call the mode (`image_aspect_ratio`).
_ASPECT_MODES: dict[str | None, Mode] = {
    None: "crop",
    "crop": "crop",
    "square": "crop",
    "pad": "pad",
    "resize": "resize",
}
# Beyond these the whole intermediate image of the original's arithmetic is too costly to hold.
_LARGEST_CANVAS_SIDE = 4096
_LARGEST_ASPECT = 64


def aspect_mode(name: str | None) -> Mode:
    """The mode that a model folder's `image_aspect_ratio` means; None and "square" are "crop".

    Raises:
        CheckpointError: a value that no supported model has (the original's "anyres" never ran).
    """
    try:
        return _ASPECT_MODES[name]
    except (KeyError, TypeError):
        known = ", ".join(repr(known) for known in _ASPECT_MODES)
        raise CheckpointError(f"image_aspect_ratio {name!r} is not one of {known}") from None


@dataclass(frozen=True)
class ImageGeometry:
    """From an image of any size to `size` x `size` pixels, and points there and back.

    Attributes:
        mode: "pad", "crop" or "resize", see the module's head.
        size: side of the model's input in pixels.
        mean: subtracted from each channel (0..1); padding is `int(mean * 255)`.
        std: divides each channel after that.
        resample: name of a Pillow filter, in small letters.
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

        `mode` is an `image_aspect_ratio` that overrules the file; without it `do_pad` means "pad",
        `do_center_crop: false` with a fixed height and width means "resize", anything else `default`.

        Raises:
            CheckpointError: the file asks for something that these geometries can't do.
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
        """A new RGB image of `size` x `size` pixels: what the model looks at.

        Raises:
            ImageError: `image` is not RGB (`vip_llava.images.open_image` makes it so).
        """
        if image.mode != "RGB":
            raise ImageError(f"the model takes RGB images, not mode {image.mode!r}: use open_image")
        if self.mode == "pad":
            return _padded(image, self.size, self._filter, self.fill)
        if self.mode == "crop":
            return _cropped(image, self.size, self._filter)
        # Stretched with Pillow's own default filter, as the original does, whatever `resample` says.
        return image.resize((self.size, self.size))

    def pixels(self, image: Image.Image) -> npt.NDArray[np.float32]:
        """The model's `pixel_values` of one RGB image: float32 [3, size, size], normalised."""
        square = np.asarray(self.fit(image))
        table = self._levels
        return np.stack([table[channel][square[..., channel]] for channel in range(3)])

    def to_input(self, points: npt.ArrayLike, size: Size) -> npt.NDArray[np.float64]:
        """Map points [N, 2] (x, y in pixels of a (width, height) image) into the input square.

        Coordinates are continuous: pixel i covers i to i + 1. In mode "crop" a point that was cut
        away lands outside 0..size.
        """
        scale, offset = self._mapping(size)
        return _points(points) * scale + offset

    def to_image(self, points: npt.ArrayLike, size: Size) -> npt.NDArray[np.float64]:
        """Map points [N, 2] of the input square back to pixels of the (width, height) image."""
        scale, offset = self._mapping(size)
        return (_points(points) - offset) / scale

    @property
    def _filter(self) -> Image.Resampling:
        return Image.Resampling[self.resample.upper()]

    @cached_property
    def _levels(self) -> npt.NDArray[np.float32]:
        """[3, 256]: the normalised value of each byte, with the original's order of rounding."""
        unit = (np.arange(256) * (1 / 255)).astype(np.float32)
        mean = np.array(self.mean, dtype=np.float32)[:, None]
        std = np.array(self.std, dtype=np.float32)[:, None]
        levels: npt.NDArray[np.float32] = (unit - mean) / std
        return levels

    def _mapping(self, size: Size) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Scale and offset, (x, y) each, from image to input coordinates."""
        width, height = size
        if width < 1 or height < 1:
            raise ImageError(f"an image of {width} x {height} pixels has no coordinates")
        if self.mode == "pad":
            side = max(size)
            scale = np.full(2, self.size / side)
            return scale, np.array([(side - width) // 2, (side - height) // 2]) * scale
        if self.mode == "crop":
            scaled = _shortest_edge(size, self.size)
            left, top = ((length - self.size) // 2 for length in scaled)
            return np.array(scaled) / np.array(size), np.array([-left, -top], dtype=np.float64)
        return self.size / np.array(size), np.zeros(2)


def _points(points: npt.ArrayLike) -> npt.NDArray[np.float64]:
    array = np.asarray(points, dtype=np.float64)
    if array.ndim != 2 or array.shape[1] != 2:
        raise ValueError(f"points must have the shape [N, 2], not {list(array.shape)}")
    return array


def _padded(
    image: Image.Image, side: int, resample: Image.Resampling, fill: tuple[int, int, int]
) -> Image.Image:
    """Centre `image` on a square of `fill` and scale that to `side`.

    Pillow scales rows first and then columns, rounding to bytes in between, so a wide image is
    scaled along its rows alone and needs no large canvas. A tall one needs it for the same bytes;
    above 4096 pixels its columns go first instead, which may differ by one level.
    """
    width, height = image.size
    if width == height:
        return image.resize((side, side), resample)
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
    return canvas.resize((side, side), resample)


def _shortest_edge(size: Size, side: int) -> Size:
    """The size of an image whose shortest edge was scaled to `side`; the other is rounded down."""
    width, height = size
    if width <= height:
        return side, int(side * height / width)
    return int(side * width / height), side


def _cropped(image: Image.Image, side: int, resample: Image.Resampling) -> Image.Image:
    """Scale the shortest edge to `side` and cut the centre out.

    An image more than 64 times as long as it is wide is cut while it is scaled: what the original
    scales and throws away would take gigabytes.
    """
    width, height = _shortest_edge(image.size, side)
    left, top = (width - side) // 2, (height - side) // 2
    if max(width, height) <= side * _LARGEST_ASPECT:
        scaled = image.resize((width, height), resample)
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
    """The one side length that `size` and `crop_size` must agree on."""
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
            raise CheckpointError(f"the image processor's resample {value} is no filter") from None
    return str(value).lower()


def best_resolution(size: Size, candidates: Sequence[Size]) -> Size:
    """The candidate (width, height) that keeps most of an image's pixels, then wastes fewest.

    The first of equals wins.

    Raises:
        ValueError: there are no candidates.
    """
    if not candidates:
        raise ValueError("best_resolution needs at least one candidate (width, height)")
    width, height = size

    def merit(candidate: Size) -> tuple[int, int]:
        scale = min(candidate[0] / width, candidate[1] / height)
        kept = min(int(width * scale) * int(height * scale), width * height)
        return kept, kept - candidate[0] * candidate[1]

    return max(candidates, key=merit)
