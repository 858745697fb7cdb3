"""Every layout loads and computes the right logits; missing or unexpected weights are named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaForConditionalGeneration,
    VipLlavaForConditionalGeneration,
)

from vip_llava.errors import CheckpointError, DownloadError, QuantizationError, VipLlavaError
from vip_llava.models.hub import files_to_download, resolve_folder
from vip_llava.models.loading import load_model, load_weights
from vip_llava.models.placement import Placement, resolve_dtype

Make = Callable[..., Path]


def call(model: Any, seed: int = 3) -> torch.Tensor:
    """Logits of a fixed prompt with an image, in float32 and without the id of `<image>`."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randn(1, 3, 56, 56, generator=generator)
    token, count = model.config.image_token_id, model.config.image_seq_length
    ids = torch.tensor([[1, 7, 9, *[token] * count, 20, 21, 22]])
    with torch.no_grad():
        out = model(input_ids=ids, pixel_values=pixels.to(model.dtype))
    logits: torch.Tensor = out.logits.float()
    return logits[..., :399]


def test_logits_are_those_of_transformers(tiny_model_folder: Path) -> None:
    theirs = VipLlavaForConditionalGeneration.from_pretrained(tiny_model_folder).eval()
    ours = load_weights(tiny_model_folder, device="cpu")
    assert type(ours) is VipLlavaForConditionalGeneration
    assert ours.dtype == torch.float32 and not ours.training
    assert torch.allclose(call(ours), call(theirs), atol=1e-6, rtol=0)
    half = load_weights(tiny_model_folder, device="cpu", dtype="bf16")
    assert half.dtype == torch.bfloat16
    difference = (call(half) - call(theirs)).abs()
    assert difference.max() < 0.05 * call(theirs).abs().max()
    assert difference.max() > 0


def test_logits_of_a_llava_folder_are_those_of_transformers(
    tiny_model_folder: Path, tmp_path: Path
) -> None:
    whole = VipLlavaForConditionalGeneration.from_pretrained(tiny_model_folder)
    from transformers import LlavaConfig

    config = LlavaConfig(
        vision_config=whole.config.vision_config,
        text_config=whole.config.text_config,
        image_token_index=399,
        image_seq_length=16,
    )
    torch.manual_seed(0)
    llava = LlavaForConditionalGeneration(config).eval()
    llava.save_pretrained(tmp_path / "llava")
    ours = load_weights(tmp_path / "llava", device="cpu")
    assert type(ours) is LlavaForConditionalGeneration
    assert torch.allclose(call(ours), call(llava), atol=1e-6, rtol=0)


def language_logits(folder: Path, embeddings: torch.Tensor) -> torch.Tensor:
    """Logits of the same weights in transformers' Llama, loaded without this package."""
    config = json.loads((folder / "config.json").read_text())
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "rms_norm_eps")
    more = ("num_attention_heads", "num_key_value_heads", "max_position_embeddings")
    llama = LlamaForCausalLM(LlamaConfig(**{name: config[name] for name in names + more}))
    weights = load_file(folder / "model.safetensors")
    keys = llama.state_dict().keys()
    llama.load_state_dict({name: weights[name] for name in keys})
    with torch.no_grad():
        return llama.eval()(inputs_embeds=embeddings).logits


@pytest.mark.parametrize(("layers", "linears"), [(5, 2), (5, 3), (5, 0), (1, 0), (1, 1), (1, 3)])
def test_the_projectors_of_the_original(
    layers: int, linears: int, make_original: Make, tiny_clip: CLIPVisionModel
) -> None:
    folder = make_original(layers, linears)
    model = load_weights(folder, device="cpu")
    weights = load_file(folder / "model.safetensors")
    pixels = torch.randn(1, 3, 56, 56, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        states = tiny_clip(pixels, output_hidden_states=True).hidden_states
    picked = (-2, -5, -8, -11, 6) if layers == 5 else (-2,)
    x = torch.cat([states[index][:, 1:] for index in picked], dim=-1)
    root = "model.mm_projector."
    if layers == 5 and linears:
        norm = [weights[f"{root}clip_layernorm.{part}"] for part in ("weight", "bias")]
        x = torch.nn.functional.layer_norm(x, (160,), *norm, eps=1e-5)
        root += "final_linear."
    for number in range(max(1, linears)):
        place = f"{root}{2 * number}." if linears else root
        x = torch.nn.functional.gelu(x) if number else x
        x = x @ weights[place + "weight"].T + weights[place + "bias"]
    words = weights["model.embed_tokens.weight"]
    embeddings = torch.cat([words[[1, 7, 9]], x[0], words[[20, 21, 22]]])[None]
    want = language_logits(folder, embeddings)[..., :399]
    assert torch.allclose(call(model), want, atol=1e-4)


def test_shards_bin_files_and_separate_towers_load_the_same_model(
    make_original: Make, tiny_clip: CLIPVisionModel, tmp_path: Path
) -> None:
    tiny_clip.save_pretrained(tmp_path / "clip")
    want = call(load_weights(make_original(5), device="cpu"))
    folders = [
        make_original(5, name="sharded", shards=3),
        make_original(5, name="bin", as_bin=True),
        make_original(5, name="bins", as_bin=True, shards=2),
    ]
    for folder in folders:
        assert torch.equal(call(load_weights(folder, device="cpu")), want), folder.name
    bare = make_original(5, name="bare", tower=False)
    outside = load_weights(bare, vision_tower=tmp_path / "clip", device="cpu")
    assert torch.equal(call(outside), want)
    with_name = json.loads((bare / "config.json").read_text()) | {"mm_vision_tower": "clip"}
    (bare / "config.json").write_text(json.dumps(with_name))
    shutil.copytree(tmp_path / "clip", bare / "clip")
    assert torch.equal(call(load_weights(bare, device="cpu")), want)


def test_phi3_backbone(make_original: Make) -> None:
    model = load_weights(make_original(5, backbone="phi3"), device="cpu")
    assert model.config.text_config.model_type == "phi3"
    assert torch.isfinite(call(model)).all()


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"model_type": "llava_mpt", "architectures": ["LlavaMptForCausalLM"]}, "MPT"),
        ({"model_type": "bloom", "architectures": None}, "unknown model type 'bloom'"),
        ({"mm_vision_select_feature": "all"}, "cls_patch"),
        ({"mm_vision_select_layer": 40}, "hidden state 40"),
        ({"hidden_size": 64}, "another shape"),
        ({"num_hidden_layers": 3}, r"missing: model\.language_model\.layers\.2"),
        ({"num_hidden_layers": 1}, r"unexpected: model\.layers\.1"),
    ],
)
def test_contradictions_are_named(extra: dict[str, Any], message: str, make_original: Make) -> None:
    with pytest.raises(CheckpointError, match=message):
        load_weights(make_original(extra=extra), device="cpu")


