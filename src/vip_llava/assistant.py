"""The one way in: `load()` gives an `Assistant` that answers about images and their regions.

It puts the parts together - request, processor, engine - and decides nothing that they decide.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, Unpack

from vip_llava.answer import Answer, DrawnImage, Timing, TokenLogprob, Usage
from vip_llava.chat import Chat
from vip_llava.engine import Engine, EngineSettings, Generated
from vip_llava.errors import RequestError
from vip_llava.prompting.prepare import Prepared, Request, Sampling, Shown, as_request, naming
from vip_llava.sampling_params import SamplingParams

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from vip_llava.engine import Handle, TokenEvent
    from vip_llava.prompting.prepare import ImageInput, MessageLike, RegionLike
    from vip_llava.prompting.processor import Processor

__all__ = [
    "Answer",
    "AnswerStream",
    "Assistant",
    "Chat",
    "DrawnImage",
    "ModelInfo",
    "Pending",
    "Request",
    "Shown",
    "Timing",
    "TokenLogprob",
    "Usage",
    "load",
]


def load(
    name_or_folder: str | Path | None = None,
    *,
    base: str | Path | None = None,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device | None = None,
    device_map: str | dict[str, Any] | None = None,
    quantization: str | int | None = None,
    merge_adapter: bool = True,
    template: str | None = None,
    image_aspect_ratio: str | None = None,
    progress: Callable[[str, int, int], None] | None = None,
    vision_tower: str | Path | None = None,
    revision: str | None = None,
) -> Assistant:
    """Open a model; without a name the small one that ships with the project.

    name_or_folder: a folder in the Hugging Face or the original's layout (also projector-only or
        LoRA, then with `base`), or a name on the hub, of which `revision` is a commit.
    dtype: "auto" (float32 on a CPU, bfloat16 elsewhere), a name or a torch dtype. On a CPU "auto"
        keeps the default model's weights in 16 bits (`model.half`), which is faster.
    device or device_map: where to; the best device by default. quantization: "8bit" or "4bit".
    merge_adapter: fold a LoRA into the weights. template, image_aspect_ratio ("pad", "square",
        "resize") and vision_tower replace what the checkpoint says.
    progress: called as `progress(stage, done, total)`.
    Raises CheckpointError, QuantizationError or DownloadError.
    """
    from vip_llava.models.loading import load_model

    model, processor = load_model(
        name_or_folder,
        base=base,
        dtype=dtype,
        device=device,
        device_map=device_map,
        quantization=quantization,
        merge_adapter=merge_adapter,
        template=template,
        image_aspect_ratio=image_aspect_ratio,
        progress=progress,
        vision_tower=vision_tower,
        revision=revision,
    )
    return Assistant(model, processor, name=str(name_or_folder or "default"))


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


class Assistant:
    """A loaded model that answers. `model` and `processor` may be used directly; `info` describes.

    Several threads may ask at once; all requests share the steps of `engine`. Answers given together
    equal single answers: in float32, up to near-ties in half precision.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        processor: Processor,
        *,
        name: str = "",
        settings: EngineSettings | None = None,
    ) -> None:
        """`settings`: how much the engine may hold and do at once."""
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
            # A model can't show an image, so it never says the token that stands for one.
            suppress_ids={processor.image_token_id},
            settings=settings,
        )

    def ask(
        self,
        image: ImageInput,
        question: str,
        regions: Sequence[RegionLike] | RegionLike = (),
        *,
        history: Sequence[MessageLike] = (),
        **sampling: Unpack[Sampling],
    ) -> Answer:
        """Ask one question about an image and regions of it.

        image: path, bytes, PIL image, numpy array [H, W, 3], data address, or None.
        question: `<region:1>` stands for the region with that id (by default "1", "2", ... in
            order) and is worded as the model was trained: "within the red rectangle".
        regions: Region objects (`Box(...)`, ...) or their JSON objects; drawn on the image.
        sampling: max_new_tokens=512, temperature=0.0, top_p, top_k, min_p, repetition_penalty,
            seed, stop, logprobs; see `vip_llava.sampling_params.SamplingParams`.
        Raises RequestError, ImageError, RegionError or PhraseError for what was given.
        """
        return self.stream(image, question, regions, history=history, **sampling).result()

    def stream(
        self,
        image: ImageInput,
        question: str,
        regions: Sequence[RegionLike] | RegionLike = (),
        *,
        history: Sequence[MessageLike] = (),
        **sampling: Unpack[Sampling],
    ) -> AnswerStream:
        """As `ask`, giving pieces of text as they come; `.answer` has the rest at the end.

        What was given is checked here, at once; generation begins with the first piece.
        """
        request = Request(image=image, question=question, regions=regions, history=history)
        return AnswerStream(self, self._prepare(request, _params(sampling)))

    def ask_many(
        self,
        requests: Sequence[Request | Mapping[str, Any]],
        *,
        batch_size: int = 8,
        on_answer: Callable[[int, Answer], None] | None = None,
        **sampling: Unpack[Sampling],
    ) -> list[Answer]:
        """Answer many requests together; the answers are in their order and equal single ones.

        requests: `Request`s or mappings `dict(image=..., question=..., regions=...)`, which may
            hold sampling parameters of their own.
        batch_size: how many run together, as far as the engine's settings allow; as one ends the
            next begins. Memory grows with it, and so does speed on a GPU.
        on_answer: called with (index, answer) as soon as one is done; longest prompts begin.
        All requests are checked before the first one runs; the error names the request's index.
        Every answer keeps its drawn image: split very long lists.
        """
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
            raise RequestError(f"batch_size: {batch_size!r}; allowed are whole numbers from 1")
        params = _params(sampling)
        prepared = []
        for index, request in enumerate(requests):
            with naming(index):
                prepared.append(self._prepare(as_request(request, params), params))
        # The longest first, so that what is too much for the memory fails at the beginning.
        order = sorted(range(len(prepared)), key=lambda i: (-prepared[i].prompt_tokens, i))
        answers: dict[int, Answer] = {}
        with closing(self._run(prepared, order, batch_size)) as ended:
            for index, answer in ended:
                answers[index] = answer
                if on_answer is not None:
                    on_answer(index, answer)
        return [answers[index] for index in range(len(answers))]

    def chat(
        self,
        image: ImageInput = None,
        regions: Sequence[RegionLike] | RegionLike = (),
        *,
        history: Sequence[MessageLike] = (),
    ) -> Chat:
        """A conversation of several turns about one image; regions may be added on the way."""
        return Chat(self, image, regions, history)

    def prepare(
        self, request: Request | Mapping[str, Any], **sampling: Unpack[Sampling]
    ) -> Prepared:
        """Everything up to the prompt, checked: opens, draws and words. Needs no engine.

        Raises what `ask` raises. For servers, which do this in threads of their own.
        """
        params = _params(sampling)
        return self._prepare(as_request(request, params), params)

    def submit(
        self, prepared: Prepared, on_event: Callable[[TokenEvent], None] | None = None
    ) -> Pending:
        """Queue a prepared request; it runs when somebody waits, or by the thread of `engine.start`.

        on_event: called for each token by the thread that makes the steps; must not wait.
        """
        return Pending(self, prepared, on_event)

    def _prepare(self, request: Request, params: SamplingParams) -> Prepared:
        prepared = Prepared.of(request, self.processor, params)
        self.engine.room(prepared.prompt_tokens)
        return prepared

    def _run(
        self, prepared: Sequence[Prepared], order: Sequence[int], together: int
    ) -> Generator[tuple[int, Answer]]:
        """The answers with their indices as they end; at most `together` are on their way."""
        begin = iter(order)
        running: dict[int, Pending] = {}
        try:
            while True:
                for index in islice(begin, together - len(running)):
                    with naming(index):
                        running[index] = Pending(self, prepared[index])
                if not running:
                    return
                self.engine.wait_any([asked.handle for asked in running.values()])
                for index in [i for i, asked in running.items() if asked.handle.done]:
                    with naming(index):
                        answer = running.pop(index).answer()
                    yield index, answer
        finally:
            for asked in running.values():
                asked.handle.cancel()


