"""The recipes of CONTRIBUTING.md ("How to add ..."), each followed by adding a small one."""

from __future__ import annotations

import json
import random
import shutil
import sys
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from PIL import Image

from vip_llava import load
from vip_llava.assistant import Assistant
from vip_llava.backends.base import Completion, ModelInfo
from vip_llava.data.check import check
from vip_llava.data.fields import BoxesRow
from vip_llava.data.reading import RowFile
from vip_llava.data.records import parse_row
from vip_llava.data.region_rows import REGION_ROWS
from vip_llava.data.tasks import TASKS, ArrangedRow, TaskContext, arrange
from vip_llava.data.tasks.common import alternate, join_phrases, mark_boxes
from vip_llava.errors import DataError, RegionError
from vip_llava.evaluation.benchmark import Benchmark, BenchmarkItem
from vip_llava.evaluation.benchmarks import BENCHMARKS, open_benchmark
from vip_llava.evaluation.benchmarks.proportions import proportion_score
from vip_llava.evaluation.results import AnswerScore, ResultRow, Score
from vip_llava.prompting.prepare import Prepared, Request, prepare
from vip_llava.regions import SHAPES, Box, Region, draw, region_from_json
from vip_llava.regions.geometry import Bounds
from vip_llava.regions.sampling import POLICIES, Policy
from vip_llava.regions.shapes.base import Move
from vip_llava.regions.strokes import Ink, Pen, draw_path
from vip_llava.sampling_params import SamplingParams


class _Echo:
    """A backend that answers with the question it was asked, one word at a time."""

    info = ModelInfo(name="echo")

    def prepare(self, request: Request, sampling: SamplingParams) -> Prepared:
        return prepare(request, sampling)

    def submit(
        self, prepared: Prepared, on_event: Callable[[Any], None] | None = None
    ) -> _EchoCompletion:
        return _EchoCompletion(prepared.question.split()[: prepared.sampling.max_new_tokens])

    def wait_any(self, pending: Sequence[Any]) -> None:
        """Every completion is done when it is submitted."""


class _EchoCompletion:
    done = True

    def __init__(self, words: list[str]) -> None:
        self._words = words

    def __iter__(self) -> Iterator[str]:
        return (f"{word} " for word in self._words)

    def cancel(self) -> None:
        pass

    def result(self) -> Completion:
        text = " ".join(self._words)
        return Completion(text, "stop", 0, len(self._words), 0, 0.0, 0.0)


def test_a_backend() -> None:
    """A new backend answers through every method of `Assistant`, regions drawn and worded."""
    assistant = Assistant(_Echo())
    photo = Image.new("RGB", (60, 40), "white")
    box = Box(5, 5, 30, 30)
    answer = assistant.ask(photo, "What is <region:1>?", box)
    assert answer.text == "What is the object within the red rectangle?"
    assert answer.image is not None and answer.image.getpixel((5, 15)) == (255, 0, 0)
    assert "".join(assistant.stream(photo, "One two three", max_new_tokens=2)) == "One two "
    chat = assistant.chat(photo, box)
    assert [chat.ask("Hi").text, chat.ask("<region:1>?").text] == [
        "Hi",
        "The object within the red rectangle?",
    ]
    many = assistant.ask_many([{"question": "a"}, {"image": photo, "question": "b"}])
    assert [each.text for each in many] == ["a", "b"]


GRID_TOWER = """
import torch
from torch import nn
from transformers import AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from vip_llava.models.vision_towers import VisionTower, register_vision_tower


class GridConfig(PretrainedConfig):
    model_type = "grid_tower"

    def __init__(self, hidden_size=8, num_hidden_layers=3, image_size=28, patch_size=7, **kwargs):
        self.hidden_size, self.num_hidden_layers = hidden_size, num_hidden_layers
        self.image_size, self.patch_size = image_size, patch_size
        super().__init__(**kwargs)


class GridTower(PreTrainedModel):
    config_class = GridConfig

    def __init__(self, config):
        super().__init__(config)
        width, patch = config.hidden_size, config.patch_size
        self.embed = nn.Conv2d(3, width, patch, patch)
        self.blocks = nn.ModuleList(nn.Linear(width, width) for _ in range(config.num_hidden_layers))
        self.post_init()

    def forward(self, pixel_values, **kwargs):
        states = [self.embed(pixel_values).flatten(2).transpose(1, 2)]
        for block in self.blocks:
            states.append(torch.tanh(block(states[-1])))
        return BaseModelOutput(last_hidden_state=states[-1], hidden_states=tuple(states))


AutoConfig.register("grid_tower", GridConfig)
AutoModel.register(GridConfig, GridTower)
register_vision_tower(
    VisionTower(
        model_type="grid_tower",
        prefix_tokens=0,
        layers="blocks",
        image_mean=(0.25, 0.5, 0.75),
        image_std=(0.5, 0.5, 0.5),
    )
)
"""


