"""The plug-in for lmms-eval: task files, documents, messages; and lmms-eval, if it is installed."""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import os
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from vip_llava.errors import DataError, RequestError
from vip_llava.evaluation.benchmarks import BENCHMARKS, benchmark_class
from vip_llava.evaluation.lmms import tasks
from vip_llava.evaluation.lmms.docs import DATA_VARIABLE, Task
from vip_llava.evaluation.lmms.messages import request_of_messages, sampling_of_settings
from vip_llava.evaluation.lmms.tasks import utils
from vip_llava.sampling_params import SamplingParams

FOLDER = Path(tasks.__file__).parent
FILES = sorted(FOLDER.glob("*.yaml"))


def read(path: Path) -> dict[str, Any]:
    """A task file, with each `!function utils.NAME` replaced by the function."""

    class Loader(yaml.SafeLoader):
        pass

    def function(_: Any, node: Any) -> Any:
        module, name = node.value.split(".")
        assert module == "utils"
        return getattr(utils, name)

    Loader.add_constructor("!function", function)
    content: dict[str, Any] = yaml.load(path.read_text("utf-8"), Loader)
    return content


def test_every_benchmark_has_a_task() -> None:
    names = {path.stem.removeprefix("vip_llava_").replace("_", "-") for path in FILES}
    assert names == set(BENCHMARKS)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_task_file_asks_as_the_benchmark(path: Path) -> None:
    task = read(path)
    kind = benchmark_class(path.stem.removeprefix("vip_llava_").replace("_", "-"))
    assert task["task"] == path.stem and task["output_type"] == "generate_until"
    assert task["generation_kwargs"]["max_new_tokens"] == kind.max_new_tokens
    assert task["generation_kwargs"]["temperature"] == 0
    for key in (
        "process_docs",
        "doc_to_visual",
        "doc_to_text",
        "doc_to_messages",
        "process_results",
    ):
        assert task[key].__self__.name == kind.name
    assert task["metric_list"][0]["aggregation"].__self__.name == kind.name
    assert json.loads(Path(task["dataset_kwargs"]["data_files"]).read_text()) == {"seed": 0}


