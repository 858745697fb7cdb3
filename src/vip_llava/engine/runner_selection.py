"""Which way the language model is called: recorded and fused, layer by layer, or as it is.

That is found out whenever requests come in, since layers may have been replaced or hooked into and
weights moved. What is not exactly known goes the ordinary way: correct first.

This module chooses; it runs nothing.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from vip_llava.engine.attention import StepPlan
from vip_llava.engine.block_manager import KVMemory
from vip_llava.engine.decode_graphs import DecodeStep
from vip_llava.engine.eager_runner import LeanLlama
from vip_llava.engine.fused_runner import FusedLlama
from vip_llava.engine.graph_pool import Recorder
from vip_llava.engine.prefill_graphs import PromptStep
from vip_llava.kernels import for_device

__all__ = ["Paths", "records"]


def records(captured: bool | None, device: torch.device) -> bool:
    """Whether steps are recorded on a device, given the setting."""
    return device.type == "cuda" if captured is None else captured


class Paths:
    """The ways through one model's language part that are open now."""

    def __init__(
        self,
        model: PreTrainedModel,
        memory: KVMemory,
        *,
        captured: bool,
        most: int,
        banned: Collection[int],
    ) -> None:
        """most: requests answered at the same time. banned: ids that are never chosen."""
        self._model: Any = model
        self._memory = memory
        self._captured = captured
        self._most, self._banned = most, banned
        # Of their own, because a step of answers is read after prompts have been started.
        self.recorder, self.prompt_recorder = Recorder(model.device), Recorder(model.device)
        self.layers: Callable[[Tensor, StepPlan], Tensor] | None = None
        """Embeddings [1, N, C] of a step to hidden states [N, C]; None: ask the model itself."""
        self.decode: DecodeStep | None = None
        """For requests with one new token each; None: they go like all others."""
        self.prompts: PromptStep | None = None
        """For the prompt of one request, or what is new of it; None: it goes like all others."""
        self.looked = False
        """Whether what is open now is known to be right; if not, `look` before the next request."""
        self.closed = ""
        """Why a faster way was closed that had been open."""
        self._identity: tuple[int, ...] = ()

    def look(self) -> None:
        """Find out what may be used from now on."""
        self.looked = True
        if self._captured and FusedLlama.fits(self._model):
            identity = FusedLlama.identity(self._model)
            if identity != self._identity:
                self._open(identity)
            return
        self._open_lean()
        self.decode = self.prompts = None
        self._identity = ()

    def close_recorded(self, error: BaseException) -> None:
        """A recorded step failed: do without. Where memory was short it may be tried again."""
        self.decode = None
        self._close("answers go on without recorded steps", error)

    def close_prompts(self, error: BaseException) -> None:
        """The same for prompts."""
        self.prompts = None
        self._close("prompts are read without recorded steps", error)

    def _close(self, what: str, error: BaseException) -> None:
        self.looked = False
        if isinstance(error, torch.OutOfMemoryError):
            self._identity = ()
        else:
            self._tell(what, error)

    def close_fused(self, error: BaseException) -> bool:
        """The layers failed; whether there is another way to call them, which is open now."""
        if not isinstance(self.layers, FusedLlama) or isinstance(error, torch.OutOfMemoryError):
            return False
        self.decode = self.prompts = None
        self._open_lean()
        self._tell("the fused kernels are not used any more", error)
        return True

    def _open(self, identity: tuple[int, ...]) -> None:
        self.decode = self.prompts = None  # their memory may be used for the new ones
        self._open_lean()
        self._identity = identity
        try:
            self._open_fused()
        except torch.OutOfMemoryError:
            self._identity = ()
        except Exception as error:
            self._tell("the fused kernels are not used", error)

    def _open_fused(self) -> None:
        device = self._model.device
        self.recorder = Recorder(device, self.recorder)
        self.prompt_recorder = Recorder(device, self.prompt_recorder)
        kernels = for_device(device)
        if device.type == "cuda" and not kernels.CAPTURABLE:
            return
        text: Any = self._model.config.get_text_config()
        positions = min(text.max_position_embeddings, self._memory.places)
        fused = FusedLlama(self._model, kernels, self._memory, positions)
        self._memory.claim(fused.bytes_per_place, device)
        self.layers = fused
        self.decode = DecodeStep(
            fused,
            self._memory,
            self.recorder,
            most=self._most,
            positions=positions,
            banned=self._banned,
        )
        self.prompts = PromptStep(fused, self._memory, self.prompt_recorder, positions=positions)

    def _open_lean(self) -> None:
        decoder = self._model.get_decoder()
        self.layers = LeanLlama(decoder) if LeanLlama.fits(decoder) else None

    def _tell(self, what: str, error: BaseException) -> None:
        self.closed = f"{what}: {type(error).__name__}: {error}"
        warnings.warn(self.closed, stacklevel=2)
