"""The default model, for users without any weights.

It is a `VipLlavaForConditionalGeneration` of small parts: SmolLM2-135M-Instruct as language model
(downloaded once, see `language_model.py`), an EfficientNet-Lite2 tower and a projector. The package
contains what was trained for it: tower, projector, and a LoRA of the language model. The model
reads the whole image and a focal view of each region.

This module does not know how the parts are trained.
"""

from __future__ import annotations

import json
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    LlamaConfig,
    PreTrainedTokenizerFast,
    VipLlavaConfig,
    VipLlavaForConditionalGeneration,
)
from transformers.initialization import no_init_weights

from vip_llava.errors import CheckpointError
from vip_llava.models.checkpoint_files import read_json, read_tensors
from vip_llava.models.default.efficientnet import (
    PIXEL_MEAN,
    PIXEL_STD,
    EfficientNetLiteConfig,
    EfficientNetLiteTower,
)
from vip_llava.models.default.find_marks import find_marks
from vip_llava.models.default.language_model import ensure_language_model
from vip_llava.models.hub import Progress
from vip_llava.models.layouts import format_names
from vip_llava.models.safetensors_files import load_tensors, save_tensors
from vip_llava.models.spec import FEATURE_LAYERS_ARGUMENT
from vip_llava.prompting.focal_views import FocalSettings
from vip_llava.prompting.geometry import ImageGeometry
from vip_llava.prompting.processor import Processor
from vip_llava.prompting.templates import get_template

# A token of the language model's vocabulary that no prompt uses ("<empty_output>").
IMAGE_TOKEN_ID = 16
FOCAL = FocalSettings()
LORA_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_WEIGHTS = "weights"
_MANIFEST = "parts.json"
_MAX_FILE_WEIGHTS = 7_000_000


def new_default(language_model: Path) -> VipLlavaForConditionalGeneration:
    """The model with the weights of the folder `language_model`; tower and projector are random.

    It is float32 on the CPU.
    """
    text = LlamaConfig.from_pretrained(language_model)
    # The stored weights are bfloat16; a CPU is faster and more exact in float32.
    text.dtype = torch.float32
    config = default_config(EfficientNetLiteConfig(), text, IMAGE_TOKEN_ID)
    with no_init_weights():
        model = VipLlavaForConditionalGeneration(config)
    decoder: nn.Module = model.model.language_model
    state = load_tensors(language_model / "model.safetensors")
    decoder.load_state_dict(
        {k.removeprefix("model."): v for k, v in state.items() if k.startswith("model.")}
    )
    model.tie_weights()
    return model


def default_config(
    vision: EfficientNetLiteConfig, text: LlamaConfig, image_token_id: int
) -> VipLlavaConfig:
    """The configuration of a VipLlava with an EfficientNet-Lite tower."""
    layer: dict[str, Any] = {FEATURE_LAYERS_ARGUMENT: 0}
    return VipLlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=image_token_id,
        image_seq_length=vision.tokens_per_view,
        tie_word_embeddings=True,
        **layer,
    )


def default_processor(language_model: Path, focal: FocalSettings = FOCAL) -> Processor:
    """The processor: pads to a square of 256 pixels, 65 tokens per view, ChatML."""
    vision = EfficientNetLiteConfig()
    geometry = ImageGeometry(
        mode="pad", size=vision.image_size, mean=(PIXEL_MEAN,) * 3, std=(PIXEL_STD,) * 3
    )
    tokenizer = PreTrainedTokenizerFast.from_pretrained(language_model)
    return Processor(
        tokenizer,
        geometry,
        get_template("chatml"),
        image_token_id=IMAGE_TOKEN_ID,
        tokens_per_view=vision.tokens_per_view,
        focal=focal,
        find_marks=find_marks,
    )


def load_default(
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    weights: Path | None = None,
    progress: Progress | None = None,
) -> tuple[VipLlavaForConditionalGeneration, Processor]:
    """The default model for inference, and its processor.

    Args:
        weights: folder of trained parts; the one in this package by default.

    Raises:
        DownloadError: the language model cannot be downloaded.
        CheckpointError: the trained parts do not fit.
    """
    language_model = ensure_language_model(progress=progress)
    model = new_default(language_model)
    with nullcontext(weights) if weights is not None else default_parts() as folder:
        apply_trained(model, folder)
        focal = trained_focal(folder)
    tower = model.model.vision_tower
    assert isinstance(tower, EfficientNetLiteTower)
    module: nn.Module = model.train(False)
    tower.fold()
    module.to(device=device, dtype=dtype)
    return model, default_processor(language_model, focal)


def default_parts() -> AbstractContextManager[Path]:
    """The folder of trained parts in this package."""
    return as_file(files("vip_llava.models.default") / _WEIGHTS)


def trained_focal(folder: Path) -> FocalSettings:
    """The focal-view settings that the parts in a folder were trained with.

    Raises:
        CheckpointError: an unknown setting.
    """
    try:
        return FocalSettings(**read_json(folder / _MANIFEST).get("focal", {}))
    except TypeError as error:
        raise CheckpointError(f"{folder / _MANIFEST}: focal: {error}") from None


@dataclass(frozen=True)
class TrainedParts:
    """Trained weights in float32, by their names inside each part.

    Args:
        lora: matrices `<layer>.A` and `<layer>.B` of linear layers of the language model.
        language: the language model, if it was trained without LoRA; `lora` is empty then.
        lora_scale: factor of B @ A.
    """

    tower: dict[str, Tensor]
    projector: dict[str, Tensor]
    lora: dict[str, Tensor]
    language: dict[str, Tensor]
    lora_scale: float


