"""One step of the model: tokens of several requests in, logits of those that are ready out.

The language model is called unpatched on one row of tokens without padding, or layer by layer where
`paths` knows how, or as a recorded step for each prompt (`prompts`); images enter as features where their tokens stand, and logits are made only where a
token will be chosen.

This module knows transformers' models. It decides nothing: who runs is the scheduler's matter.
Shape letters: N tokens of the step, R requests ready for their next token, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from vip_llava.engine.attention import Piece, StepPlan, paged, plan
from vip_llava.engine.block_manager import KVMemory, StepCache
from vip_llava.engine.device_transfer import sent
from vip_llava.engine.runner_selection import Paths
from vip_llava.engine.scheduler import Row
from vip_llava.models.cache_argument import CACHE_ARGUMENT

__all__ = ["Runner"]

_ENOUGH = 256
"""Tokens with which a step's arithmetic takes longer than reading the weights."""
_FEW = 4
"""Recorded steps that don't take longer than launching an ordinary one."""


class Runner:
    """The language model of a LLaVA with its KV memory."""

    def __init__(
        self, model: PreTrainedModel, memory: KVMemory, paths: Paths | None = None
    ) -> None:
        """Without `paths` the model itself is called."""
        self._model: Any = model
        self._memory = memory
        self._paths = paths

    def __call__(self, chosen: Sequence[tuple[Row, int]]) -> tuple[list[Row], Tensor]:
        """Feed so many tokens of each request; the ready ones and their logits [R, V].

        Feeding the same again does no harm. The rows themselves are left as they are.
        """
        ready: list[Row] = []
        parts: list[Tensor] = []
        rest = list(chosen)
        for row, count in self._recordable(chosen):
            logits = self._recorded(row, count)
            if logits is None:
                continue
            rest.remove((row, count))
            if row.pending == count:
                ready.append(row)
                # The next recording writes over them.
                parts.append(logits.clone() if len(chosen) > 1 else logits)
        if rest:
            others, logits = self._together(rest)
            ready += others
            parts.append(logits)
        if not parts:  # pieces from the middle of prompts
            return ready, torch.empty((0, 0), device=self._model.device)
        return ready, parts[0] if len(parts) == 1 else torch.cat(parts)

    def _recordable(self, chosen: Sequence[tuple[Row, int]]) -> list[tuple[Row, int]]:
        """Those that a recorded step each would serve best, if there are such steps."""
        prompts = None if self._paths is None else self._paths.prompts
        if prompts is None:
            return []
        alone = [one for one in chosen if one[1] > 1 and prompts.ready(one[1])]
        # Whatever is fed, all weights are read: a few tokens each of many requests go together.
        few = sum(count < _ENOUGH for _, count in alone) <= _FEW
        return alone if few else [one for one in alone if one[1] >= _ENOUGH]

    def _recorded(self, row: Row, count: int) -> Tensor | None:
        """Feed one request by a recorded step: logits [1, V]; None where that is not possible."""
        assert self._paths is not None
        if self._paths.prompts is None:  # another has just failed
            return None
        try:
            return self._paths.prompts(row, count)
        except Exception as error:
            self._paths.close_prompts(error)
            return None

    def _together(self, chosen: Sequence[tuple[Row, int]]) -> tuple[list[Row], Tensor]:
        """Feed several requests in one row of tokens: the ready ones and their logits [R, V]."""
        # Alike lengths side by side are attended to together; prompts come behind the answers.
        order = sorted(chosen, key=lambda one: (one[1] > 1, one[0].stored))
        pieces = [Piece(row.stored, count, row.places, row.first_place) for row, count in order]
        step = plan(self._memory, pieces, self._model.device)
        hidden = self._decode(self._embed(order), step)
        ready, last, end = [], [], 0
        for row, count in order:
            end += count
            if row.pending == count:
                ready.append(row)
                last.append(end - 1)
        head = self._model.get_output_embeddings()
        logits: Tensor = head(hidden[sent(torch.tensor(last, dtype=torch.long), hidden.device)])
        return ready, logits.to(self._model.device)

    def _decode(self, embeds: Tensor, step: StepPlan) -> Tensor:
        """Embeddings [1, N, C] to the last hidden states [N, C], through all layers."""
        paths = self._paths
        if paths is not None and paths.layers is not None:
            try:
                return paths.layers(embeds, step)
            except Exception as error:
                # Feeding the same again does no harm.
                if not paths.close_fused(error):
                    raise
            return self._decode(embeds, step)
        decoder = self._model.get_decoder()
        with paged(decoder):
            output = decoder(
                inputs_embeds=embeds,
                position_ids=step.positions,
                use_cache=True,
                step_plan=step,
                **{CACHE_ARGUMENT: StepCache(self._memory, step.places)},
            )
        hidden: Tensor = output.last_hidden_state[0]
        return hidden

    def _embed(self, order: Sequence[tuple[Row, int]]) -> Tensor:
        """[1, N, C] of the next tokens of each request, with image features in their places."""
        ids: list[int] = []
        at: list[int] = []
        features: list[Tensor] = []
        for row, count in order:
            start, end = row.stored, row.stored + count
            first, last = row.images(start, end)
            if last > first:
                assert row.features is not None, "features are fetched before the step"
                at += [len(ids) + place - start for place in row.image_at[first:last]]
                features.append(row.features[first:last])
            ids += row.ids(start, end)
        device = self._model.device
        embeds: Tensor = self._model.get_input_embeddings()(sent(torch.tensor([ids]), device))
        if at:
            places = sent(torch.tensor(at), embeds.device)
            embeds[0].index_copy_(0, places, torch.cat(features).to(embeds))
        return embeds
