"""Any model that `vip_llava.load` opens, as a model of lmms-eval: `--model vip_llava`.

The engine batches its requests; the answers are those without batching. Only lmms-eval imports
this module.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from lmms_eval.api.model import lmms

from vip_llava.assistant import Assistant, load
from vip_llava.errors import RequestError, VipLlavaError
from vip_llava.evaluation.asking import ask_each
from vip_llava.evaluation.lmms.messages import request_of_messages, sampling_of_settings
from vip_llava.prompting.prepare import Request

__all__ = ["VipLlavaForLmmsEval"]


class VipLlavaForLmmsEval(lmms):  # type: ignore[misc]
    """`--model_args pretrained=NAME,device=cuda,dtype=bfloat16 --batch_size 32`."""

    is_simple = False

    def __init__(
        self, pretrained: str | None = None, batch_size: int | str = 8, **options: Any
    ) -> None:
        """pretrained, options: as for `load`; the default model if None.

        Raises TypeError for an unknown option.
        """
        super().__init__()
        # lmms-eval always adds these two; they have no effect.
        used = {key: options[key] for key in options.keys() - {"max_batch_size", "system_prompt"}}
        self.batch_size = int(batch_size)
        self.assistant: Assistant = load(pretrained or None, **used)

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """The answers to lmms-eval's instances, in order.

        The `args` of an instance: context, function from a document to messages, settings, number
        of the document, task, split. Raises RequestError for a document that cannot be asked.
        """
        builders = [partial(self._request, instance.args) for instance in requests]
        outcomes = ask_each(self.assistant, builders, batch_size=self.batch_size, sampling={})
        answers = []
        for index, outcome in outcomes:
            if isinstance(outcome.answer, VipLlavaError):
                _, _, _, number, task, _ = requests[index].args
                message = f"{task}, document {number}: {outcome.answer}"
                raise RequestError(message) from outcome.answer
            answers.append(outcome.answer.text)
        return answers

    def _request(self, args: Sequence[Any]) -> Request:
        """The request of a document; its images are opened here."""
        _, messages, settings, number, task, split = args
        found = messages(self.task_dict[task][split][number])
        plain = [each if isinstance(each, dict) else each.model_dump() for each in found]
        return request_of_messages(plain, sampling_of_settings(settings))

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        raise NotImplementedError("vip_llava supports tasks of type generate_until only")

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        raise NotImplementedError("vip_llava does not support tasks of several rounds")