_PARTS = ("tower", "projector", "lora", "language")


def read_trained(folder: Path) -> TrainedParts:
    """Read a folder that `save_trained` wrote.

    Raises:
        CheckpointError: a file is missing or damaged, or a weight is unexpected.
    """
    if not (folder / _MANIFEST).is_file():
        raise CheckpointError(f"{folder} contains no trained parts: {_MANIFEST} is missing")
    manifest = read_json(folder / _MANIFEST)
    parts: dict[str, dict[str, Tensor]] = {part: {} for part in _PARTS}
    try:
        names, scale = [str(name) for name in manifest["files"]], float(manifest["lora_scale"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{folder / _MANIFEST}: missing or invalid: {error}") from error
    for name in names:
        # The manifest may name files of its own folder only.
        if Path(name).name != name or not (folder / name).is_file():
            raise CheckpointError(f"{folder} lacks {name!r}, which {_MANIFEST} lists")
    for key, value in read_tensors(folder / name for name in names).items():
        part, _, inner = key.partition(".")
        if part not in parts:
            raise CheckpointError(f"{folder}: unexpected weight {key!r}")
        parts[part][inner] = value.float()
    return TrainedParts(**parts, lora_scale=scale)


def apply_trained(model: VipLlavaForConditionalGeneration, folder: Path) -> None:
    """Load the trained parts of a folder into the model, with the LoRA merged.

    Raises:
        CheckpointError: names or shapes differ; the model is then partly changed.
    """
    parts = read_trained(folder)
    load_trained(model, parts, folder)
    _merge(model.model.language_model, parts.lora, parts.lora_scale, folder)


def load_trained(
    model: VipLlavaForConditionalGeneration, parts: TrainedParts, folder: Path
) -> None:
    """Load all parts but the LoRA, which may be merged or trained further.

    Args:
        folder: what errors name.

    Raises:
        CheckpointError: names or shapes differ.
    """
    modules: list[tuple[str, dict[str, Tensor], nn.Module]] = [
        ("tower", parts.tower, model.model.vision_tower),
        ("projector", parts.projector, model.model.multi_modal_projector),
    ]
    if parts.language:
        modules.append(("language model", parts.language, model.model.language_model))
    for part, state, module in modules:
        try:
            found = module.load_state_dict(state, strict=False)
        except RuntimeError as error:  # shapes
            raise CheckpointError(f"{folder}: the {part} does not fit: {error}") from error
        missing = [k for k in found.missing_keys if not k.endswith("num_batches_tracked")]
        if missing or found.unexpected_keys:
            raise CheckpointError(
                f"{folder}: the {part} lacks {format_names(missing) or 'none'} and has unexpected "
                f"{format_names(found.unexpected_keys) or 'none'}"
            )


@torch.no_grad()
def _merge(decoder: nn.Module, lora: dict[str, Tensor], scale: float, folder: Path) -> None:
    """weight += scale * B @ A for each linear layer in `lora`."""
    names = sorted({key.removesuffix(".A").removesuffix(".B") for key in lora})
    for name in names:
        try:
            weight = decoder.get_submodule(name).weight
            assert isinstance(weight, nn.Parameter)
            delta = scale * (lora[f"{name}.B"] @ lora[f"{name}.A"])
            weight.add_(delta.to(weight.dtype))
        except (AttributeError, KeyError, RuntimeError) as error:
            raise CheckpointError(f"{folder}: cannot merge the layer {name!r}: {error}") from error


def trained_state(model: VipLlavaForConditionalGeneration, *, whole: bool) -> dict[str, Tensor]:
    """The trained weights of a model under the names of the stored parts.

    Args:
        whole: the language model was trained without LoRA; it has peft's LoRA layers otherwise.
    """
    state: dict[str, Tensor] = {}
    for key, value in model.model.vision_tower.state_dict().items():
        if not key.endswith("num_batches_tracked"):
            state[f"tower.{key}"] = value
    for key, value in model.model.multi_modal_projector.state_dict().items():
        state[f"projector.{key}"] = value
    for key, value in model.model.language_model.state_dict().items():
        if whole:
            state[f"language.{key}"] = value
        for side in "AB":
            suffix = f".lora_{side}.default.weight"
            if key.endswith(suffix):
                state[f"lora.{key.removesuffix(suffix)}.{side}"] = value
    return state


def save_trained(
    state: dict[str, Tensor],
    folder: Path,
    *,
    lora_scale: float,
    metadata: dict[str, Any],
    focal: FocalSettings = FOCAL,
) -> None:
    """Write trained parts as float16 safetensors, one or two files per part, and a manifest.

    Args:
        state: as from `trained_state`.
        metadata: further entries of the manifest.
        focal: focal-view settings of the processor in training.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _MANIFEST).unlink(missing_ok=True)
    names = []
    for part in _PARTS:
        keys = sorted(key for key in state if key.startswith(f"{part}."))
        if not keys:
            continue
        # Files stay small enough for any repository host.
        shards = 2 if sum(state[key].numel() for key in keys) > _MAX_FILE_WEIGHTS else 1
        for shard in range(shards):
            name = f"{part}-{shard + 1}-of-{shards}.safetensors"
            save_tensors(folder / name, {k: state[k].half() for k in keys[shard::shards]})
            names.append(name)
    manifest = {"files": names, "lora_scale": lora_scale, "focal": asdict(focal), **metadata}
    # Written last: a folder without it is incomplete.
    (folder / _MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
