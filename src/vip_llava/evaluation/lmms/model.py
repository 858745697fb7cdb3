"""Any model that `vip_llava.load` opens, as a model of lmms-eval: `--model vip_llava`.

Its requests run together in the engine and answer as they would alone. Imported by lmms-eval only.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from lmms_eval.api.model import lmms

from vip_llava.assistant import Assistant, load
from vip_llava.errors import RequestError, VipLlavaError
from vip_llava.evaluation.asking import ask_each
from vip_llava.evaluation.lmms.messages import request_of, sampling_of

__all__ = ["VipLlavaForLmmsEval"]


class VipLlavaForLmmsEval(lmms):  # type: ignore[misc]
    """`--model_args pretrained=NAME,device=cuda,dtype=bfloat16 --batch_size 32`."""

    is_simple = False

    def __init__(
        self,
        pretrained: str | None = None,
        batch_size: int | str = 8,
        device: str | None = None,
        dtype: str = "auto",
        base: str | None = None,
        vision_tower: str | None = None,
        revision: str | None = None,
        quantization: str | None = None,
        template: str | None = None,
        image_aspect_ratio: str | None = None,
        **others: Any,
    ) -> None:
        """pretrained: as for `load`; the default model without it. Unknown arguments are a TypeError."""
        super().__init__()
        # lmms-eval adds these by itself; they have no meaning here.
        unknown = set(others) - {"max_batch_size", "system_prompt"}
        if unknown:
            raise TypeError(f"vip_llava has no argument {sorted(unknown)[0]!r}")
        self.batch_size = int(batch_size)
        self.assistant: Assistant = load(
            pretrained or None,
            device=device,
            dtype=dtype,
            base=base,
            vision_tower=vision_tower,
            revision=revision,
            quantization=quantization,
            template=template,
            image_aspect_ratio=image_aspect_ratio,
        )

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """The answers of lmms-eval's instances, in their order.

        An instance holds (context, messages of a document, settings, document, task, split).
        """
        makes = [partial(self._request, instance.args) for instance in requests]
        found = ask_each(self.assistant, makes, batch_size=self.batch_size, sampling={})
        answers = []
        for place, asked in found:
            if isinstance(asked.answer, VipLlavaError):
                _, _, _, number, task, _ = requests[place].args
                raise RequestError(f"{task}, document {number}: {asked.answer}") from asked.answer
            answers.append(asked.answer.text)
        return answers

    def _request(self, args: Sequence[Any]) -> dict[str, Any]:
        """A document's request; its images are opened when its turn comes."""
        _, messages, settings, number, task, split = args
        request = request_of(_plain(messages(self.task_dict[task][split][number])))
        return {**_as_mapping(request), **sampling_of(settings)}

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        raise NotImplementedError("vip_llava answers in text; choose tasks of type generate_until")

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        raise NotImplementedError("vip_llava has no tasks of several rounds yet")


def _plain(messages: Sequence[Any]) -> list[dict[str, Any]]:
    return [each if isinstance(each, dict) else each.model_dump() for each in messages]


def _as_mapping(request: Any) -> dict[str, Any]:
    kept = {"question": request.question, "history": request.history}
    if request.images:
        return {**kept, "images": request.images}
    return {**kept, "image": request.image}
