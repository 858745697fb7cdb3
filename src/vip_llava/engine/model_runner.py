"""One step of the model: tokens of several sequences in, logits of those that are ready out.

The language model runs by decode and prefill graphs, by the fused kernels, layer by layer, or by its
own forward method, whichever is the fastest that it is known to support. That is decided once, by
`select`: correct first. Image features stand at the positions of their tokens, and logits are
computed only where a token will be sampled.

This module knows transformers' models. It does not decide which sequences run.
Shape letters: N tokens of the step, R sequences ready for their next token, C width, V vocabulary.
"""

from __future__ import annotations

import warnings
from collections import abc
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from vip_llava.engine.attention import Chunk, StepPlan, paged, plan_step
from vip_llava.engine.decode_graphs import DecodeGraphs, InFlightStep
from vip_llava.engine.device_transfer import to_device_async
from vip_llava.engine.eager_runner import EagerLlama
from vip_llava.engine.fused_runner import FusedLlama
from vip_llava.engine.graph_pool import GraphPool
from vip_llava.engine.kv_cache import KVCache, StepCache
from vip_llava.engine.prefill_graphs import PrefillGraphs
from vip_llava.engine.sequence import Sequence
from vip_llava.kernels import for_device
from vip_llava.models.cache_argument import CACHE_ARGUMENT

__all__ = ["Batch", "ModelRunner"]

Batch = abc.Sequence[tuple[Sequence, int]]
"""Sequences and how many of their pending tokens to compute."""

_COMPUTE_BOUND_TOKENS = 256
"""From here on a step's arithmetic takes longer than reading the weights."""
_MAX_SMALL_GRAPHS = 4
"""Graphs of few tokens that together take no longer than launching one ordinary step."""


