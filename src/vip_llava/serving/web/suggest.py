"""Mask suggestions from a click or a box: GrabCut by default, or a Segment Anything model.

Both take pixel coordinates and return a mask of the image's size. This module does not know pages
or regions.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image

from vip_llava.errors import CheckpointError, MissingExtraError, RegionError

__all__ = ["GrabCut", "MaskSuggester", "SegmentAnything"]

Mask = npt.NDArray[np.bool_]
_MAX_SIDE = 320  # GrabCut runs on a downscaled image; at full size it takes seconds
_ITERATIONS = 3


class MaskSuggester(Protocol):
    """Segments the object at a point or in a box."""

    def mask(
        self,
        image: Image.Image,
        *,
        point: Sequence[float] | None = None,
        box: Sequence[float] | None = None,
    ) -> Mask:
        """A boolean mask [height, width] of an RGB image, True on the object.

        Args:
            point: [x, y] on the object, in pixels; give either this or a box.
            box: [x1, y1, x2, y2] around the object, in pixels.

        Raises:
            RegionError: an invalid point or box, or no object is found.
        """
        ...


def _check(
    image: Image.Image, point: Sequence[float] | None, box: Sequence[float] | None
) -> tuple[float, ...]:
    """The given point or box, or RegionError."""
    prompt = box if point is None else point
    if (point is None) == (box is None) or prompt is None:
        raise RegionError("give either a point or a box")
    if len(prompt) != (4 if point is None else 2):
        raise RegionError("a point must be [x, y], a box [x1, y1, x2, y2]")
    numbers = tuple(float(number) for number in prompt)
    limits = (image.width, image.height) * 2
    if not all(0 <= each <= most for each, most in zip(numbers, limits, strict=False)):
        raise RegionError(f"{list(numbers)} lies outside the image of {limits[0]} x {limits[1]}")
    if point is None and not (numbers[2] - numbers[0] >= 3 and numbers[3] - numbers[1] >= 3):
        raise RegionError("the box is too small; draw it around the whole object")
    return numbers


class GrabCut:
    """OpenCV's GrabCut, which separates objects by colour; deterministic."""

    _lock = threading.Lock()  # OpenCV's random state is global and reseeded for each call

    def __init__(self) -> None:
        try:
            import cv2
        except ImportError as error:
            raise MissingExtraError(
                "mask suggestions need OpenCV: pip install 'vip-llava[web]'"
            ) from error
        self._cv: Any = cv2

    def mask(
        self,
        image: Image.Image,
        *,
        point: Sequence[float] | None = None,
        box: Sequence[float] | None = None,
    ) -> Mask:
        """See `MaskSuggester.mask`."""
        prompt = _check(image, point, box)
        shrink = min(1.0, _MAX_SIDE / max(image.size))
        size = max(8, round(image.width * shrink)), max(8, round(image.height * shrink))
        pixels = np.array(image.resize(size, Image.Resampling.BOX))[:, :, ::-1].copy()
        scale = size[0] / image.width, size[1] / image.height
        scaled = [number * scale[axis % 2] for axis, number in enumerate(prompt)]
        labels = (
            self._around_point(scaled, size)
            if point is not None
            else self._within_box(scaled, size)
        )
        found = self._cut(pixels, labels)
        if point is not None:
            found = self._component_at(found, scaled)
        if not found.any():
            raise RegionError("no object found there; draw a box around the object")
        large = Image.fromarray(found).resize(image.size, Image.Resampling.NEAREST)
        return np.array(large, dtype=np.bool_)

    def _around_point(self, point: Sequence[float], size: tuple[int, int]) -> npt.NDArray[np.uint8]:
        """Initial labels for a click: foreground there, maybe around it, background at the border."""
        cv = self._cv
        labels = np.full((size[1], size[0]), cv.GC_PR_BGD, np.uint8)
        center, reach = (int(point[0]), int(point[1])), min(size)
        cv.circle(labels, center, max(4, round(0.2 * reach)), cv.GC_PR_FGD, -1)
        labels[:2], labels[-2:], labels[:, :2], labels[:, -2:] = (cv.GC_BGD,) * 4
        cv.circle(labels, center, max(2, round(0.03 * reach)), cv.GC_FGD, -1)
        return labels

    def _within_box(self, box: Sequence[float], size: tuple[int, int]) -> npt.NDArray[np.uint8]:
        cv = self._cv
        labels = np.full((size[1], size[0]), cv.GC_BGD, np.uint8)
        x1, y1, x2, y2 = (round(number) for number in box)
        # A box over the whole image leaves a border: GrabCut needs some background.
        x1, y1, x2, y2 = max(x1, 1), max(y1, 1), min(x2, size[0] - 1), min(y2, size[1] - 1)
        labels[y1 : max(y2, y1 + 2), x1 : max(x2, x1 + 2)] = cv.GC_PR_FGD
        return labels

    def _cut(self, pixels: npt.NDArray[np.uint8], labels: npt.NDArray[np.uint8]) -> Mask:
        cv = self._cv
        models = np.zeros((1, 65)), np.zeros((1, 65))
        with self._lock:
            cv.setRNGSeed(0)
            try:
                cv.grabCut(pixels, labels, None, *models, _ITERATIONS, cv.GC_INIT_WITH_MASK)
            except cv.error as error:  # a single colour, or a box of a few pixels
                raise RegionError("no object found there; draw the area by hand") from error
        return np.asarray((labels == cv.GC_FGD) | (labels == cv.GC_PR_FGD))

    def _component_at(self, found: Mask, point: Sequence[float]) -> Mask:
        """The connected component at a point."""
        _, parts = self._cv.connectedComponents(found.astype(np.uint8), connectivity=4)
        x, y = min(int(point[0]), found.shape[1] - 1), min(int(point[1]), found.shape[0] - 1)
        return np.asarray((parts == parts[y, x]) & found)


class SegmentAnything:
    """A SAM checkpoint in transformers, by folder or hub name, on the CPU."""

    def __init__(self, name: str | Path) -> None:
        """Raises CheckpointError if it can't be loaded."""
        from transformers import SamModel, SamProcessor

        try:
            self._processor: Any = SamProcessor.from_pretrained(str(name))
            model: Any = SamModel.from_pretrained(str(name))
        except (OSError, ValueError, KeyError) as error:
            first = (str(error).strip().splitlines() or [""])[0]
            raise CheckpointError(f"{name}: not a Segment Anything checkpoint: {first}") from error
        self._model = model.eval()

    def mask(
        self,
        image: Image.Image,
        *,
        point: Sequence[float] | None = None,
        box: Sequence[float] | None = None,
    ) -> Mask:
        """See `MaskSuggester.mask`."""
        import torch

        prompt = list(_check(image, point, box))
        asked = {"input_points": [[prompt]]} if point is not None else {"input_boxes": [[prompt]]}
        inputs = self._processor(images=image, return_tensors="pt", **asked)
        with torch.inference_mode():
            outputs = self._model(**inputs)
        masks = self._processor.image_processor.post_process_masks(
            outputs.pred_masks, inputs["original_sizes"], inputs["reshaped_input_sizes"]
        )[0][0]
        best = int(outputs.iou_scores[0, 0].argmax())
        found = np.asarray(masks[best].numpy(), dtype=np.bool_)
        if not found.any():
            raise RegionError("no object found there; draw a box around the object")
        return found
