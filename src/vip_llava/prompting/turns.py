"""`Turn` and `MarkedImage`: the two types of a conversation, from a request to the model's input.

A request holds turns whose images are whatever `open_image` takes, with regions in any frame.
`prepare` returns the same types with every image opened, its regions resolved and drawn, and every
text worded. This module does not know templates, tokens or models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from PIL import Image

from vip_llava.errors import RequestError, TemplateError
from vip_llava.images import open_image
from vip_llava.regions import Region, draw_resolved, region_from_json
from vip_llava.regions.resolve import resolve_together

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    ImageInput: TypeAlias = str | Path | bytes | Image.Image | NDArray[np.generic]
    RegionLike: TypeAlias = Region | Mapping[str, Any]

__all__ = [
    "ImageInput",
    "MarkedImage",
    "RegionLike",
    "Role",
    "Turn",
    "as_regions",
    "draw_images",
    "images_of",
    "open_images",
]

Role = Literal["system", "user", "assistant"]
ROLES: tuple[Role, ...] = ("system", "user", "assistant")


def as_regions(values: Sequence[RegionLike] | RegionLike) -> tuple[Region, ...]:
    """Regions from Region objects or their JSON objects; a single one needs no list.

    Raises:
        RequestError: a value that is neither; RegionError for the JSON of a region that is wrong.
    """
    if isinstance(values, Region | Mapping):
        values = (values,)
    if isinstance(values, str | bytes) or not isinstance(values, Sequence):
        raise RequestError(f"regions: must be a list of regions, not {values!r}")
    return tuple(_region(value) for value in values)


def _region(value: RegionLike) -> Region:
    if isinstance(value, Region):
        return value
    if isinstance(value, Mapping):
        return region_from_json(dict(value))
    raise RequestError(f"regions: {value!r} is neither a Region nor the JSON object of one")


@dataclass(frozen=True, slots=True)
class MarkedImage:
    """An image with the regions on it.

    Args:
        image: a path, bytes, PIL image, numpy array [H, W, 3] or data URL; once prepared, the
            opened RGB image without marks.
        regions: Region objects or their JSON objects; once prepared, resolved to pixels.
        drawn: the RGB image with its regions drawn. None until `draw_images` has run.
    """

    image: ImageInput
    regions: tuple[Region, ...] = ()
    drawn: Image.Image | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if self.image is None:
            raise RequestError("an image with regions needs an image, not None")
        object.__setattr__(self, "regions", as_regions(self.regions))

    @property
    def shown(self) -> Image.Image:
        """The image as the model sees it. ValueError before it was drawn."""
        if self.drawn is None:
            raise ValueError("this image is not drawn yet: draw_images does it")
        return self.drawn

    @property
    def unmarked(self) -> Image.Image:
        """The opened image without marks. ValueError before it was opened."""
        if not isinstance(self.image, Image.Image):
            raise ValueError("this image is not open yet: open_images does it")
        return self.image


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn of a conversation; its images stand in front of its text.

    `text` None is an answer that is yet to be generated.
    """

    role: Role
    text: str | None
    images: tuple[MarkedImage, ...] = ()

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise TemplateError(f"role {self.role!r} is not one of {', '.join(ROLES)}")
        if self.text is None and self.role != "assistant":
            raise TemplateError(f"a {self.role} turn needs a text; only an assistant's may lack it")
        object.__setattr__(self, "images", tuple(self.images))
        if self.images and self.role != "user":
            raise TemplateError(f"a {self.role} turn can't carry images")


def images_of(turns: Sequence[Turn]) -> tuple[MarkedImage, ...]:
    """All images of a conversation, in order."""
    return tuple(image for turn in turns for image in turn.images)


def open_images(images: Sequence[MarkedImage]) -> list[MarkedImage]:
    """The images decoded to RGB and turned as their EXIF data says. Raises ImageError."""
    return [
        each if each.drawn is not None else replace(each, image=open_image(each.image))
        for each in images
    ]


def draw_images(images: Sequence[MarkedImage]) -> tuple[list[MarkedImage], list[str]]:
    """Resolve the regions of opened images and draw them; images drawn before are kept.

    Ids and default colours are given out over all images together.

    Returns:
        The images, and notes on what was changed (a clipped region, for example).

    Raises:
        RegionError: regions that can't be resolved or drawn.
    """
    if all(each.drawn is not None for each in images):
        return list(images), []
    pairs = [(each.regions, each.unmarked.size) for each in images]
    done: list[MarkedImage] = []
    notes: list[str] = []
    for each, resolution in zip(images, resolve_together(pairs), strict=True):
        notes += resolution.notes
        if each.drawn is None:
            regions = resolution.regions
            drawn = draw_resolved(each.unmarked, regions) if regions else each.unmarked
            each = replace(each, regions=regions, drawn=drawn)
        done.append(each)
    return done, notes
