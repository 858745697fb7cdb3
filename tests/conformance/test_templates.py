"""Prompts of every recorded conversation are those of the original, its recorded faults excepted."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vip_llava.errors import TemplateError
from vip_llava.prompting.templates import TEMPLATES, get_template
from vip_llava.prompting.turns import MarkedImage, Role, Turn

from .conftest import Tally, recorded_cases, skip_without

BLANK = (MarkedImage(Image.new("RGB", (1, 1))),)
pytestmark = pytest.mark.conformance


def read(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    facts = json.loads((folder / "facts.json").read_text("utf-8"))
    return facts, list(recorded_cases(folder / "cases.jsonl"))


def messages_of(case: dict[str, Any], roles: Sequence[str]) -> list[Turn]:
    """Our messages for a recorded list; a tuple's image goes where the original's server puts it."""
    turns: list[Turn] = []
    for index, (role, text) in enumerate(case["messages"]):
        # `plain` has two empty role names: the position determines the role.
        speaker = roles.index(role) if roles[0] != roles[1] else index % 2
        ours: Role = "assistant" if speaker or text is None else "user"
        if isinstance(text, list):
            text = text[0].replace("<image>", "").strip() if index == 0 else text[0]
            if index == 0 and "mmtag" in case["template"]:
                turns += [Turn("user", "", BLANK), Turn("assistant", "Received.")]
            else:
                turns.append(Turn(ours, text, BLANK))
                continue
        turns.append(Turn(ours, text))
    return turns


def is_fault(case: dict[str, Any]) -> bool:
    """The original raised, or took a closed but empty text for one that is to be generated."""
    return "error" in case or any(text == "" for _, text in case["messages"])


def test_prompts(family: Callable[[str], Path], tally: Tally) -> None:
    facts, cases = read(family("templates"))
    compared = 0
    for case in cases:
        if is_fault(case):
            tally("templates", "not compared, a fault of the original")
            continue
        tally("templates", "compared")
        roles = facts[case["template"]]["roles"]
        prompt = get_template(case["template"]).prompt(messages_of(case, roles))
        assert prompt == case["prompt"], case["id"]
        compared += 1
    skip_without(compared, "comparable prompt")


def test_faults_of_the_original_give_a_whole_prompt_or_a_reason(
    family: Callable[[str], Path],
) -> None:
    facts, cases = read(family("templates"))
    for case in filter(is_fault, cases):
        template = get_template(case["template"])
        messages = messages_of(case, facts[case["template"]]["roles"])
        if messages[0].role == "assistant" and template.user_first:
            with pytest.raises(TemplateError, match="first turn must be the user"):
                template.prompt(messages)
            continue
        prompt = template.prompt(messages)
        for turn in messages:
            assert (turn.text or "") in prompt, case["id"]
        if messages[-1].text is not None:
            assert prompt.endswith(template.assistant_end + template.assistant_after), case["id"]


def test_facts(family: Callable[[str], Path]) -> None:
    facts, _ = read(family("templates"))
    assert set(facts) <= set(TEMPLATES)
    for name, fact in facts.items():
        template = get_template(name)
        prompt = template.prompt([Turn("user", "Q"), Turn("assistant", "A")])
        # The system text of some templates is recorded with its turn mark in front.
        assert fact["system"] in prompt, name
        assert fact["system"].endswith(template.system), name
        for role, text in zip(fact["roles"], "QA", strict=True):
            assert role in prompt[: prompt.rindex(text)] or fact["sep_style"] == "LLAMA_2", name
        assert prompt.rstrip("\n").endswith((fact["sep2"] or fact["sep"]).rstrip("\n")) or (
            fact["sep_style"] == "LLAMA_3"
        ), name
