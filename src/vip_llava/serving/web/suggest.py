"""A mask from a click or a box: GrabCut by default, a Segment Anything model where one is named.

Both take pixels of the image and give a mask of its size. Knows no pages and no regions.
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

__all__ = ["GrabCut", "SegmentAnything", "Suggester"]

Mask = npt.NDArray[np.bool_]
_SIDE = 320  # GrabCut works on the image made this small, else it takes seconds
_ROUNDS = 3


class Suggester(Protocol):
    """Whoever finds the thing at a place."""

    def mask(
        self,
        image: Image.Image,
        *,
        point: Sequence[float] | None = None,
        box: Sequence[float] | None = None,
    ) -> Mask:
        """True where the thing is, [height, width] of the RGB image.

        point: [x, y] on the thing; box: [x1, y1, x2, y2] around it; in pixels, exactly one of them.
        RegionError where nothing is found.
        """
        ...


def _check(
    image: Image.Image, point: Sequence[float] | None, box: Sequence[float] | None
) -> tuple[float, ...]:
    """The given place, or RegionError."""
    place = box if point is None else point
    if (point is None) == (box is None) or place is None:
        raise RegionError("give either a point or a box")
    if len(place) != (4 if point is None else 2):
        raise RegionError("a point is [x, y], a box [x1, y1, x2, y2]")
    numbers = tuple(float(number) for number in place)
    limits = (image.width, image.height) * 2
    if not all(0 <= each <= most for each, most in zip(numbers, limits, strict=False)):
        raise RegionError(f"{list(numbers)} lies outside the image of {limits[0]} x {limits[1]}")
    if point is None and not (numbers[2] - numbers[0] >= 3 and numbers[3] - numbers[1] >= 3):
        raise RegionError("the box is too small to look into; draw it around the whole thing")
    return numbers


class GrabCut:
    """OpenCV's GrabCut: parts colours of the thing from those around it. The same every time."""

    _lock = threading.Lock()  # OpenCV's random numbers, set before each use, are the process's

    def __init__(self) -> None:
        try:
            import cv2
        except ImportError as error:
            raise MissingExtraError(
                "suggesting areas needs OpenCV: pip install 'vip-llava[web]'"
            ) from error
        self._cv: Any = cv2

    def mask(
        self,
        image: Image.Image,
        *,
        point: Sequence[float] | None = None,
        box: Sequence[float] | None = None,
    ) -> Mask:
        """See `Suggester.mask`."""
        place = _check(image, point, box)
        shrink = min(1.0, _SIDE / max(image.size))
        size = max(8, round(image.width * shrink)), max(8, round(image.height * shrink))
        pixels = np.array(image.resize(size, Image.Resampling.BOX))[:, :, ::-1].copy()
        scale = size[0] / image.width, size[1] / image.height
        spots = [number * scale[axis % 2] for axis, number in enumerate(place)]
        first = self._around(spots, size) if point is not None else self._within(spots, size)
        found = self._cut(pixels, first)
        if point is not None:
            found = self._piece(found, spots)
        if not found.any():
            raise RegionError("nothing stands out there; draw a box around the thing")
        large = Image.fromarray(found).resize(image.size, Image.Resampling.NEAREST)
        return np.array(large, dtype=np.bool_)

    def _around(self, spot: Sequence[float], size: tuple[int, int]) -> npt.NDArray[np.uint8]:
        """What is known of a click: the thing is here, perhaps around it, and not at the border."""
        cv = self._cv
        known = np.full((size[1], size[0]), cv.GC_PR_BGD, np.uint8)
        at, reach = (int(spot[0]), int(spot[1])), min(size)
        cv.circle(known, at, max(4, round(0.2 * reach)), cv.GC_PR_FGD, -1)
        known[:2], known[-2:], known[:, :2], known[:, -2:] = (cv.GC_BGD,) * 4
        cv.circle(known, at, max(2, round(0.03 * reach)), cv.GC_FGD, -1)
        return known

    def _within(self, box: Sequence[float], size: tuple[int, int]) -> npt.NDArray[np.uint8]:
        cv = self._cv
        known = np.full((size[1], size[0]), cv.GC_BGD, np.uint8)
        x1, y1, x2, y2 = (round(number) for number in box)
        # A box over the whole image leaves a border, for without a background nothing is parted.
        x1, y1, x2, y2 = max(x1, 1), max(y1, 1), min(x2, size[0] - 1), min(y2, size[1] - 1)
        known[y1 : max(y2, y1 + 2), x1 : max(x2, x1 + 2)] = cv.GC_PR_FGD
        return known

    def _cut(self, pixels: npt.NDArray[np.uint8], known: npt.NDArray[np.uint8]) -> Mask:
        cv = self._cv
        models = np.zeros((1, 65)), np.zeros((1, 65))
        with self._lock:
            cv.setRNGSeed(0)
            try:
                cv.grabCut(pixels, known, None, *models, _ROUNDS, cv.GC_INIT_WITH_MASK)
            except cv.error as error:  # one colour alone, or a box of a few pixels
                raise RegionError("nothing stands out there; draw the area by hand") from error
        return np.asarray((known == cv.GC_FGD) | (known == cv.GC_PR_FGD))

    def _piece(self, found: Mask, spot: Sequence[float]) -> Mask:
        """The connected part that was clicked on."""
        _, parts = self._cv.connectedComponents(found.astype(np.uint8), connectivity=4)
        x, y = min(int(spot[0]), found.shape[1] - 1), min(int(spot[1]), found.shape[0] - 1)
        return np.asarray((parts == parts[y, x]) & found)


class SegmentAnything:
    """A SAM checkpoint through transformers: a folder or a name on the hub, on the CPU."""

    def __init__(self, name: str | Path) -> None:
        """Raises CheckpointError where it can't be opened."""
        from transformers import SamModel, SamProcessor

        try:
            self._processor: Any = SamProcessor.from_pretrained(str(name))
            model: Any = SamModel.from_pretrained(str(name))
        except (OSError, ValueError, KeyError) as error:
            first = (str(error).strip().splitlines() or [""])[0]
            raise CheckpointError(f"{name}: no Segment Anything model: {first}") from error
        self._model = model.eval()

    def mask(
        self,
        image: Image.Image,
        *,
        point: Sequence[float] | None = None,
        box: Sequence[float] | None = None,
    ) -> Mask:
        """See `Suggester.mask`."""
        import torch

        place = list(_check(image, point, box))
        asked = {"input_points": [[place]]} if point is not None else {"input_boxes": [[place]]}
        inputs = self._processor(images=image, return_tensors="pt", **asked)
        with torch.inference_mode():
            outputs = self._model(**inputs)
        masks = self._processor.image_processor.post_process_masks(
            outputs.pred_masks, inputs["original_sizes"], inputs["reshaped_input_sizes"]
        )[0][0]
        best = int(outputs.iou_scores[0, 0].argmax())
        found = np.asarray(masks[best].numpy(), dtype=np.bool_)
        if not found.any():
            raise RegionError("nothing stands out there; draw a box around the thing")
        return found
