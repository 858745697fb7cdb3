"""`load()` gives an `Assistant`, which answers questions about images and their regions.

It joins request preparation and a backend, and decides nothing that they decide.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from vip_llava.answer import Answer, Timing, Usage
from vip_llava.backends.base import Backend, ModelInfo, TokenLogprob
from vip_llava.chat import Chat
from vip_llava.errors import RequestError
from vip_llava.prompting.prepare import Prepared, Request, Sampling, as_request, naming
from vip_llava.prompting.turns import MarkedImage, Turn
from vip_llava.sampling_params import SamplingParams

if TYPE_CHECKING:
    import torch

    from vip_llava.prompting.prepare import AskedImage, TurnLike
    from vip_llava.prompting.turns import RegionLike

__all__ = [
    "Answer",
    "AnswerStream",
    "Assistant",
    "Backend",
    "Chat",
    "MarkedImage",
    "ModelInfo",
    "PendingAnswer",
    "Request",
    "Timing",
    "TokenLogprob",
    "Turn",
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
    """Open a model; without a name the small one that ships with the package.

    Args:
        name_or_folder: a folder in the Hugging Face or the original's layout (projector-only and
            LoRA folders need `base`), or a name on the hub, with `revision` a commit or branch.
        dtype: "auto" (float32 on a CPU, bfloat16 elsewhere), a name or a torch dtype. On a CPU
            "auto" stores the default model's linear weights as float16, which is faster.
        device, device_map: where the model goes; by default the best available device.
        quantization: "8bit" or "4bit".
        merge_adapter: merge a LoRA into the weights.
        template, image_aspect_ratio, vision_tower: override what the checkpoint says;
            `image_aspect_ratio` is "pad", "square" or "resize".
        progress: called as `progress(stage, done, total)`.

    Raises:
        CheckpointError, QuantizationError or DownloadError.
    """
    from vip_llava.backends.native import NativeBackend
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
    return Assistant(NativeBackend(model, processor, name=str(name_or_folder or "default")))


class Assistant:
    """A loaded model that answers questions about images and their regions.

    Several threads may ask at once; the backend batches their requests. Batched answers equal single
    ones: in float32, up to near-ties in half precision.
    """

    def __init__(self, backend: Backend) -> None:
        self.backend = backend

    @property
    def info(self) -> ModelInfo:
        """What was loaded."""
        return self.backend.info

    def ask(
        self,
        image: AskedImage,
        question: str,
        regions: Sequence[RegionLike] | RegionLike = (),
        *,
        history: Sequence[TurnLike] = (),
        **sampling: Unpack[Sampling],
    ) -> Answer:
        """Ask one question about an image and regions of it.

        image: path, bytes, PIL image, numpy array [H, W, 3], data URL, `MarkedImage`, or None.
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
        image: AskedImage,
        question: str,
        regions: Sequence[RegionLike] | RegionLike = (),
        *,
        history: Sequence[TurnLike] = (),
        **sampling: Unpack[Sampling],
    ) -> AnswerStream:
        """As `ask`, yielding pieces of text as they are generated; `.answer` is complete at the end.

        The request is checked here; generation begins with the first piece.
        """
        request = Request(image=image, question=question, regions=regions, history=history)
        return AnswerStream(self.backend, self.backend.prepare(request, _params(sampling)))

    def ask_many(
        self,
        requests: Sequence[Request | Mapping[str, Any]],
        *,
        batch_size: int = 8,
        on_answer: Callable[[int, Answer], None] | None = None,
        **sampling: Unpack[Sampling],
    ) -> list[Answer]:
        """Answer many requests in batches; answers are in request order and equal single ones.

        requests: `Request`s or mappings `dict(image=..., question=..., regions=...)`, which may
            hold sampling parameters of their own.
        batch_size: how many run at once; as one ends the next begins. Memory grows with it, and so
            does speed on a GPU.
        on_answer: called with (index, answer) as soon as an answer is complete; the longest prompts
            run first.
        All requests are checked before the first one runs; an error names the request's index.
        Every answer keeps its drawn images: split very long lists.
        """
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
            raise RequestError(f"batch_size: must be an integer of at least 1, not {batch_size!r}")
        params = _params(sampling)
        prepared: dict[int, Prepared] = {}
        for index, request in enumerate(requests):
            with naming(index):
                prepared[index] = self.backend.prepare(as_request(request, params), params)
        # The longest first, so that what is too much for the memory fails at the beginning.
        order = sorted(prepared, key=lambda i: (-len(prepared[i].input_ids), i))
        answers: dict[int, Answer] = {}
        with closing(self._run(prepared, order, batch_size)) as ended:
            for index, answer in ended:
                answers[index] = answer
                if on_answer is not None:
                    on_answer(index, answer)
        return [answers[index] for index in range(len(answers))]

    def chat(
        self,
        image: AskedImage = None,
        regions: Sequence[RegionLike] | RegionLike = (),
        *,
        history: Sequence[TurnLike] = (),
    ) -> Chat:
        """A conversation of several turns about one image; regions may be added on the way."""
        return Chat(self, image, regions, history)

    def prepare(
        self, request: Request | Mapping[str, Any], **sampling: Unpack[Sampling]
    ) -> Prepared:
        """Open, draw, word and tokenize a request without generating anything.

        Servers do this in threads of their own, then `submit`. Raises what `ask` raises.
        """
        params = _params(sampling)
        return self.backend.prepare(as_request(request, params), params)

    def submit(
        self, prepared: Prepared, on_event: Callable[[Any], None] | None = None
    ) -> PendingAnswer:
        """Queue a prepared request. It runs while a caller waits for any answer, or in the engine's
        own thread.

        Args:
            on_event: called for each token by the thread that runs the engine; must not block.
        """
        return PendingAnswer(self.backend, prepared, on_event)

    def _run(
        self, prepared: dict[int, Prepared], order: Sequence[int], together: int
    ) -> Generator[tuple[int, Answer]]:
        """The answers with their indices as they complete; at most `together` run at once.

        Takes each request out of `prepared` when it is submitted, so that its pixels can go.
        """
        begin = iter(order)
        running: dict[int, PendingAnswer] = {}
        try:
            while True:
                for index in islice(begin, together - len(running)):
                    with naming(index):
                        running[index] = self.submit(prepared.pop(index))
                if not running:
                    return
                self.backend.wait_any([asked.completion for asked in running.values()])
                for index in [i for i, asked in running.items() if asked.done]:
                    with naming(index):
                        answer = running.pop(index).answer()
                    yield index, answer
        finally:
            for asked in running.values():
                asked.cancel()