def change(folder: Path, drop: str | None = None, add: str | None = None) -> None:
    path = folder / "model.safetensors"
    weights = load_file(path)
    if drop is not None:
        del weights[drop]
    if add is not None:
        weights[add] = torch.zeros(2)
    save_file(weights, path)


def test_missing_and_unexpected_weights(
    make_original: Make, tiny_model_folder: Path, tmp_path: Path
) -> None:
    folder = make_original(5)
    change(folder, drop="model.norm.weight")
    with pytest.raises(CheckpointError, match=r"missing: model\.language_model\.norm\.weight"):
        load_weights(folder, device="cpu")
    folder = make_original(5, name="more")
    change(folder, add="model.layers.0.self_attn.q_proj.zero")
    with pytest.raises(CheckpointError, match=r"unexpected: .*q_proj\.zero"):
        load_weights(folder, device="cpu")
    folder = make_original(5, name="half")
    change(folder, drop="model.mm_projector.final_linear.2.bias")
    with pytest.raises(CheckpointError, match=r"linear_2\.bias"):
        load_weights(folder, device="cpu")
    shutil.copytree(tiny_model_folder, tmp_path / "hub")
    change(tmp_path / "hub", drop="multi_modal_projector.linear_1.bias")
    with pytest.raises(CheckpointError, match=r"linear_1\.bias"):
        load_weights(tmp_path / "hub", device="cpu")


def test_folders_that_are_not_checkpoints(tmp_path: Path, make_original: Make) -> None:
    with pytest.raises(CheckpointError, match="no such folder"):
        load_weights(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"config\.json"):
        load_weights(tmp_path / "empty")
    folder = make_original()
    with pytest.raises(CheckpointError, match="is a file"):
        load_weights(folder / "config.json")
    (folder / "config.json").write_text("[1]")
    with pytest.raises(CheckpointError, match="JSON object"):
        load_weights(folder)
    folder = make_original(name="cut")
    (folder / "model.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{")
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        load_weights(folder)


@pytest.mark.parametrize("name", ["../other.safetensors", "/tmp/x.bin", "code.py"])
def test_an_index_must_not_name_files_outside_its_folder(name: str, make_original: Make) -> None:
    folder = make_original(shards=2)
    index = folder / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["lm_head.weight"] = name
    index.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="not a weight file beside it"):
        load_weights(folder)


def test_a_missing_shard_is_named(make_original: Make) -> None:
    folder = make_original(shards=2)
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match="00002-of-00002"):
        load_weights(folder)


def test_dtype_and_device_arguments(tiny_model_folder: Path) -> None:
    assert resolve_dtype("auto", torch.device("cpu")) == torch.float32
    assert resolve_dtype("auto", torch.device("cuda")) == torch.bfloat16
    assert resolve_dtype(torch.float16, torch.device("cpu")) == torch.float16
    for bad in ("int8", "floaty", torch.int8):
        with pytest.raises(CheckpointError, match="unknown dtype"):
            resolve_dtype(bad, torch.device("cpu"))
    with pytest.raises(CheckpointError, match="not both"):
        Placement.resolve("auto", "cpu", "auto", None)
    with pytest.raises(CheckpointError, match="unknown device"):
        Placement.resolve("auto", "gpu7", None, None)
    with pytest.raises(QuantizationError, match="8bit"):
        Placement.resolve("auto", "cpu", None, "3bit")
    mapped = load_weights(tiny_model_folder, device_map={"": "cpu"})
    assert torch.equal(call(mapped), call(load_weights(tiny_model_folder, device="cpu")))


