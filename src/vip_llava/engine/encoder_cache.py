"""Image features: views of many requests are encoded together, and each view only once.

A view is identified by a digest, so two requests about one image share its features. The features
stay on the device of the encoder, up to a limit of bytes; the least recently used are dropped.
Encodings of 1, 2, 4, 6 ... views can be captured as graphs; other numbers are composed of those.

This module knows the LLaVA classes of transformers, no requests and no text.
Shape letters: N views of a request, S side in pixels, T tokens of a view, C width of the language
model.
"""

from __future__ import annotations

import hashlib
import warnings
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from vip_llava.engine.device_transfer import to_device_async
from vip_llava.engine.eager_runner import has_hooks
from vip_llava.engine.graph_pool import Graph, GraphPool

__all__ = ["EncoderCache", "view_digests"]

_GRAPH_SIZES = (1, 2, 4, 6, 8, 12, 16)
"""Views of a captured encoding."""
_WARM_UP_SIZES = _GRAPH_SIZES[3::-1]
"""Six views fill a step of usual prompts on CUDA."""


def view_digests(pixel_values: Tensor) -> list[bytes]:
    """A hash of dtype, shape and pixels for each view of `pixel_values` [N, 3, S, S]."""
    kind = f"{pixel_values.dtype} {list(pixel_values.shape[1:])} ".encode()
    found = []
    for view in pixel_values.detach().cpu().contiguous():
        # SHA-256 has instructions of its own on most processors; nothing is copied for it.
        digest = hashlib.sha256(kind)
        digest.update(view.flatten().view(torch.uint8).numpy())
        found.append(digest.digest())
    return found


class EncoderCache:
    """Vision tower and projector of one model, and the features of recent views."""

    dtype: torch.dtype
    """What the tower computes in; views of another dtype are converted."""

    def __init__(
        self,
        model: PreTrainedModel,
        max_bytes: int,
        max_views: int = 16,
        *,
        cuda_graphs: bool = False,
    ) -> None:
        """
        max_bytes: of features that are kept; 0 keeps none.
        max_views: encoded together at most.
        cuda_graphs: whether encodings are captured, if the tower and projector allow it.
        """
        self._model: Any = model
        self._cuda_graphs = cuda_graphs
        self._max_bytes, self._max_views = max_bytes, max_views
        self._features: OrderedDict[bytes, Tensor] = OrderedDict()
        self._graphs: dict[tuple[int, ...], tuple[Tensor, Graph]] = {}
        self.pool = GraphPool(model.device)
        self.fallback = ""
        """Why encodings are not captured any more, if that failed."""
        self.bytes = 0
        self.hits = 0
        """Views that needed no encoding, including repetitions within one step."""
        self.misses = 0
        self.reset()

    def reset(self) -> None:
        """Drop features and graphs, and look at the model anew."""
        self.clear()
        self._graphs.clear()
        self.pool = GraphPool(self._model.device, self.pool)
        body = self._model.base_model
        self.dtype = next(
            (
                parameter.dtype
                for parameter in getattr(body, "vision_tower", self._model).parameters()
                if parameter.dtype.is_floating_point
            ),
            self._model.dtype,
        )
        names = ("vision_tower", "multi_modal_projector")
        parts = [part for name in names if isinstance(part := getattr(body, name, None), nn.Module)]
        tensors = (t for part in parts for t in (*part.parameters(), *part.buffers()))
        self._use_graphs = (
            self._cuda_graphs
            and {tensor.device for tensor in tensors} == {self._model.device}
            and not any(has_hooks(module) for part in parts for module in part.modules())
        )

    def clear(self) -> None:
        """Drop all features."""
        self._features.clear()
        self.bytes = 0

    def features(self, wanted: Sequence[tuple[Sequence[bytes], Tensor]]) -> list[Tensor]:
        """Features [N x T, C] of each request, given as (digests, pixel_values [N, 3, S, S])."""
        found: dict[bytes, Tensor] = {}
        missing: dict[bytes, Tensor] = {}
        for digests, pixels in wanted:
            for digest, view in zip(digests, pixels, strict=True):
                if digest in self._features:
                    self._features.move_to_end(digest)
                    found[digest] = self._features[digest]
                if digest in found or digest in missing:
                    self.hits += 1
                else:
                    self.misses += 1
                    missing[digest] = view
        found |= self._encode(missing)
        return [torch.cat([found[digest] for digest in digests]) for digests, _ in wanted]

    def warm_up(self, max_num_seqs: int) -> int:
        """Capture encodings of up to six views, and not more than `max_num_seqs`.

        Returns the tokens of a view, or 0 if nothing was captured.
        """
        side = getattr(getattr(self._model.config, "vision_config", None), "image_size", None)
        if not self._use_graphs or not isinstance(side, int):
            return 0
        most = min(max_num_seqs, self._max_views)
        sizes = [size for size in _WARM_UP_SIZES if size <= most]
        return [self._run(torch.zeros(size, 3, side, side)).shape[1] for size in sizes][-1]

    def _encode(self, views: dict[bytes, Tensor]) -> dict[bytes, Tensor]:
        encoded: dict[bytes, Tensor] = {}
        for shape in {view.shape for view in views.values()}:
            digests = [digest for digest, view in views.items() if view.shape == shape]
            while digests:
                count = min(len(digests), self._max_views)
                if self._use_graphs:
                    count = max(size for size in _GRAPH_SIZES if size <= count)
                batch, digests = digests[:count], digests[count:]
                features = self._run(torch.stack([views[digest] for digest in batch]))
                # Copies, so that dropping one frees its memory.
                encoded |= {d: one.clone() for d, one in zip(batch, features, strict=True)}
        for digest, one in encoded.items():
            self._keep(digest, one)
        return encoded

    def _run(self, pixels: Tensor) -> Tensor:
        """Views [N, 3, S, S] to features [N, T, C]; valid until the next call."""
        pixels = to_device_async(pixels, self._model.device).to(self.dtype)
        if not self._use_graphs:
            return self._forward(pixels)
        shape = tuple(pixels.shape)
        try:
            if shape not in self._graphs:
                given = pixels.clone()
                self._graphs[shape] = given, self.pool.capture(lambda: self._forward(given))
            buffer, graph = self._graphs[shape]
            buffer.copy_(pixels)
            return graph()
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            # What cannot be captured may still run; if not, the next line raises.
            self._use_graphs = False
            features = self._forward(pixels)
            self.fallback = f"images are encoded without graphs: {type(error).__name__}: {error}"
            warnings.warn(self.fallback, stacklevel=2)
            return features

    def _forward(self, pixels: Tensor) -> Tensor:
        output = self._model.get_image_features(pixel_values=pixels, return_dict=True)
        features = output.pooler_output
        if not isinstance(features, Tensor):  # Llava returns a list with one entry for each view
            features = torch.cat([one.reshape(-1, one.shape[-1]) for one in features])
        return features.reshape(len(pixels), -1, features.shape[-1])

    def _keep(self, digest: bytes, features: Tensor) -> None:
        size = features.numel() * features.element_size()
        if size > self._max_bytes:
            return
        self._features[digest] = features
        self.bytes += size
        while self.bytes > self._max_bytes:
            _, oldest = self._features.popitem(last=False)
            self.bytes -= oldest.numel() * oldest.element_size()
