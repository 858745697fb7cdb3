"""Views to the vectors that stand for them: many requests' views at once, each view only once.

A view is known by a hash of its type, shape and pixels (which carry the marks drawn on it), so two
requests about one picture share its features. The features lie where the tower computes them,
bounded in bytes; the ones longest unused go first.

This module knows transformers' LLaVA classes, no requests and no text.
Shape letters: N views of a request, S side in pixels, T tokens of a view, C width of the language
model.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

__all__ = ["VisionCache", "view_digests"]


def view_digests(pixel_values: Tensor) -> list[bytes]:
    """One hash for each view of `pixel_values` [N, 3, S, S] of any type."""
    kind = f"{pixel_values.dtype} {list(pixel_values.shape[1:])} ".encode()
    views = pixel_values.detach().cpu().contiguous()
    return [
        hashlib.blake2b(kind + view.flatten().view(torch.uint8).numpy().tobytes()).digest()
        for view in views
    ]


class VisionCache:
    """Tower and projector of one model, and the features of the views seen last."""

    def __init__(self, model: PreTrainedModel, max_bytes: int, max_views: int = 16) -> None:
        """`max_bytes` of features are kept, 0 for none. `max_views`: encoded in one go at most."""
        self._model = model
        self._max_bytes = max_bytes
        self._max_views = max_views
        self._kept: OrderedDict[bytes, Tensor] = OrderedDict()
        self.bytes = 0
        self.hits = 0
        """Views that needed no encoding, be it only because another request brought them too."""
        self.misses = 0

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

    def _encode(self, views: dict[bytes, Tensor]) -> dict[bytes, Tensor]:
        made: dict[bytes, Tensor] = {}
        shapes = {view.shape for view in views.values()}
        for shape in shapes:
            digests = [digest for digest, view in views.items() if view.shape == shape]
            for start in range(0, len(digests), self._max_views):
                part = digests[start : start + self._max_views]
                encoded = self._run(torch.stack([views[digest] for digest in part]))
                # Each by itself, so that forgetting one gives back its memory.
                made |= {d: one.clone() for d, one in zip(part, encoded, strict=True)}
        for digest, one in made.items():
            self._keep(digest, one)
        return made

    def _run(self, pixels: Tensor) -> Tensor:
        """Views [N, 3, S, S] to features [N, T, C]."""
        model: Any = self._model
        tower = getattr(model.base_model, "vision_tower", model)
        dtypes = [p.dtype for p in tower.parameters() if p.dtype.is_floating_point]
        pixels = pixels.to(device=model.device, dtype=dtypes[0] if dtypes else model.dtype)
        features = model.get_image_features(pixel_values=pixels, return_dict=True).pooler_output
        if not isinstance(features, Tensor):  # Llava gives the pictures one by one
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