class AnswerStream(Iterator[str]):
    """Pieces of an answer. Joined they are `answer.text`; leave early with `close()` or by `with`."""

    def __init__(self, assistant: Assistant, prepared: Prepared) -> None:
        self.prepared = prepared
        self._assistant = assistant
        self._answer: Answer | None = None
        self._pieces = self._run()
        self.on_end: Callable[[Answer], None] | None = None

    def _run(self) -> Generator[str, None, None]:
        asked = Pending(self._assistant, self.prepared)
        try:
            for event in asked.handle:
                if event.text:
                    yield event.text
        finally:
            asked.handle.cancel()
        self._answer = asked.answer()
        if self.on_end is not None:
            self.on_end(self._answer)

    def __next__(self) -> str:
        return next(self._pieces)

    @property
    def answer(self) -> Answer:
        """The whole answer; RuntimeError before the last piece has been taken."""
        if self._answer is None:
            raise RuntimeError("the answer is not complete; take all pieces first")
        return self._answer

    def result(self) -> Answer:
        """Take all remaining pieces and return the whole answer."""
        for _ in self:
            pass
        return self.answer

    def close(self) -> None:
        """Stop generating; the answer stays incomplete."""
        self._pieces.close()

    def __enter__(self) -> AnswerStream:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()


class Pending:
    """A prepared request on its way through processor and engine; `Assistant.submit` makes it."""

    def __init__(
        self,
        assistant: Assistant,
        prepared: Prepared,
        on_event: Callable[[TokenEvent], None] | None = None,
    ) -> None:
        processor = assistant.processor
        self._decode = processor.tokenizer.decode
        began = perf_counter()
        inputs = processor([prepared.conversation])
        ids: list[int] = inputs["input_ids"][0].tolist()
        self._image_tokens = ids.count(processor.image_token_id)
        self._seconds = perf_counter() - began
        self._prepared = prepared
        pixels = inputs.get("pixel_values")
        self.handle: Handle = assistant.engine.submit(
            ids, pixels, prepared.sampling, on_event=on_event
        )

    @property
    def done(self) -> bool:
        """Whether it has ended, in whatever way."""
        return self.handle.done

    def cancel(self) -> None:
        """Give it up; its memory is free before the engine's next step."""
        self.handle.cancel()

    def answer(self) -> Answer:
        """The answer; waits for it. Raises the error that ended it, RequestError if cancelled."""
        one, generated = self._prepared, self.handle.result()
        return Answer(
            text=generated.text,
            images=tuple(DrawnImage(each.image, each.regions) for each in one.conversation.drawn),
            prompt=one.prompt,
            usage=Usage(generated.prompt_tokens, self._image_tokens, len(generated.tokens)),
            timing=Timing(
                open=one.open_seconds,
                draw=one.draw_seconds,
                preprocess=one.encode_seconds + self._seconds,
                prefill=generated.prefill_seconds,
                decode=generated.decode_seconds,
            ),
            notes=one.notes + _shortened(generated, one.sampling.max_new_tokens),
            finish_reason=generated.finish_reason,
            seed=generated.seed,
            logprobs=self._logprobs(generated),
        )

    def _logprobs(self, generated: Generated) -> tuple[TokenLogprob, ...] | None:
        if generated.logprobs is None:
            return None
        told = []
        for token, about in zip(generated.tokens, generated.logprobs, strict=True):
            best = tuple(
                TokenLogprob(other, self._decode([other]), value) for other, value in about.best
            )
            told.append(TokenLogprob(token, self._decode([token]), about.chosen, best))
        return tuple(told)


def _shortened(generated: Generated, asked: int) -> tuple[str, ...]:
    """A note where the answer had to end before the limit that was asked for."""
    if generated.finish_reason != "length" or generated.max_new_tokens >= asked:
        return ()
    return (
        f"the answer was ended after {generated.max_new_tokens} tokens, not {asked}: "
        f"the model holds no more positions, or the engine no more memory",
    )


def _params(sampling: Sampling) -> SamplingParams:
    """The keywords as one checked value; an unknown keyword is a TypeError as for any function."""
    return SamplingParams(**sampling)  # type: ignore[arg-type]