def test_a_vision_tower(
    tmp_path: Path, tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new tower is one file and one registry line; it loads, counts, computes and answers."""
    from transformers import AutoConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    from vip_llava.models import vision_towers
    from vip_llava.models.loading import load_model

    (tmp_path / "grid_tower_module.py").write_text(GRID_TOWER)
    monkeypatch.syspath_prepend(tmp_path)
    lines = (*vision_towers._BUILT_IN, "grid_tower_module")
    monkeypatch.setattr(vision_towers, "_BUILT_IN", lines)
    vision_towers.get_vision_tower("grid_tower")

    text = json.loads((tiny_model_folder / "config.json").read_text())["text_config"]
    config = LlavaConfig(
        text_config=LlamaConfig(**text),
        vision_config=AutoConfig.for_model("grid_tower"),
        vision_feature_layer=[-2, 1],
        vision_feature_select_strategy="full",
        image_token_index=399,
    )
    torch.manual_seed(0)
    whole: Any = LlavaForConditionalGeneration(config)
    whole.eval()
    whole.save_pretrained(tmp_path / "model")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(tiny_model_folder / name, tmp_path / "model" / name)

    loaded, processor = load_model(tmp_path / "model", device="cpu")
    model: Any = loaded
    assert (processor.tokens_per_view, processor.geometry.fill) == (16, (63, 127, 191))
    assert len(model.model.vision_tower.blocks) == 2 < len(whole.model.vision_tower.blocks)
    pixels = torch.randn(1, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        want, got = (
            torch.stack(list(m.get_image_features(pixel_values=pixels).pooler_output))
            for m in (whole, model)
        )
    assert got.shape == (1, 16, text["hidden_size"]) and torch.equal(got, want)
    photo = Image.new("RGB", (60, 40), "white")
    answer = load(tmp_path / "model", device="cpu").ask(photo, "What?", max_new_tokens=3)
    assert answer.usage.image_tokens == 16


def test_a_backbone(make_original: Callable[..., Path], tiny_model_folder: Path) -> None:
    """A new language model in the original's layout is one registry line."""
    from safetensors.torch import load_file
    from transformers import GraniteConfig, GraniteForCausalLM

    from vip_llava.models.backbones import Backbone, register_backbone
    from vip_llava.models.loading import load_model

    register_backbone(Backbone("granite", "granite", template="chatml"))

    scale: dict[str, Any] = {"embedding_multiplier": 2.0, "residual_multiplier": 0.5}
    named = {"model_type": "llava_granite", "architectures": ["LlavaGraniteForCausalLM"]}
    folder = make_original(5, extra={**named, **scale})
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(tiny_model_folder / name, folder / name)
    loaded, processor = load_model(folder, device="cpu")
    model: Any = loaded
    assert processor.template.name == "chatml"
    assert model.config.text_config.model_type == "granite"

    keys = ["vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "rms_norm_eps"]
    keys += ["num_attention_heads", "num_key_value_heads", "max_position_embeddings"]
    config = json.loads((folder / "config.json").read_text())
    reference: Any = GraniteForCausalLM(
        GraniteConfig(**{key: config[key] for key in keys}, **scale)
    )
    weights = load_file(folder / "model.safetensors")
    reference.load_state_dict({name: weights[name] for name in reference.state_dict()})
    ids = torch.tensor([[1, 7, 9, 20]])
    with torch.no_grad():
        want = reference.eval()(input_ids=ids).logits
        assert torch.allclose(model(input_ids=ids).logits, want, atol=1e-5)


@dataclass(frozen=True, slots=True)
class _Cross(Region):
    """Two crossing lines around a point."""

    x: float
    y: float
    reach: float

    shape: ClassVar[str] = "cross"
    words: ClassVar[tuple[str, str]] = ("at", "cross")
    required_keys: ClassVar[tuple[tuple[str, ...], ...]] = (("center", "reach"),)

    def validate(self, who: str) -> None:
        if self.reach <= 0:
            raise RegionError(f"{who}: reach must be over 0, not {self.reach}")

    def span(self) -> Bounds:
        return self.x - self.reach, self.y - self.reach, self.x + self.reach, self.y + self.reach

    def mapped(self, move: Move, scale: float) -> dict[str, Any]:
        x, y = move(self.x, self.y)
        return {"x": x, "y": y, "reach": self.reach * scale}

    def geometry_to_json(self) -> dict[str, Any]:
        return {"center": [self.x, self.y], "reach": self.reach}

    @classmethod
    def geometry_from_json(cls, value: Mapping[str, Any], who: str) -> dict[str, Any]:
        x, y = value["center"]
        return {"x": x, "y": y, "reach": value["reach"]}

    def paint(self, pen: Pen, ink: Ink, left: int, top: int) -> None:
        x1, y1, x2, y2 = self.span()
        draw_path(pen, [(x1, y1), (x2, y2)], ink, self.line_width, left, top)
        draw_path(pen, [(x1, y2), (x2, y1)], ink, self.line_width, left, top)


def test_a_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    """A subclass of `Region` and a line in `SHAPES`: JSON, drawing, phrases and rows follow."""
    monkeypatch.setitem(SHAPES, _Cross.shape, _Cross)
    value = {"shape": "cross", "frame": "unit", "center": [0.5, 0.5], "reach": 0.25, "color": "red"}
    cross = region_from_json(value)
    assert cross.to_json() == value
    with pytest.raises(RegionError, match="cross: reach must be over 0"):
        region_from_json(value | {"reach": 0})
    with pytest.raises(RegionError, match=r'needs "center" and "reach" \(missing\)'):
        region_from_json({"shape": "cross", "frame": "unit"})

    drawn = draw(Image.new("RGB", (80, 60)), [cross])
    for place in ((40, 30), (21, 11), (59, 49), (21, 49)):
        assert drawn.getpixel(place) == (255, 0, 0)
    assert drawn.getpixel((40, 11)) == (0, 0, 0)

    turns = [{"from": "human", "value": "What is <region:1>?"}, {"from": "gpt", "value": "A cup"}]
    row = {"id": "r", "image": "a.png", "regions": [value], "conversations": turns}
    arranged = arrange(parse_row(row), (80, 60), random.Random(0))
    assert arranged.turns[0].text == "What is the object at the red cross?"


class _CountRow(BoxesRow):
    """Count the objects of the kind of the marked ones."""

    kind: ClassVar[str] = "count"
    noun: str
    count: int


def _count_task(row: _CountRow, context: TaskContext) -> ArrangedRow:
    marks = mark_boxes(context, POLICIES[row.kind], row)
    marked = join_phrases(marks.phrases())
    return ArrangedRow(
        marks.regions, alternate(f"How many {row.noun} like {marked}?", str(row.count))
    )


def test_a_source_of_training_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row class, a task and a policy, each with its line: parsing and checking follow."""
    monkeypatch.setitem(REGION_ROWS, "count", _CountRow)
    monkeypatch.setitem(TASKS, "count", _count_task)
    monkeypatch.setitem(POLICIES, "count", Policy("count", ("box",), "constant", "red"))
    row = {"id": "count-1", "image": "a.png", "bbox": [9, 9, 40, 30], "noun": "cups", "count": 3}
    arranged = arrange(parse_row(row), (80, 60), random.Random(0))
    assert [turn.text for turn in arranged.turns] == ["How many cups like within the red rectangle?", "3"]  # fmt: skip
    assert [region.shape for region in arranged.regions] == ["box"]
    with pytest.raises(DataError, match=r"id 'count-2': field count: missing"):
        parse_row({key: row[key] for key in ("image", "bbox", "noun")} | {"id": "count-2"})

    Image.new("RGB", (80, 60)).save(tmp_path / "a.png")
    (tmp_path / "rows.json").write_text(json.dumps([row, row | {"bbox": [9, 9, 4, 30]}]))
    report = check(RowFile.open(tmp_path / "rows.json"), tmp_path, open_images=True)
    assert (report.kinds, report.bad) == ({"count": 1}, 1)


class _FirstWord(Benchmark):
    """Does the answer begin with the expected word? One line of the file is one question."""

    name = "first-word"
    about = "the first word of an answer"
    needs = "a text file with one question a line"

    def items(self) -> list[BenchmarkItem]:
        lines = self.data.read_text("utf-8").splitlines()
        return [
            BenchmarkItem(
                str(number), "", line.split()[0], lambda line=line: Request(question=line)
            )  # type: ignore[misc]
            for number, line in enumerate(lines, 1)
        ]

    def sources(self) -> list[Path]:
        return [self.data]

    @classmethod
    def score(cls, expected: Any, answer: str) -> AnswerScore:
        right = answer.split()[:1] == [expected]
        return AnswerScore(float(right), right, answer)

    @classmethod
    def aggregate(cls, rows: Sequence[ResultRow]) -> list[Score]:
        return [proportion_score("accuracy", rows)]


def test_a_benchmark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new benchmark is opened by its name; its items are asked and scored."""
    module = types.ModuleType("first_word")
    vars(module)["FirstWord"] = _FirstWord
    monkeypatch.setitem(sys.modules, "first_word", module)
    monkeypatch.setitem(BENCHMARKS, "first-word", "first_word:FirstWord")
    data = tmp_path / "questions.txt"
    data.write_text("Is it a cat?\nWhere is it?\n", encoding="utf-8")
    benchmark = open_benchmark("first-word", data)
    assistant = Assistant(_Echo())
    rows = [
        benchmark.scored_row(item, assistant.ask_many([item.build_request()])[0].text)
        for item in benchmark.items()
    ]
    rows.append(benchmark.items()[0].failed_row("no image"))
    assert [row.right for row in rows[:2]] == [True, True]
    [accuracy] = benchmark.aggregate(rows)
    assert accuracy.value == pytest.approx(2 / 3)
    with pytest.raises(DataError, match="needs a text file with one question a line"):
        open_benchmark("first-word", tmp_path / "none.txt")