class AnswerStream(Iterator[str]):
    """Pieces of an answer as they come; joined they are `answer.text`.

    Leave early with `close()` or at the end of a `with` block.
    """

    def __init__(self, backend: Backend, prepared: Prepared) -> None:
        self.prepared = prepared
        self._backend = backend
        self._answer: Answer | None = None
        self._pieces = self._run()
        self.on_end: Callable[[Answer], None] | None = None

    def _run(self) -> Generator[str, None, None]:
        pending = PendingAnswer(self._backend, self.prepared)
        try:
            yield from pending.completion
        finally:
            pending.cancel()
        self._answer = pending.answer()
        if self.on_end is not None:
            self.on_end(self._answer)

    def __next__(self) -> str:
        return next(self._pieces)

    @property
    def answer(self) -> Answer:
        """The whole answer. Raises RuntimeError before the last piece was taken."""
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


class PendingAnswer:
    """A request that was submitted; `Assistant.submit` makes it."""

    def __init__(
        self,
        backend: Backend,
        prepared: Prepared,
        on_event: Callable[[Any], None] | None = None,
    ) -> None:
        self.completion = backend.submit(prepared, on_event)
        # The backend has the pixels now and drops them once they are encoded.
        self._prepared = replace(prepared, pixel_values=None)

    @property
    def done(self) -> bool:
        """Whether it has ended: complete, failed or cancelled."""
        return self.completion.done

    def cancel(self) -> None:
        """Stop generating. Does nothing once the answer is complete."""
        self.completion.cancel()

    def answer(self) -> Answer:
        """Wait for the answer. Raises the error that ended it; RequestError if it was cancelled."""
        prepared, completion = self._prepared, self.completion.result()
        return Answer(
            text=completion.text,
            images=prepared.images,
            prompt=prepared.prompt,
            usage=Usage(
                completion.prompt_tokens, prepared.image_tokens, completion.completion_tokens
            ),
            timing=Timing(
                open=prepared.open_seconds,
                draw=prepared.draw_seconds,
                preprocess=prepared.encode_seconds,
                prefill=completion.prefill_seconds,
                decode=completion.decode_seconds,
            ),
            notes=prepared.notes + completion.notes,
            finish_reason=completion.finish_reason,
            seed=completion.seed,
            logprobs=completion.logprobs,
        )


def _params(sampling: Sampling) -> SamplingParams:
    """The keywords as one checked value; an unknown keyword is a TypeError as for any function."""
    return SamplingParams(**sampling)  # type: ignore[arg-type]
