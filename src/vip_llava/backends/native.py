"""The native backend: models of the LLaVA family on the package's own engine.

It prepares requests with the model's processor and submits their ids and pixels to the engine. It
does not know answers, chats or HTTP.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vip_llava.engine import Engine, EngineSettings, Handle
from vip_llava.prompting.prepare import Prepared, Request, prepare

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from vip_llava.engine import TokenEvent
    from vip_llava.prompting.processor import Processor
    from vip_llava.sampling_params import SamplingParams

__all__ = ["ModelInfo", "NativeBackend"]


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What was loaded."""

    name: str
    architecture: str
    parameters: int
    dtype: str
    device: str
    template: str
    tokens_per_view: int
    """Tokens that one view of an image takes in the prompt."""
    max_positions: int | None
    """Prompt and answer together hold at most this many tokens; None: not known."""


class NativeBackend:
    """A model, its processor, and the engine that runs it. Methods may be called by any thread."""

    def __init__(
        self,
        model: PreTrainedModel,
        processor: Processor,
        *,
        name: str = "",
        settings: EngineSettings | None = None,
    ) -> None:
        """`settings`: the limits of the engine (KV cache, batch size)."""
        self.model: PreTrainedModel = model.eval()  # type: ignore[no-untyped-call]
        self.processor = processor
        text = model.config.get_text_config()
        self.info = ModelInfo(
            name=name,
            architecture=type(model).__name__,
            parameters=model.num_parameters()
            + sum(getattr(part, "hidden_parameters", 0) for part in model.modules()),
            dtype=str(model.dtype).removeprefix("torch."),
            device=str(model.device),
            template=processor.template.name,
            tokens_per_view=processor.tokens_per_view,
            max_positions=getattr(text, "max_position_embeddings", None),
        )
        self.engine = Engine(
            model,
            image_token_id=processor.image_token_id,
            stop_ids=processor.stop_ids,
            decode=processor.tokenizer.decode,
            stop_strings=processor.stop_strings,
            trim=True,
            # The model can't show an image, so it must not generate the token that stands for one.
            suppress_ids={processor.image_token_id},
            settings=settings,
        )

    def prepare(self, request: Request, sampling: SamplingParams) -> Prepared:
        """Open, draw, word and tokenize a request, and check that an answer still fits.

        Raises:
            RequestError, ImageError, RegionError or PhraseError: what is wrong with the request.
        """
        prepared = prepare(request, self.processor, sampling)
        self.engine.room(len(prepared.input_ids))
        return prepared

    def submit(
        self, prepared: Prepared, on_event: Callable[[TokenEvent], None] | None = None
    ) -> Handle:
        """Queue a prepared request. `on_event` is called by the engine's thread and must not block."""
        return self.engine.submit(
            prepared.input_ids, prepared.pixel_values, prepared.sampling, on_event=on_event
        )

    def wait_any(self, handles: Sequence[Handle]) -> None:
        """Return once at least one of these requests is done."""
        self.engine.wait_any(handles)

    def decode(self, token: int) -> str:
        """The text of one token."""
        return self.processor.tokenizer.decode([token])
