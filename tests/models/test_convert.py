"""Conversion in both directions keeps every weight bit for bit; transformers reads the result."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, VipLlavaForConditionalGeneration

from vip_llava.errors import CheckpointError
from vip_llava.models.checkpoint_files import find_weights, read_tensors
from vip_llava.models.convert import convert
from vip_llava.models.layouts import canonical_from_hub
from vip_llava.models.loading import load_model, load_weights

Make = Callable[..., Path]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return read_tensors(find_weights(folder))


def same_bits(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype and torch.equal(a[name], b[name]), name


def logits(model: Any, vocabulary: int = 400) -> torch.Tensor:
    token, count = model.config.image_token_id, model.config.image_seq_length
    ids = torch.tensor([[1, *[token] * count, 20, 21]])
    pixels = torch.randn(1, 3, 56, 56, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        out = model(input_ids=ids, pixel_values=pixels.to(model.dtype)).logits.float()
    return out[..., :vocabulary]  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("layers", "linears", "settings"),
    [
        (5, 2, {}),
        (5, 2, {"as_bin": True, "shards": 2}),
        (5, 2, {"backbone": "phi3"}),
        (5, 0, {}),
        (1, 2, {"layer": -1, "strategy": "cls_patch"}),
        (1, 0, {}),
        (1, 1, {}),
        (1, 3, {"extra": {"mm_use_im_start_end": True}}),
    ],
)
def test_original_to_hub_and_back(
    layers: int, linears: int, settings: dict[str, Any], make_original: Make, tmp_path: Path
) -> None:
    source = make_original(layers, linears, **settings)
    hub = convert(source, tmp_path / "hub", "hf", max_shard_bytes=60_000)
    assert (hub / "model.safetensors.index.json").is_file()
    back = convert(hub, tmp_path / "back", "original", max_shard_bytes=90_000)
    same_bits(weights(back), weights(source))
    want = logits(load_weights(source, device="cpu"))
    for folder in (hub, back):
        assert torch.equal(logits(load_weights(folder, device="cpu")), want), folder.name
    first, last = (json.loads((f / "config.json").read_text()) for f in (source, back))
    for key in ("mm_projector_type", "mm_hidden_size", "mm_use_im_start_end", "vocab_size"):
        assert last[key] == first[key], key


def test_hub_to_original_and_back(tiny_model_folder: Path, tmp_path: Path) -> None:
    original = convert(tiny_model_folder, tmp_path / "original", "original")
    assert "model.mm_projector.clip_layernorm.weight" in weights(original)
    hub = convert(original, tmp_path / "hub", "hf")

    def canonical(folder: Path) -> dict[str, torch.Tensor]:
        return {str(canonical_from_hub(name)): t for name, t in weights(folder).items()}

    same_bits(canonical(hub), canonical(tiny_model_folder))
    config = json.loads((hub / "config.json").read_text())
    assert config["image_token_index"] == 399 and config["text_config"]["vocab_size"] == 400


def test_transformers_reads_what_was_converted(
    make_original: Make, tiny_model_folder: Path, tmp_path: Path
) -> None:
    source = make_original(5)
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        shutil.copyfile(tiny_model_folder / name, source / name)
    # A tokenizer of 399 tokens and without <image>.
    content = json.loads((source / "tokenizer.json").read_text())
    content["added_tokens"] = [t for t in content["added_tokens"] if t["content"] != "<image>"]
    content["added_tokens"].append({**content["added_tokens"][0], "id": 399, "content": "<x>"})
    (source / "tokenizer.json").write_text(json.dumps(content))
    hub = convert(source, tmp_path / "hub", "hf")
    model = VipLlavaForConditionalGeneration.from_pretrained(hub).eval()
    assert torch.allclose(logits(model), logits(load_weights(source, device="cpu")), atol=1e-6)
    assert (hub / "preprocessor_config.json").is_file()
    tokenizer = AutoTokenizer.from_pretrained(hub)
    assert tokenizer.convert_tokens_to_ids("<image>") == model.config.image_token_id == 400
    # The added row is never the best answer.
    out = model(input_ids=torch.tensor([[1, 5, 9]])).logits
    assert int(out.argmax(dim=-1).max()) < 400
    _, processor = load_model(hub, device="cpu")
    assert processor.image_token_id == 400


def test_half_precision_weights_keep_their_bits(tiny_model_folder: Path, tmp_path: Path) -> None:
    model = load_weights(tiny_model_folder, device="cpu", dtype="bf16")
    model.save_pretrained(tmp_path / "half")
    original = convert(tmp_path / "half", tmp_path / "original", "original")
    assert {tensor.dtype for tensor in weights(original).values()} == {torch.bfloat16}
    # A loaded model has a truncated tower and other indices of the same hidden states.
    assert torch.equal(logits(load_weights(original, device="cpu", dtype="bf16")), logits(model))


def test_existing_targets_and_unknown_layouts_are_errors(
    make_original: Make, tmp_path: Path
) -> None:
    source = make_original()
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    with pytest.raises(CheckpointError, match="already exists"):
        convert(source, tmp_path / "taken", "hf")
    with pytest.raises(CheckpointError, match="unknown layout"):
        convert(source, tmp_path / "new", "gguf")  # type: ignore[arg-type]
    (tmp_path / "empty").mkdir()
    assert convert(source, tmp_path / "empty", "hf") == tmp_path / "empty"


def test_the_original_has_no_other_feature_layers(tiny_model_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_model_folder, tmp_path / "odd")
    path = tmp_path / "odd" / "config.json"
    config = json.loads(path.read_text())
    config.pop("vision_feature_layers", None)
    path.write_text(json.dumps({**config, "vision_feature_layer": [-2, -5, -8, -11, 5]}))
    with pytest.raises(CheckpointError, match="hidden states"):
        convert(tmp_path / "odd", tmp_path / "new", "original")


def test_a_failed_conversion_leaves_no_files(
    make_original: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object, **settings: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("vip_llava.models.convert.write_tensors", full)
    source = make_original()
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(OSError, match="disk full"):
        convert(source, tmp_path / "new", "hf")
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_the_default_model_has_no_other_layout(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="the default model has no other layout"):
        convert("default", tmp_path / "new", "hf")
