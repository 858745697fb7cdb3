"""Vision towers of every kind: features, numbers of tokens, normalization, errors."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import (
    AutoModel,
    Dinov2Config,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    SiglipConfig,
    SiglipModel,
    SiglipVisionConfig,
    VipLlavaConfig,
    VipLlavaForConditionalGeneration,
)

from vip_llava import Box, load
from vip_llava.errors import CheckpointError
from vip_llava.models.checkpoints import read_vision_tower
from vip_llava.models.convert import convert
from vip_llava.models.loading import load_model, load_weights
from vip_llava.models.spec import FEATURE_LAYERS_ARGUMENT
from vip_llava.models.vision_towers import (
    canonical_tower_id,
    get_vision_tower,
    published_tower,
    registered_vision_towers,
    tower_config,
)
from vip_llava.prompting.turns import MarkedImage, Turn

Make = Callable[..., tuple[Path, Any]]
SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "image_size": 56,
}
PATCHES = 16


def siglip() -> SiglipVisionConfig:
    return SiglipVisionConfig(**SIZES, intermediate_size=64, patch_size=14)


def dinov2(**settings: Any) -> Dinov2Config:
    return Dinov2Config(**SIZES, patch_size=14, layerscale_value=0.5, **settings)


@pytest.fixture
def make_llava(tiny_model_folder: Path, tmp_path: Path) -> Make:
    """`make_llava(vision, layers, vip=False, drop=False)`: a folder, and its model in transformers."""

    def make(
        vision: Any, layers: int | list[int], vip: bool = False, drop: bool = False
    ) -> tuple[Path, Any]:
        config = json.loads((tiny_model_folder / "config.json").read_text())
        text = LlamaConfig(**config["text_config"])
        common: dict[str, Any] = {
            "text_config": text,
            "vision_config": vision,
            "image_token_index": 399,
        }
        torch.manual_seed(0)
        model: Any
        if vip:
            model = VipLlavaForConditionalGeneration(
                VipLlavaConfig(**common, **{FEATURE_LAYERS_ARGUMENT: layers})
            )
        else:
            strategy = "default" if drop else "full"
            model = LlavaForConditionalGeneration(
                LlavaConfig(
                    **common,
                    vision_feature_layer=layers,
                    vision_feature_select_strategy=strategy,
                )
            )
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.normal_(std=0.15)
        folder = tmp_path / "llava"
        model.eval().save_pretrained(folder)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copyfile(tiny_model_folder / name, folder / name)
        return folder, model

    return make


CASES = [
    (siglip, -2, {}, PATCHES, 3),
    (siglip, [-1, 1], {}, PATCHES, 4),
    (dinov2, -2, {"drop": True}, PATCHES, 3),
    (dinov2, -2, {}, PATCHES + 1, 3),
    (dinov2, [-2, 1, -3], {"vip": True}, PATCHES, 3),
    (lambda: dinov2(use_swiglu_ffn=True), [-1, 0], {"vip": True}, PATCHES, 4),
]


@pytest.mark.parametrize(("vision", "layers", "form", "tokens", "depth"), CASES)
def test_features_are_those_of_the_tower_in_transformers(
    vision: Callable[[], Any],
    layers: int | list[int],
    form: dict[str, bool],
    tokens: int,
    depth: int,
    make_llava: Make,
) -> None:
    folder, reference = make_llava(vision(), layers, **form)
    model: Any = load_weights(folder, device="cpu")
    pixels = torch.randn(2, 3, 56, 56, generator=torch.Generator().manual_seed(1))
    tower = reference.model.vision_tower
    with torch.no_grad():
        states = tower(pixels, output_hidden_states=True).hidden_states
        picked = [states[layer] for layer in ([layers] if isinstance(layers, int) else layers)]
        first = int(form.get("drop", False) or form.get("vip", False))
        features = torch.cat([state[:, first:] for state in picked], dim=-1)
        want = reference.model.multi_modal_projector(features)
        got = torch.stack(list(model.get_image_features(pixel_values=pixels).pooler_output))
    assert got.shape == (2, tokens, 32)
    assert torch.equal(got, want)
    assert model.config.image_seq_length == tokens
    assert model.config.vision_config.num_hidden_layers == depth < 5
    path = get_vision_tower(model.config.vision_config.model_type).layers
    assert path is not None
    assert len(model.model.vision_tower.get_submodule(path)) == depth


def test_the_shipped_tower_is_registered_like_the_others(make_llava: Make) -> None:
    from vip_llava.models.default.efficientnet import EfficientNetLiteConfig

    folder, reference = make_llava(EfficientNetLiteConfig(image_size=64), 0, vip=True)
    model: Any = load_weights(folder, device="cpu")
    assert model.config.image_seq_length == 65
    pixels = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        want, got = (
            m.get_image_features(pixel_values=pixels).pooler_output for m in (reference, model)
        )
    assert torch.equal(torch.stack(list(got)), torch.stack(list(want)))


@pytest.mark.parametrize(
    ("vision", "layers", "form", "mean"),
    [
        (siglip, -2, {}, (0.5, 0.5, 0.5)),
        (dinov2, [-2, -3], {"vip": True}, (0.485, 0.456, 0.406)),
    ],
)
def test_questions_are_answered_through_the_engine(
    vision: Callable[[], Any],
    layers: int | list[int],
    form: dict[str, bool],
    mean: tuple[float, float, float],
    make_llava: Make,
) -> None:
    folder, _ = make_llava(vision(), layers, **form)
    model, processor = load_model(folder, device="cpu")
    assert processor.tokens_per_view == PATCHES
    assert (processor.geometry.mean, processor.geometry.size) == (mean, 56)
    assert processor.geometry.fill == tuple(int(255 * value) for value in mean)
    image = Image.new("RGB", (80, 40), (200, 30, 60))
    turns = [Turn("user", "What is it?", (MarkedImage(image, drawn=image),))]
    ids, _ = processor.encode(turns)
    generator: Any = model
    out = generator.generate(
        input_ids=torch.tensor([ids]),
        pixel_values=processor.pixels(turns),
        max_new_tokens=6,
        do_sample=False,
    )
    assistant = load(folder, device="cpu")
    answer = assistant.ask(image, "What is it?", max_new_tokens=6)
    assert answer.usage.image_tokens == PATCHES
    assert answer.text == processor.tokenizer.decode(out[0, len(ids) :].tolist()).strip()
    marked = assistant.ask(image, "What is <region:1>?", [Box(5, 5, 30, 30)], max_new_tokens=6)
    assert marked.usage.image_tokens == PATCHES


def test_a_tower_that_is_not_registered_is_an_error(make_llava: Make) -> None:
    folder, _ = make_llava(siglip(), -2)
    config = json.loads((folder / "config.json").read_text())
    config["vision_config"]["model_type"] = "vit"
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="vision tower type 'vit' is not registered") as error:
        load_weights(folder, device="cpu")
    for name in ("clip_vision_model", "siglip_vision_model", "dinov2", "register_vision_tower"):
        assert name in str(error.value)


def test_weights_that_are_missing_are_named(make_llava: Make) -> None:
    from safetensors.torch import load_file, save_file

    folder, _ = make_llava(dinov2(), [-2, 1], vip=True)
    weights = load_file(folder / "model.safetensors")
    name = next(name for name in weights if name.endswith("embeddings.cls_token"))
    del weights[name]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"missing: .*embeddings\.cls_token"):
        load_weights(folder, device="cpu")


def test_a_folder_of_a_whole_siglip_gives_its_vision_half(tmp_path: Path) -> None:
    text = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "vocab_size": 50}
    config = SiglipConfig(
        text_config={**text, "num_attention_heads": 4}, vision_config=siglip().to_dict()
    )
    whole = SiglipModel(config)
    whole.save_pretrained(tmp_path)
    found, weights = read_vision_tower(tmp_path)
    assert (found["model_type"], found["hidden_size"]) == ("siglip_vision_model", 32)
    want = AutoModel.from_config(siglip()).state_dict().keys()
    assert {name.removeprefix("model.vision_tower.") for name in weights} == want
    with pytest.raises(CheckpointError, match=f"{tmp_path}: vision tower type 'bert'"):
        (tmp_path / "config.json").write_text('{"model_type": "bert"}')
        read_vision_tower(tmp_path)


def test_only_clip_towers_have_the_originals_layout(make_llava: Make, tmp_path: Path) -> None:
    folder, reference = make_llava(siglip(), -2)
    with pytest.raises(CheckpointError, match="CLIP towers only, not 'siglip_vision_model'"):
        convert(folder, tmp_path / "original", "original")
    hub = convert(folder, tmp_path / "hub", "hf")
    settings = json.loads((hub / "preprocessor_config.json").read_text())
    assert settings["image_mean"] == [0.5, 0.5, 0.5]
    processor = json.loads((hub / "processor_config.json").read_text())
    assert processor["num_additional_image_tokens"] == 0
    assert processor["vision_feature_select_strategy"] == "full"
    again: Any = LlavaForConditionalGeneration.from_pretrained(hub)
    for name, weight in reference.state_dict().items():
        assert torch.equal(again.state_dict()[name], weight), name


def test_tokens_follow_from_the_image_size() -> None:
    for model_type, size, kept, dropped in (
        ("clip_vision_model", 336, 577, 576),
        ("siglip_vision_model", 384, 729, 728),
        ("dinov2", 518, 1370, 1369),
    ):
        tower = get_vision_tower(model_type)
        config = tower.complete({"image_size": [size, size], "patch_size": 14})
        assert tower.num_tokens(config, drop_class_token=False) == kept
        assert tower.num_tokens(config, drop_class_token=True) == dropped
    shipped = get_vision_tower("vip_llava_efficientnet_lite")
    assert shipped.num_tokens(shipped.complete({}), drop_class_token=True) == 65
    with pytest.raises(CheckpointError, match="square"):
        get_vision_tower("dinov2").image_size({"image_size": [224, 336]})


def test_published_towers_need_no_download() -> None:
    assert canonical_tower_id("clip_4layers_336") == "openai/clip-vit-large-patch14-336"
    for tower in registered_vision_towers():
        for name in tower.published:
            config = published_tower(name)
            assert config is not None and config == tower_config(config)
            assert tower.num_tokens(config, drop_class_token=False) > 100
    assert published_tower("openai/no-such-tower") is None