@pytest.fixture
def data(visual7w: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (visual7w.parent / "visual7w").symlink_to(visual7w)
    monkeypatch.setenv(DATA_VARIABLE, str(visual7w.parent))
    return visual7w.parent


def test_documents(data: Path) -> None:
    """The same questions with drawn marks; the score is that of a run, failures included."""
    task = Task("visual7w")
    docs = list(task.docs(None))
    assert [doc["id"] for doc in docs] == [f"v7w-{number}" for number in range(5)]
    [message] = task.messages(docs[1])
    image, text = (part.get("url") or part["text"] for part in message["content"])
    assert text == task.text(docs[1]) and "B. The object within" in text and "<region" not in text
    plain = np.asarray(Image.open(data / "v7w" / "v7w" / "1.jpg"))
    assert (np.asarray(image) != plain).any() and image.size == (96, 72)
    assert np.array_equal(np.asarray(task.visual(docs[1])[0]), np.asarray(image))
    said = ["a", "(B) since", "D", "D", "A"]
    rows = [task.results(doc, [answer]) for doc, answer in zip(docs, said, strict=True)]
    assert task.score([row["vip_llava_score"] for row in rows]) == pytest.approx(60.0)
    assert "missing.jpg" in rows[4]["vip_llava_score"]["failed"]
    assert task.text(docs[4]).startswith("This question can't be asked: ")


def test_the_data_variable_must_be_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(DATA_VARIABLE, raising=False)
    with pytest.raises(DataError, match=f"set {DATA_VARIABLE} to a folder"):
        Task("vcr").docs(None)
    monkeypatch.setenv(DATA_VARIABLE, str(tmp_path))
    with pytest.raises(DataError, match="vcr needs vcr-val"):
        Task("vcr").docs(None)


def test_messages_to_requests() -> None:
    image = Image.new("RGB", (8, 8))
    part, text = {"type": "image", "url": image}, {"type": "text", "text": "What?"}
    one = request_of_messages([{"role": "user", "content": [part, text]}])
    assert (one.question, [each.image for each in one.images]) == ("What?", [image])
    several = request_of_messages(
        [
            {"role": "system", "content": "Be short."},
            {"role": "user", "content": [part, text]},
            {"role": "assistant", "content": [{"type": "text", "text": "That."}]},
            {"role": "user", "content": [{"type": "text", "text": "And?"}, part, part]},
        ]
    )
    assert several.question == "And?" and len(several.images) == 2
    assert [turn.text for turn in several.history] == ["Be short.\nWhat?", "That."]  # type: ignore[union-attr]
    with pytest.raises(RequestError, match="type video is not supported"):
        request_of_messages([{"role": "user", "content": [{"type": "video", "url": "x"}]}])
    with pytest.raises(RequestError, match="end with a user turn"):
        request_of_messages([{"role": "assistant", "content": "x"}])


def test_messages_are_answered(assistant: Any) -> None:
    """Turns with their own images, with a real processor."""
    image = Image.new("RGB", (40, 40), (200, 90, 10))
    image, text = {"type": "image", "url": image}, {"type": "text", "text": "What?"}
    turns = [
        {"role": "user", "content": [image, text]},
        {"role": "assistant", "content": [{"type": "text", "text": "That."}]},
        {"role": "user", "content": [image, text]},
    ]
    answer = assistant.ask_many(
        [request_of_messages(turns, sampling_of_settings({"max_new_tokens": 3}))]
    )[0]
    assert answer.usage.image_tokens == 2 * 16


@pytest.mark.parametrize(
    ("settings", "sampling"),
    [
        ({}, {"max_new_tokens": 1024}),
        ({"max_new_tokens": 16, "temperature": 0, "top_p": 1.0, "num_beams": 1, "do_sample": False}, {"max_new_tokens": 16}),
        ({"max_new_tokens": 9, "temperature": 0.5, "top_p": 0.9, "do_sample": True}, {"max_new_tokens": 9, "temperature": 0.5, "top_p": 0.9}),
        ({"max_new_tokens": 9, "temperature": 0.5, "do_sample": False}, {"max_new_tokens": 9}),
        ({"until": ["ASSISTANT:"]}, {"max_new_tokens": 1024}),
        ({"until": ["\n\n", "###"]}, {"max_new_tokens": 1024, "stop": ("###",)}),
    ],
)  # fmt: skip
def test_settings_to_sampling(settings: dict[str, Any], sampling: dict[str, Any]) -> None:
    assert sampling_of_settings(settings) == SamplingParams(**sampling)


def test_beams_are_refused() -> None:
    with pytest.raises(RequestError, match="num_beams 5"):
        sampling_of_settings({"num_beams": 5})


@pytest.fixture
def model_class(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The model for lmms-eval, on a stub of its base class."""

    class Lmms:
        def __init__(self) -> None:
            self.task_dict: dict[str, Any] = {}

    name = "vip_llava.evaluation.lmms.model"
    for each in ("lmms_eval", "lmms_eval.api", "lmms_eval.api.model"):
        monkeypatch.setitem(sys.modules, each, types.ModuleType(each))
    sys.modules["lmms_eval.api.model"].lmms = Lmms  # type: ignore[attr-defined]
    monkeypatch.delitem(sys.modules, name, raising=False)
    yield importlib.import_module(name).VipLlavaForLmmsEval
    sys.modules.pop(name, None)


def test_the_model_answers_instances_in_order(model_class: Any, tiny_model_folder: Path) -> None:
    def messages(doc: str) -> list[dict[str, Any]]:
        image = {"type": "image", "url": Image.new("RGB", (40, 40))}
        return [{"role": "user", "content": [image, {"type": "text", "text": doc}]}]

    def instance(number: int) -> Any:
        settings = {"max_new_tokens": 4}
        return types.SimpleNamespace(args=("", messages, settings, number, "task", "test"))

    model = model_class(
        pretrained=str(tiny_model_folder), device="cpu", batch_size="2", max_batch_size=64
    )
    model.task_dict = {"task": {"test": ["What?", "Who is there?", " ", "Where is it?"]}}
    answers = model.generate_until([instance(number) for number in (0, 1, 3)])
    assert answers == [
        answer.text
        for number in (0, 1, 3)
        for answer in model.assistant.ask_many(
            [request_of_messages(messages(model.task_dict["task"]["test"][number]))],
            max_new_tokens=4,
        )
    ]
    with pytest.raises(RequestError, match="task, document 2: question"):
        model.generate_until([instance(2)])
    with pytest.raises(TypeError, match="nonsense"):
        model_class(pretrained=str(tiny_model_folder), nonsense=1)


@pytest.mark.slow
@pytest.mark.skipif(find_spec("lmms_eval") is None, reason="lmms-eval is not installed")
def test_lmms_eval_runs_it(
    data: Path, tiny_model_folder: Path, tmp_path: Path, draw_image: Callable[..., None]
) -> None:
    """lmms-eval's command with the model from the entry point and a task from the package."""
    found = importlib.metadata.entry_points(group="lmms_eval.models")
    assert "vip_llava" in {point.name for point in found}
    command = [sys.executable, "-m", "lmms_eval", "--model", "vip_llava"]
    command += ["--model_args", f"pretrained={tiny_model_folder},device=cpu", "--batch_size", "4"]
    command += ["--include_path", str(FOLDER), "--tasks", "vip_llava_visual7w"]
    command += ["--output_path", str(tmp_path / "out"), "--log_samples"]
    environment = {
        **os.environ,
        "HF_DATASETS_CACHE": str(tmp_path / "cache"),
        "HF_HUB_OFFLINE": "1",
    }
    ran = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert ran.returncode == 0 and "vip_llava_score" in ran.stdout, ran.stderr[-2000:]
    [samples] = (tmp_path / "out").rglob("*samples_vip_llava_visual7w.jsonl")
    rows = [json.loads(line)["vip_llava_score"] for line in samples.read_text().splitlines()]
    assert len(rows) == 5 and sum(row["failed"] is not None for row in rows) == 1
