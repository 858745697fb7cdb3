"""Views to the vectors that stand for them: many requests' views at once, each view only once.

A view is known by a hash (`digests`) of its type, shape and pixels (which carry the marks drawn on it),
so two requests about one image share its features. The features lie where the tower computes them,
bounded in bytes; the ones longest unused go first. Encodings of 1, 2, 4, 6 ... views can be recorded
(`graphs`); other numbers are put together of those.

This module knows transformers' LLaVA classes, no requests and no text.
Shape letters: N views of a request, S side in pixels, T tokens of a view, C width of the language
model.
"""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from vip_llava.engine.device_transfer import sent
from vip_llava.engine.eager_runner import hooked
from vip_llava.engine.graph_pool import Recorder, Recording

__all__ = ["VisionCache"]

_SIZES = (1, 2, 4, 6, 8, 12, 16)
"""Views of a recorded encoding; other numbers are put together of those. Six of usual prompts fill a
step on CUDA."""


class VisionCache:
    """Tower and projector of one model, and the features of the views seen last."""

    def __init__(
        self,
        model: PreTrainedModel,
        max_bytes: int,
        max_views: int = 16,
        *,
        captured: bool = False,
    ) -> None:
        """`max_bytes` of features are kept, 0 for none. `max_views`: encoded in one go at most.

        `captured`: encodings are recorded, if `look` finds that they can be.
        """
        self._model = model
        self._captured = captured
        self._recorded = False
        self._identity: tuple[int, ...] = ()
        self._recordings: dict[tuple[int, ...], tuple[Tensor, Recording]] = {}
        self.recorder = Recorder(model.device)
        self.closed = ""
        """Why encodings are not recorded, if that failed."""
        self._max_bytes = max_bytes
        self._max_views = max_views
        self._kept: OrderedDict[bytes, Tensor] = OrderedDict()
        self.bytes = 0
        self.hits = 0
        """Views that needed no encoding, be it only because another request brought them too."""
        self.misses = 0

    @property
    def dtype(self) -> torch.dtype:
        """What the tower computes in; views of another type are turned into it."""
        model: Any = self._model
        tower = getattr(model.base_model, "vision_tower", model)
        for parameter in tower.parameters():
            if parameter.dtype.is_floating_point:
                return parameter.dtype  # type: ignore[no-any-return]
        kind: torch.dtype = model.dtype
        return kind

    def features(self, wanted: Sequence[tuple[Sequence[bytes], Tensor]]) -> list[Tensor]:
        """For each request (`view_digests`, pixel_values [N, 3, S, S]) its features [N x T, C]."""
        found: dict[bytes, Tensor] = {}
        missing: dict[bytes, Tensor] = {}
        for digests, pixels in wanted:
            for digest, view in zip(digests, pixels, strict=True):
                if digest in self._kept:
                    self._kept.move_to_end(digest)
                    found[digest] = self._kept[digest]
                if digest in found or digest in missing:
                    self.hits += 1
                else:
                    self.misses += 1
                    missing[digest] = view
        found |= self._encode(missing)
        return [torch.cat([found[digest] for digest in digests]) for digests, _ in wanted]

    def forget(self) -> None:
        """Keep nothing, as is right when the weights have changed."""
        self._kept.clear()
        self.bytes = 0

    def look(self) -> None:
        """Find out whether encodings may be recorded; needed whenever the model may have changed."""
        if not self._captured:
            return
        parts = _parts(self._model)
        tensors = [t for part in parts for t in (*part.parameters(), *part.buffers())]
        identity = tuple(tensor.data_ptr() for tensor in tensors)
        if identity != self._identity:
            self._recordings.clear()
            self.recorder = Recorder(self._model.device, self.recorder)
            self._identity = identity
        one_device = {tensor.device for tensor in tensors} == {self._model.device}
        plain = not any(hooked(module) for part in parts for module in part.modules())
        self._recorded = bool(parts) and one_device and plain

    def warm_up(self, most: int) -> int:
        """Record encodings of up to six views of the tower's size, if that is known, as far as so
        many requests may come together. The tokens of a view, or 0."""
        side = getattr(getattr(self._model.config, "vision_config", None), "image_size", None)
        if not self._recorded or not isinstance(side, int):
            return 0
        counts = [count for count in _SIZES[3::-1] if count <= min(most, self._max_views)]
        return [self._run(torch.zeros(count, 3, side, side)).shape[1] for count in counts][-1]

    def _encode(self, views: dict[bytes, Tensor]) -> dict[bytes, Tensor]:
        made: dict[bytes, Tensor] = {}
        shapes = {view.shape for view in views.values()}
        for shape in shapes:
            digests = [digest for digest, view in views.items() if view.shape == shape]
            while digests:
                count = min(len(digests), self._max_views)
                if self._recorded:
                    count = max(size for size in _SIZES if size <= count)
                part, digests = digests[:count], digests[count:]
                encoded = self._run(torch.stack([views[digest] for digest in part]))
                # Each by itself, so that forgetting one gives back its memory.
                made |= {d: one.clone() for d, one in zip(part, encoded, strict=True)}
        for digest, one in made.items():
            self._keep(digest, one)
        return made

    def _run(self, pixels: Tensor) -> Tensor:
        """Views [N, 3, S, S] to features [N, T, C]; good until the next call."""
        pixels = sent(pixels, self._model.device).to(self.dtype)
        if not self._recorded:
            return self._features(pixels)
        kind = tuple(pixels.shape)
        try:
            if kind not in self._recordings:
                given = pixels.clone()
                made = self.recorder.record(lambda: self._features(given))
                self._recordings[kind] = (given, made)
            given, again = self._recordings[kind]
            given.copy_(pixels)
            return again()
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            # What can't be recorded may still run; what can't run fails below.
            self._recorded = self._captured = False
            features = self._features(pixels)
            why = f"images are encoded without recordings: {type(error).__name__}: {error}"
            warnings.warn(why, stacklevel=2)
            self.closed = why
            return features

    def _features(self, pixels: Tensor) -> Tensor:
        model: Any = self._model
        features = model.get_image_features(pixel_values=pixels, return_dict=True).pooler_output
        if not isinstance(features, Tensor):  # Llava gives the images one by one
            features = torch.cat([one.reshape(-1, one.shape[-1]) for one in features])
        return features.reshape(len(pixels), -1, features.shape[-1])

    def _keep(self, digest: bytes, features: Tensor) -> None:
        size = features.numel() * features.element_size()
        if size > self._max_bytes:
            return
        self._kept[digest] = features
        self.bytes += size
        while self.bytes > self._max_bytes:
            _, oldest = self._kept.popitem(last=False)
            self.bytes -= oldest.numel() * oldest.element_size()


def _parts(model: Any) -> list[nn.Module]:
    """What makes features of views, as far as it is known by name."""
    names = ("vision_tower", "multi_modal_projector")
    found = [getattr(model.base_model, name, None) for name in names]
    return [part for part in found if isinstance(part, nn.Module)]
