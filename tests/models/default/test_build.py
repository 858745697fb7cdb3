"""The default model: trained parts in files, and answers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from vip_llava import Box, load
from vip_llava.errors import CheckpointError
from vip_llava.models.default.build import (
    LORA_TARGETS,
    apply_trained,
    load_default,
    read_trained,
    save_trained,
    trained_state,
)

PHOTOS = Path(__file__).parents[3] / "examples" / "photos"
LAYER = "layers.0.self_attn.q_proj"


@pytest.fixture
def model(lite_model: Callable[..., Any]) -> Any:
    return lite_model()


def changed_state(model: Any) -> dict[str, Tensor]:
    """Trained parts that fit the tiny model: every weight changed, and a LoRA of one layer."""
    generator = torch.Generator().manual_seed(4)
    state = {
        name: value + 0.01 * torch.randn(value.shape, generator=generator)
        for name, value in trained_state(model, whole=False).items()
    }
    state[f"lora.{LAYER}.A"] = torch.randn(2, 32, generator=generator)
    state[f"lora.{LAYER}.B"] = torch.randn(32, 2, generator=generator)
    return state


@pytest.fixture
def parts(model: Any, tmp_path: Path) -> Path:
    folder = tmp_path / "parts"
    save_trained(changed_state(model), folder, lora_scale=0.5, metadata={"steps": 7})
    return folder


def test_saved_parts_are_read_again(model: Any, parts: Path) -> None:
    state, read = changed_state(model), read_trained(parts)
    assert read.lora_scale == 0.5 and not read.language
    together = {
        f"{piece}.{name}": value
        for piece in ("tower", "projector", "lora")
        for name, value in getattr(read, piece).items()
    }
    assert together.keys() == state.keys()
    for name, value in together.items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, state[name], atol=1e-3, rtol=1e-3)
    assert json.loads((parts / "parts.json").read_text())["steps"] == 7


def test_apply_trained_loads_every_part(model: Any, parts: Path) -> None:
    weight = model.model.language_model.get_submodule(LAYER).weight
    before = weight.detach().clone()
    read = read_trained(parts)
    apply_trained(model, parts)
    change = 0.5 * read.lora[f"{LAYER}.B"] @ read.lora[f"{LAYER}.A"]
    torch.testing.assert_close(weight.detach(), before + change)
    now = model.model.vision_tower.state_dict()
    assert all(torch.equal(now[name], value) for name, value in read.tower.items())
    now = model.model.multi_modal_projector.state_dict()
    assert all(torch.equal(now[name], value) for name, value in read.projector.items())


def test_a_language_model_that_was_trained_without_lora(
    lite_model: Callable[..., Any], tmp_path: Path
) -> None:
    tuned, fresh = lite_model(seed=1), lite_model(seed=0)
    save_trained(trained_state(tuned, whole=True), tmp_path, lora_scale=1.0, metadata={})
    apply_trained(fresh, tmp_path)
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        torch.testing.assert_close(
            fresh(input_ids=ids).logits, tuned(input_ids=ids).logits, atol=2e-3, rtol=2e-2
        )


def test_large_parts_are_sharded(tmp_path: Path) -> None:
    state = {f"lora.{i}.{side}": torch.zeros(1500, 1500) for i in range(2) for side in "AB"}
    save_trained(state, tmp_path, lora_scale=1.0, metadata={})
    assert len(list(tmp_path.glob("lora-*-of-2.safetensors"))) == 2
    assert len(read_trained(tmp_path).lora) == 4


def edit_listing(folder: Path, **changes: Any) -> None:
    path = folder / "parts.json"
    facts = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({k: v for k, v in facts.items() if v is not None}))


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda folder: (folder / "parts.json").unlink(), "parts.json is missing"),
        (lambda folder: (folder / "parts.json").write_text("{"), "not a readable JSON"),
        (lambda folder: edit_listing(folder, lora_scale=None), "lora_scale"),
        (lambda folder: edit_listing(folder, files=["../parts/tower-1-of-1.safetensors"]), "lacks"),
        (lambda folder: (folder / "tower-1-of-1.safetensors").unlink(), "tower-1-of-1"),
        (lambda folder: (folder / "tower-1-of-1.safetensors").write_bytes(b"no"), "tower-1-of-1"),
        (lambda folder: edit_listing(folder, files=["lora-1-of-1.safetensors"]), "the tower lacks"),
    ],
)
def test_incomplete_folders_are_errors(
    model: Any, parts: Path, spoil: Callable[[Path], object], reason: str
) -> None:
    spoil(parts)
    with pytest.raises(CheckpointError, match=reason):
        apply_trained(model, parts)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda s: s.update({"lora.layers.9.mlp.A": torch.zeros(2, 2)}), "layers.9.mlp"),
        (lambda s: s.pop(f"lora.{LAYER}.B"), LAYER),
        (lambda s: s.update({f"lora.{LAYER}.B": torch.zeros(8, 2)}), LAYER),
        (lambda s: s.update({"tower.extra": torch.zeros(2)}), "unexpected extra"),
        (lambda s: s.update({"projector.linear_1.bias": torch.zeros(2)}), "does not fit"),
    ],
)
def test_parts_of_another_model_are_errors(
    model: Any, tmp_path: Path, change: Callable[[dict[str, Tensor]], object], reason: str
) -> None:
    state = changed_state(model)
    change(state)
    save_trained(state, tmp_path, lora_scale=1.0, metadata={})
    with pytest.raises(CheckpointError, match=reason):
        apply_trained(model, tmp_path)


def test_lora_targets_are_all_linear_layers_of_the_decoder(model: Any) -> None:
    linear = {
        name.rsplit(".", 1)[1]
        for name, layer in model.model.language_model.named_modules()
        if isinstance(layer, torch.nn.Linear)
    }
    assert linear == set(LORA_TARGETS)


@pytest.fixture(scope="module")
def shipped() -> Any:
    return load(device="cpu")


@pytest.mark.default_model
@pytest.mark.slow
def test_the_shipped_model_answers_about_the_mark(shipped: Any) -> None:
    """The mark on one of two photos in an image determines the answer."""
    photos = [Image.open(PHOTOS / name).resize((300, 200)) for name in ("coffee.jpg", "cat.jpg")]
    image = Image.new("RGB", (600, 200))
    for number, photo in enumerate(photos):
        image.paste(photo, (300 * number, 0))
    boxes = [Box(2, 2, 298, 198), Box(302, 2, 598, 198)]
    answers = [shipped.ask(image, "What is <region:1>?", [box], max_new_tokens=8) for box in boxes]
    assert [answer.text for answer in answers] == ["cup", "cat"]
    assert answers[0].prompt.count("<image>") == 2  # the image, and a focal view
    assert answers[0].usage.image_tokens == 130


@pytest.mark.default_model
@pytest.mark.slow
def test_the_shipped_model_answers_the_same_in_batches(shipped: Any) -> None:
    image = Image.new("RGB", (300, 200), (90, 140, 200))
    ImageDraw.Draw(image).ellipse((100, 60, 180, 140), fill=(200, 60, 40))
    requests = [
        {"image": image, "question": "What is <region:1>?", "regions": [Box(90, 50, 190, 150)]},
        {"image": image, "question": "Describe the image."},
        {"image": None, "question": "What is the capital of France?"},
    ]
    together = shipped.ask_many(requests, max_new_tokens=8)
    alone = [
        shipped.ask(r["image"], r["question"], r.get("regions", ()), max_new_tokens=8)
        for r in requests
    ]
    assert [answer.text for answer in together] == [answer.text for answer in alone]
    assert all(answer.text for answer in alone)


@pytest.mark.default_model
@pytest.mark.slow
def test_the_shipped_tower_is_folded_and_the_info_names_the_settings(shipped: Any) -> None:
    model, processor = load_default()
    assert model.model.vision_tower.config.folded and not model.training
    assert processor.find_marks is not None
    assert (shipped.info.template, shipped.info.tokens_per_view) == ("chatml", 65)
    assert shipped.info.dtype == "float32"
