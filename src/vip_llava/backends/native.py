"""The native backend: models of the LLaVA family on the package's own engine.

It prepares requests with the model's processor and submits their ids and pixels to the engine. It
does not know answers, chats or HTTP.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from vip_llava.backends.base import Backend, Completion, ModelInfo, TokenLogprob
from vip_llava.engine import Engine, EngineConfig
from vip_llava.errors import RequestError
from vip_llava.prompting.prepare import Prepared, Request, prepare

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from vip_llava.engine import Handle, RequestOutput, TokenEvent
    from vip_llava.prompting.processor import Processor
    from vip_llava.sampling_params import SamplingParams

__all__ = ["NativeBackend", "NativeCompletion", "as_native"]


class NativeBackend:
    """A model, its processor, and the engine that runs it. Methods may be called by any thread."""

    def __init__(
        self,
        model: PreTrainedModel,
        processor: Processor,
        *,
        name: str = "",
        config: EngineConfig | None = None,
    ) -> None:
        """`config`: the limits of the engine (KV cache, batch size)."""
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
            config=config,
        )

    def prepare(self, request: Request, sampling: SamplingParams) -> Prepared:
        """Open, draw, word and tokenize a request, and check that an answer still fits.

        Raises:
            RequestError, ImageError, RegionError or PhraseError: what is wrong with the request.
        """
        prepared = prepare(request, sampling, self.processor)
        self.engine.room(len(prepared.input_ids))
        return prepared

    def submit(
        self, prepared: Prepared, on_event: Callable[[TokenEvent], None] | None = None
    ) -> NativeCompletion:
        """Queue a prepared request. `on_event` is called by the engine's thread; must not block."""
        handle = self.engine.submit(
            prepared.input_ids, prepared.pixel_values, prepared.sampling, on_event=on_event
        )
        return NativeCompletion(handle, self.decode, prepared.sampling.max_new_tokens)

    def wait_any(self, pending: Sequence[NativeCompletion]) -> None:
        """Return once at least one of these requests is done."""
        self.engine.wait_any([each.handle for each in pending])

    def decode(self, token: int) -> str:
        """The text of one token."""
        return self.processor.tokenizer.decode([token])


class NativeCompletion:
    """A request in the engine; `handle` is the engine's own."""

    def __init__(self, handle: Handle, decode: Callable[[int], str], max_new_tokens: int) -> None:
        self.handle = handle
        self._decode = decode
        self._max_new_tokens = max_new_tokens

    @property
    def done(self) -> bool:
        """Whether it has ended: complete, failed or cancelled."""
        return self.handle.done

    def __iter__(self) -> Iterator[str]:
        return (event.text for event in self.handle if event.text)

    def cancel(self) -> None:
        """Stop generating; its KV cache is free before the engine's next step."""
        self.handle.cancel()

    def result(self) -> Completion:
        """Wait for the end. Raises the error that ended it; RequestError if it was cancelled."""
        generated = self.handle.result()
        return Completion(
            text=generated.text,
            finish_reason=generated.finish_reason,
            prompt_tokens=generated.prompt_tokens,
            completion_tokens=len(generated.tokens),
            seed=generated.seed,
            prefill_seconds=generated.prefill_seconds,
            decode_seconds=generated.decode_seconds,
            logprobs=self._logprobs(generated),
            notes=self._shortened(generated),
        )

    def _logprobs(self, generated: RequestOutput) -> tuple[TokenLogprob, ...] | None:
        if generated.logprobs is None:
            return None
        found = []
        for token, logprobs in zip(generated.tokens, generated.logprobs, strict=True):
            best = tuple(
                TokenLogprob(other, self._decode(other), value) for other, value in logprobs.best
            )
            found.append(TokenLogprob(token, self._decode(token), logprobs.chosen, best))
        return tuple(found)

    def _shortened(self, generated: RequestOutput) -> tuple[str, ...]:
        """A note where the answer ended before the requested limit."""
        limit = generated.max_new_tokens
        if generated.finish_reason != "length" or limit >= self._max_new_tokens:
            return ()
        return (
            f"the answer stopped after {limit} tokens instead of {self._max_new_tokens}: the model "
            "has no more positions, or the KV cache no more room",
        )


def as_native(backend: Backend) -> NativeBackend:
    """`backend` itself if it is native. Raises RequestError otherwise."""
    if not isinstance(backend, NativeBackend):
        raise RequestError(
            f"this needs a model that runs on the package's own engine, not {backend.info.name}"
        )
    return backend