def test_load_model_returns_a_matching_processor(tiny_model_folder: Path) -> None:
    from PIL import Image

    from vip_llava.prompting.turns import MarkedImage, Turn

    stages: list[str] = []
    model, processor = load_model(
        tiny_model_folder,
        device="cpu",
        template="llava_v1",
        progress=lambda stage, done, total: stages.append(stage),
    )
    assert stages and processor.geometry.mode == "pad" and processor.geometry.size == 56
    image = Image.new("RGB", (80, 40), "red")
    inputs = processor([[Turn("user", "What is it?", (MarkedImage(image, (), image),))]])
    assert int((inputs["input_ids"] == processor.image_token_id).sum()) == 16
    with torch.no_grad():
        logits = model(**inputs).logits
    assert logits.shape[:2] == inputs["input_ids"].shape
    assert torch.isfinite(logits).all()
    _, cropping = load_model(tiny_model_folder, device="cpu", image_aspect_ratio="square")
    assert cropping.geometry.mode == "crop"


def test_load_model_of_the_originals_layout(make_original: Make, tiny_model_folder: Path) -> None:
    folder = make_original(5, extra={"image_aspect_ratio": None})
    with pytest.raises(CheckpointError, match="no tokenizer"):
        load_model(folder, device="cpu")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(tiny_model_folder / name, folder / name)
    model, processor = load_model(folder, device="cpu")
    assert processor.image_token_id == model.config.image_token_id == 400
    assert processor.geometry.mode == "crop"  # as the original without image_aspect_ratio
    assert processor.template.name == "llava_v1"


class Info:
    """The hub's answer about a repository."""

    def __init__(self, names: list[str]) -> None:
        self.sha = "a" * 40
        self.siblings = [type("Sibling", (), {"rfilename": name})() for name in names]


def test_a_hub_id_is_downloaded_at_one_commit(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import huggingface_hub

    calls: list[dict[str, Any]] = []
    names = ["config.json", "model.safetensors", "code.py", "tokenizer.model", "sub/x.json"]
    monkeypatch.setattr(
        huggingface_hub.HfApi, "model_info", lambda self, name, revision=None: Info(names)
    )

    def fetch(name: str, **settings: Any) -> str:
        calls.append(settings)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    assert resolve_folder("owner/model", revision="v1") == tmp_path
    assert calls[0]["revision"] == "a" * 40
    assert calls[0]["allow_patterns"] == ["config.json", "model.safetensors", "tokenizer.model"]


def test_an_unreachable_hub_is_a_download_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import huggingface_hub

    def broken(*args: Any, **settings: Any) -> Any:
        raise OSError("no network")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", broken)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", broken)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(DownloadError, match="owner/model"):
        resolve_folder("owner/model")
    # An earlier download is used, whatever its commit.
    kept = tmp_path / "models--owner--model" / "snapshots" / ("b" * 40)
    kept.mkdir(parents=True)
    (kept / "config.json").write_text("{}")
    assert resolve_folder("owner/model") == kept


def test_errors_of_the_hubs_http_client_are_download_errors(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """They are not OSErrors."""
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError

    root = next(kind for kind in HfHubHTTPError.__bases__ if not issubclass(kind, OSError))

    class ConnectError(root):  # type: ignore[misc, valid-type]
        pass

    def broken(*args: Any, **settings: Any) -> Any:
        raise ConnectError("Name or service not known")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", broken)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(DownloadError, match=r"'owner/model' is not a local folder.*ConnectError"):
        resolve_folder("owner/model")


@pytest.mark.parametrize("given", ["base", "vision_tower", "revision"])
def test_the_default_model_rejects_arguments_it_would_ignore(given: str) -> None:
    with pytest.raises(CheckpointError, match=f"{given} 'owner/model': the default model"):
        load_model(**{given: "owner/model"})  # type: ignore[arg-type]


def test_a_folder_has_no_revisions(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"revision 'v1': .* is a folder"):
        resolve_folder(tmp_path, revision="v1")


def test_bin_files_are_only_downloaded_without_safetensors() -> None:
    both = ["model.safetensors", "pytorch_model.bin", "training_args.bin", "config.json"]
    assert files_to_download(both) == ["config.json", "model.safetensors"]
    assert files_to_download(
        ["pytorch_model-00001-of-00002.bin", "optimizer.bin", "mm_projector.bin"]
    ) == [
        "mm_projector.bin",
        "pytorch_model-00001-of-00002.bin",
    ]


@pytest.mark.parametrize("name", ["../../etc", "a/b/c", "owner/..", "", "https://x.y/z"])
def test_names_that_are_neither_folder_nor_hub_id(name: str) -> None:
    if name == "":
        with pytest.raises(VipLlavaError):
            load_weights(name)
        return
    with pytest.raises(CheckpointError):
        resolve_folder(name + "#")
