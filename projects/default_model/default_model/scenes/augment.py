"""Random views of a photo and its labelled objects: crop, zoom, aspect, flip, light, colour.

Boxes and outlines follow the image. Marks are drawn on the view afterwards, so they are never
mirrored or tinted. All randomness comes from the generator that is passed in.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

from vip_llava.evaluation.coco_annotations import LabelledObject, Rectangle

_VISIBLE = 0.5  # an object of which less than this fraction is left is dropped


@dataclass(frozen=True)
class AugmentSettings:
    """Ranges of the random changes; `longest` limits the longer side of the view in pixels."""

    smallest_window: float = 0.55
    zoom_out: float = 1.2
    zoom_out_share: float = 0.2
    aspect: float = 0.12
    scale: tuple[float, float] = (0.4, 1.1)
    light: tuple[float, float] = (0.7, 1.3)
    saturation: tuple[float, float] = (0.5, 1.4)
    longest: int = 448
    harsh_share: float = 0.0
    """The fraction of views that are also randomly tinted, blurred, grey or grainy."""
    tint: float = 0.2
    blur: tuple[float, float] = (0.3, 1.2)
    grain: tuple[float, float] = (3.0, 14.0)
    fill: tuple[int, int, int] = (127, 127, 127)


def augment(
    image: Image.Image,
    objects: Sequence[LabelledObject],
    keep: Sequence[int],
    rng: np.random.Generator,
    settings: AugmentSettings,
) -> tuple[Image.Image, list[LabelledObject | None]]:
    """A random view of an RGB image in which the objects with the indices `keep` stay whole.

    Returns the view, and the objects in its pixels in the same order, None for those outside it.
    """
    window = _window(image.size, [objects[i].box for i in keep], rng, settings)
    width, height = window[2] - window[0], window[3] - window[1]
    stretch = np.exp(rng.uniform(-settings.aspect, settings.aspect, 2))
    scale = rng.uniform(*settings.scale)
    limit = settings.longest / max(width * stretch[0] * scale, height * stretch[1] * scale)
    scale *= min(limit, 1.0)
    size = (max(round(width * stretch[0] * scale), 8), max(round(height * stretch[1] * scale), 8))
    view = _cut(image, window, size, settings.fill)
    sx, sy = size[0] / width, size[1] / height
    flip = rng.random() < 0.5
    if flip:
        view = view.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    moved = [_move(t, window, (sx, sy), size, flip) for t in objects]
    view = _relight(view, rng, settings)
    if settings.harsh_share and rng.random() < settings.harsh_share:
        view = _harsh(view, rng, settings)
    return view, moved


def _window(
    size: tuple[int, int],
    keep: Sequence[Rectangle],
    rng: np.random.Generator,
    settings: AugmentSettings,
) -> Rectangle:
    """The part of the photo to show; larger than the photo if it zooms out."""
    width, height = size
    if rng.random() < settings.zoom_out_share:
        grow = rng.uniform(1.0, settings.zoom_out)
        left = -rng.uniform(0, grow - 1) * width
        top = -rng.uniform(0, grow - 1) * height
        return left, top, left + grow * width, top + grow * height
    share = rng.uniform(settings.smallest_window, 1.0, 2)
    w, h = share[0] * width, share[1] * height
    x1 = min((b[0] for b in keep), default=width / 2)
    y1 = min((b[1] for b in keep), default=height / 2)
    x2 = max((b[2] for b in keep), default=width / 2)
    y2 = max((b[3] for b in keep), default=height / 2)
    w, h = min(max(w, x2 - x1), width), min(max(h, y2 - y1), height)
    left = rng.uniform(max(x2 - w, 0.0), max(min(x1, width - w), max(x2 - w, 0.0)))
    top = rng.uniform(max(y2 - h, 0.0), max(min(y1, height - h), max(y2 - h, 0.0)))
    return float(left), float(top), float(left + w), float(top + h)


def _cut(
    image: Image.Image, window: Rectangle, size: tuple[int, int], fill: tuple[int, int, int]
) -> Image.Image:
    x1, y1, x2, y2 = window
    if x1 >= 0 and y1 >= 0 and x2 <= image.width and y2 <= image.height:
        return image.resize(size, Image.Resampling.BILINEAR, box=window)
    sx, sy = size[0] / (x2 - x1), size[1] / (y2 - y1)
    view = Image.new("RGB", size, fill)
    part = (max(round(image.width * sx), 1), max(round(image.height * sy), 1))
    view.paste(image.resize(part, Image.Resampling.BILINEAR), (round(-x1 * sx), round(-y1 * sy)))
    return view


def _move(
    target: LabelledObject,
    window: Rectangle,
    scale: tuple[float, float],
    size: tuple[int, int],
    flip: bool,
) -> LabelledObject | None:
    sx, sy = scale

    def x_of(x: float) -> float:
        moved = (x - window[0]) * sx
        return size[0] - moved if flip else moved

    def y_of(y: float) -> float:
        return (y - window[1]) * sy

    xs = sorted((x_of(target.box[0]), x_of(target.box[2])))
    ys = (y_of(target.box[1]), y_of(target.box[3]))
    x1, x2 = max(xs[0], 0.0), min(xs[1], float(size[0]))
    y1, y2 = max(ys[0], 0.0), min(ys[1], float(size[1]))
    whole = (xs[1] - xs[0]) * (ys[1] - ys[0])
    if x2 - x1 < 3 or y2 - y1 < 3 or (x2 - x1) * (y2 - y1) < _VISIBLE * whole:
        return None
    polygons = None
    if target.polygons:
        polygons = tuple(
            tuple(x_of(v) if i % 2 == 0 else y_of(v) for i, v in enumerate(p))
            for p in target.polygons
        )
    return LabelledObject(target.label, (x1, y1, x2, y2), polygons)


def _relight(view: Image.Image, rng: np.random.Generator, settings: AugmentSettings) -> Image.Image:
    """Change brightness and contrast with one lookup table, then saturation by blending with grey."""
    brightness, contrast = rng.uniform(*settings.light, 2)
    ramp = (np.arange(256) * brightness - 127.5) * contrast + 127.5
    table = np.clip(ramp, 0, 255).astype(np.uint8).tolist()
    view = view.point(table * 3)
    if rng.random() < 0.5:
        grey = view.convert("L").convert("RGB")
        view = Image.blend(grey, view, float(rng.uniform(*settings.saturation)))
    return view


def _harsh(view: Image.Image, rng: np.random.Generator, settings: AugmentSettings) -> Image.Image:
    """Degrade the view as bad cameras do: at random a tint, no colours, blur, grain."""
    chances = rng.random(4)
    if chances[0] < 0.5:
        gains = rng.uniform(1 - settings.tint, 1 + settings.tint, 3)
        levels = np.clip(np.outer(gains, np.arange(256)), 0, 255)
        view = view.point(levels.astype(np.uint8).ravel().tolist())
    if chances[1] < 0.15:
        view = view.convert("L").convert("RGB")
    if chances[2] < 0.35:
        view = view.filter(ImageFilter.GaussianBlur(float(rng.uniform(*settings.blur))))
    if chances[3] < 0.35:
        pixels = np.asarray(view, np.int16)
        # A slice of one table of random numbers is ten times faster than new ones.
        table = _grain()
        start = int(rng.integers(len(table) - pixels.size)) if pixels.size < len(table) else 0
        grain = np.resize(table[start : start + pixels.size], pixels.shape)
        grain = grain * np.float32(rng.uniform(*settings.grain))
        view = Image.fromarray(np.clip(pixels + grain, 0, 255).astype(np.uint8))
    return view


@functools.cache
def _grain() -> np.ndarray[Any, np.dtype[np.float32]]:
    """8 MB of normal random numbers, made on first use."""
    return np.random.default_rng(0).standard_normal(2**21, dtype=np.float32)