class ModelRunner:
    """The language model of a LLaVA with its KV cache."""

    def __init__(
        self,
        model: PreTrainedModel,
        kv_cache: KVCache,
        *,
        cuda_graphs: bool,
        max_num_seqs: int,
        suppress_ids: abc.Collection[int] = (),
    ) -> None:
        self._model: Any = model
        self.kv_cache = kv_cache
        self._cuda_graphs = cuda_graphs
        self._max_num_seqs, self._suppress_ids = max_num_seqs, suppress_ids
        # Each has a pool of its own: a decode step is read after prefill steps were launched.
        self.decode_pool, self.prefill_pool = GraphPool(model.device), GraphPool(model.device)
        self.fallback = ""
        """Why a faster way is not used any more, if it failed."""
        self.select()

    def select(self) -> None:
        """Look at the model and choose how to run it; drops all graphs."""
        self.decode_graphs: DecodeGraphs | None = None
        """For sequences with one pending token each."""
        self.prefill_graphs: PrefillGraphs | None = None
        """For the prompt of one sequence, or what is new of it."""
        self.decode_pool = GraphPool(self._model.device, self.decode_pool)
        self.prefill_pool = GraphPool(self._model.device, self.prefill_pool)
        self._out_of_memory = False
        self._select_eager()
        if not self._cuda_graphs or not FusedLlama.supports(self._model):
            return
        try:
            self._select_fused()
        except torch.OutOfMemoryError:
            self._out_of_memory = True
        except Exception as error:
            self._warn("the fused kernels are not used", error)

    def retry_graphs(self) -> None:
        """Select again if graphs were dropped for lack of memory; it may be free by now."""
        if self._out_of_memory:
            self.select()

    def launch_decode(
        self, seqs: list[Sequence], previous: InFlightStep | None = None
    ) -> InFlightStep | None:
        """Launch a decode graph for sequences with one pending token each, without synchronizing.

        None if there is no graph for them.
        """
        if self.decode_graphs is None or not seqs:
            return None
        try:
            return self.decode_graphs.launch(seqs, previous)
        except Exception as error:
            self._drop_decode_graphs(error)
            return None

    def warm_up(self, prefill_sizes: abc.Iterable[int]) -> None:
        """Capture all decode graphs, and prefill graphs of these sizes."""
        try:
            if self.decode_graphs is not None:
                self.decode_graphs.warm_up()
        except Exception as error:
            self._drop_decode_graphs(error)
        try:
            if self.prefill_graphs is not None:
                self.prefill_graphs.warm_up(prefill_sizes)
        except Exception as error:
            self._drop_prefill_graphs(error)

    def execute(self, batch: Batch) -> tuple[list[Sequence], Tensor]:
        """Compute pending tokens of each sequence; the ready sequences and their logits [R, V].

        Leaves the sequences unchanged; computing the same tokens again is harmless.
        """
        ready: list[Sequence] = []
        parts: list[Tensor] = []
        rest = list(batch)
        for seq, count in self._for_prefill_graphs(batch):
            logits = self._prefill(seq, count)
            if logits is None:
                continue
            rest.remove((seq, count))
            if seq.num_pending == count:
                ready.append(seq)
                # The next graph overwrites them.
                parts.append(logits.clone() if len(batch) > 1 else logits)
        if rest:
            others, logits = self._execute_together(rest)
            ready += others
            parts.append(logits)
        if not parts:  # chunks from the middle of prompts
            return ready, torch.empty((0, 0), device=self._model.device)
        return ready, parts[0] if len(parts) == 1 else torch.cat(parts)

    def _for_prefill_graphs(self, batch: Batch) -> Batch:
        """The sequences that a prefill graph each serves best."""
        graphs = self.prefill_graphs
        if graphs is None:
            return []
        fitting = [one for one in batch if one[1] > 1 and graphs.accepts(one[1])]
        # Each graph reads all weights: a few tokens each of many sequences go together.
        small = sum(count < _COMPUTE_BOUND_TOKENS for _, count in fitting)
        if small <= _MAX_SMALL_GRAPHS:
            return fitting
        return [one for one in fitting if one[1] >= _COMPUTE_BOUND_TOKENS]

    def _prefill(self, seq: Sequence, count: int) -> Tensor | None:
        """Compute tokens of one sequence by a graph: logits [1, V]; None if that fails."""
        if self.prefill_graphs is None:  # it failed for another sequence of the step
            return None
        try:
            return self.prefill_graphs(seq, count)
        except Exception as error:
            self._drop_prefill_graphs(error)
            return None

    def _execute_together(self, batch: Batch) -> tuple[list[Sequence], Tensor]:
        """Compute several sequences in one row of tokens: the ready ones and their logits [R, V]."""
        # Sequences of similar length side by side are attended to together; prefill comes last.
        batch = sorted(batch, key=lambda one: (one[1] > 1, one[0].num_computed))
        chunks = [
            Chunk(seq.num_computed, n, seq.slot_mapping(seq.num_computed + n), seq.first_slot)
            for seq, n in batch
        ]
        step = plan_step(self.kv_cache, chunks, self._model.device)
        hidden = self._forward(self._embed(batch), step)
        ready, last, end = [], [], 0
        for seq, count in batch:
            end += count
            if seq.num_pending == count:
                ready.append(seq)
                last.append(end - 1)
        rows = to_device_async(torch.tensor(last, dtype=torch.long), hidden.device)
        logits: Tensor = self._model.get_output_embeddings()(hidden[rows])
        return ready, logits.to(self._model.device)

    def _forward(self, embeds: Tensor, step: StepPlan) -> Tensor:
        """Embeddings [1, N, C] to the last hidden states [N, C], through all layers."""
        if self._layers is not None:
            try:
                return self._layers(embeds, step)
            except torch.OutOfMemoryError:
                raise
            except Exception as error:
                if not isinstance(self._layers, FusedLlama):
                    raise
                self.decode_graphs = self.prefill_graphs = None
                self._select_eager()
                self._warn("the fused kernels are not used any more", error)
            return self._forward(embeds, step)
        decoder = self._model.get_decoder()
        with paged(decoder):
            output = decoder(
                inputs_embeds=embeds,
                position_ids=step.positions,
                use_cache=True,
                step_plan=step,
                **{CACHE_ARGUMENT: StepCache(self.kv_cache, step.slot_mapping)},
            )
        hidden: Tensor = output.last_hidden_state[0]
        return hidden

    def _embed(self, batch: Batch) -> Tensor:
        """[1, N, C] of the step's tokens, with image features at the positions of their tokens."""
        ids: list[int] = []
        at: list[int] = []
        features: list[Tensor] = []
        for seq, count in batch:
            start, end = seq.num_computed, seq.num_computed + count
            first, last = seq.image_range(start, end)
            if last > first:
                assert seq.image_features is not None, "features are computed before the step"
                at += [len(ids) + position - start for position in seq.image_positions[first:last]]
                features.append(seq.image_features[first:last])
            ids += seq.ids(start, end)
        tokens = to_device_async(torch.tensor([ids]), self._model.device)
        embeds: Tensor = self._model.get_input_embeddings()(tokens)
        if at:
            rows = to_device_async(torch.tensor(at), embeds.device)
            embeds[0].index_copy_(0, rows, torch.cat(features).to(embeds))
        return embeds

    def _select_eager(self) -> None:
        decoder = self._model.get_decoder()
        self._layers: EagerLlama | FusedLlama | None = None
        if EagerLlama.supports(decoder):
            self._layers = EagerLlama(decoder)

    def _select_fused(self) -> None:
        device, kv_cache = self._model.device, self.kv_cache
        kernels = for_device(device)
        if device.type == "cuda" and not kernels.CAPTURABLE:
            return
        text_config: Any = self._model.config.get_text_config()
        max_positions = min(text_config.max_position_embeddings, kv_cache.num_slots)
        llama = FusedLlama(self._model, kernels, kv_cache, max_positions)
        kv_cache.preallocate(llama.bytes_per_slot, device)
        decode = DecodeGraphs(
            llama, kv_cache, self.decode_pool, self._max_num_seqs, self._suppress_ids
        )
        self.prefill_graphs = PrefillGraphs(llama, kv_cache, self.prefill_pool)
        self.decode_graphs, self._layers = decode, llama

    def _drop_decode_graphs(self, error: Exception) -> None:
        self.decode_graphs = None
        self._drop("decode goes on without graphs", error)

    def _drop_prefill_graphs(self, error: Exception) -> None:
        self.prefill_graphs = None
        self._drop("prefill goes on without graphs", error)

    def _drop(self, what: str, error: Exception) -> None:
        if isinstance(error, torch.OutOfMemoryError):
            self._out_of_memory = True
        else:
            self._warn(what, error)

    def _warn(self, what: str, error: Exception) -> None:
        self.fallback = f"{what}: {type(error).__name__}: {error}"
        warnings.warn(self.fallback, stacklevel=2)
