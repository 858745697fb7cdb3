"""The commands of `docs/cli.md` and of the help pages, run as written."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vip_llava.cli.main import VERBS

Program = Callable[..., Any]
PAGE = Path(__file__).parents[2] / "docs" / "cli.md"


def commands() -> list[str]:
    blocks = re.findall(r"```console\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    helps = [epilog for _, epilog in VERBS.values()]
    lines = [line.strip() for text in (*blocks, *helps) for line in text.splitlines()]
    return [line for line in lines if line.startswith("vip-llava ")]


def write_rows(workspace: Path) -> None:
    """Write a data file with its photos, and the raw files of a data set."""
    (workspace / "photos").mkdir()
    Image.open(workspace / "photo.jpg").save(workspace / "photos" / "photo.jpg")
    turns = [{"from": "human", "value": "What is <bbox0>?"}, {"from": "gpt", "value": "Noise."}]
    row = {"image": "photo.jpg", "bboxes": [[10, 20, 200, 150]], "conversations": turns}
    rows = [{"id": f"custom-{number}", **row} for number in range(1, 11)]
    (workspace / "rows.jsonl").write_text("".join(f"{json.dumps(each)}\n" for each in rows))
    refs = [
        {
            "ref_id": 1,
            "ann_id": 9,
            "image_id": 5,
            "split": "train",
            "sentences": [{"sent_id": 1, "sent": "the noise"}],
        }
    ]
    (workspace / "refs.json").write_text(json.dumps(refs))
    thing = {"id": 9, "image_id": 5, "category_id": 1, "bbox": [5, 5, 20, 10], "segmentation": []}
    content = {
        "images": [{"id": 5, "file_name": "photo.jpg"}],
        "annotations": [thing],
        "categories": [{"id": 1, "name": "noise"}],
    }
    (workspace / "instances.json").write_text(json.dumps(content))
    (workspace / "ids.txt").write_text("5\n")


def write_benchmarks(workspace: Path) -> None:
    """Write a folder for each benchmark with one question, in its own format."""
    box = [10, 20, 200, 150]
    boxes = [box, [10, 200, 90, 300], [300, 20, 400, 150], [300, 200, 400, 300]]
    said = [["It", "is", str(number)] for number in range(4)]
    vcr = {"question": ["Why", [0], "?"], "answer_choices": said, "rationale_choices": said}
    vcr |= {"answer_label": 0, "rationale_label": 1, "class_names": ["noise"], "boxes": [box]}
    vcr |= {"segms": [[[[10, 20], [200, 20], [200, 150], [10, 150]]]]}
    rows: dict[str, tuple[str, dict[str, Any]]] = {
        "visual7w": ("v7w-test.json", {"question": "?", "bboxes": boxes, "answer": box}),
        "pointqa": ("pointQA_twice_test.json", {"general_question": "?", "bboxes": [box], "answer": "1"}),
        "refcocog": ("refcocog-val.json", {"bboxes": [box], "answer": "the noise"}),
        "vcr": ("vcr-val.json", vcr),
    }  # fmt: skip
    kinds = {"visual7w": "v7w", "pointqa": "pointQA_twice"}
    for name, (file, row) in rows.items():
        (workspace / name).mkdir()
        shown = {"id": f"{kinds.get(name, name)}-1", "image": "photo.jpg", **row}
        Image.open(workspace / "photo.jpg").save(workspace / name / "photo.jpg")
        (workspace / name / file).write_text(json.dumps([shown]))
    images = workspace / "vip-bench" / "human" / "images"
    images.mkdir(parents=True)
    Image.open(workspace / "photo.jpg").save(images / "v1_0.png")
    asked = {"question_id": 0, "image": "v1_0.png", "text": "What is it?"}
    (workspace / "vip-bench" / "human" / "questions.jsonl").write_text(json.dumps(asked))
    meta = {"v1_0": {"question": "?", "answer": "noise", "capability": ["rec"]}}
    (workspace / "vip-bench" / "vip-bench-meta-data.json").write_text(json.dumps(meta))


@pytest.fixture
def workspace(
    tmp_path: Path,
    tiny_model_folder: Path,
    labelled_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    """A folder with the files that the page names; every model is the tiny one."""
    rng = np.random.default_rng(0)
    photo = rng.integers(0, 255, (400, 500, 3), dtype=np.uint8)
    Image.fromarray(photo).save(tmp_path / "photo.jpg")
    mask = np.zeros((400, 500), dtype=np.uint8)
    mask[50:90, 60:200] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    (tmp_path / "regions.json").write_text(
        '[{"shape": "box", "frame": "pixel", "box": [1, 2, 30, 40]}]'
    )
    write_rows(tmp_path)
    write_benchmarks(tmp_path)
    for name in ("labelled", "shapes", "recognition"):
        (tmp_path / name).symlink_to(labelled_folder)
    (tmp_path / "recipes").symlink_to(Path(__file__).parents[2] / "recipes")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("vip_llava.assistant.load", _tiny_load(tiny_model_folder))
    return tmp_path


def _tiny_load(folder: Path) -> Callable[..., Any]:
    from vip_llava import assistant as api

    whole = api.load

    def load(_name: object, **_options: object) -> Any:
        assistant = whole(folder)
        ask = assistant.stream

        def short(*args: Any, **sampling: Any) -> Any:
            return ask(*args, **{**sampling, "max_new_tokens": 3})

        assistant.stream = short  # type: ignore[method-assign]
        return assistant

    return load


@pytest.mark.parametrize("line", commands())
def test_commands_of_the_page_and_of_help_work(
    program: Program, workspace: Path, tiny_model_folder: Path, line: str
) -> None:
    words = shlex.split(line.partition("|")[0])
    target = words[3] if words[1] == "convert" else None
    for folder in (word for word in words if word.startswith("./") and word != target):
        (workspace / folder).parent.mkdir(exist_ok=True)
        (workspace / folder).symlink_to(tiny_model_folder)
    if "eval judge" in line:  # which needs a run to grade
        asked: tuple[str, ...] = ("eval", "vip-bench", "--data", "vip-bench")
        assert program(*asked, "--output", "runs/vip-bench").code == 0
    if "eval report" in line:  # and this one runs to report
        asked = ("eval", "shapes", "--data", "labelled", "--groups", "box", "--limit", "1")
        for folder in (word for word in words if word.startswith("runs/")):
            assert program(*asked, "--output", folder).code == 0
    ran = program(*words[1:], stdin=b"What is this?\n")
    assert ran.code == 0, ran.err
    for saved in re.findall(r"--save (\S+\.png)", line):
        assert (workspace / saved).is_file()


def test_the_page_names_every_verb_and_every_shape() -> None:
    from vip_llava.cli.region_options import SHAPE_OPTIONS

    page = PAGE.read_text(encoding="utf-8")
    assert all(f"`{verb}`" in page for verb in VERBS)
    assert all(f"--{shape} " in page for shape in SHAPE_OPTIONS)
    assert len(commands()) > 10
