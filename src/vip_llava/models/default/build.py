"""The default model: what a user without any weights gets.

A `VipLlavaForConditionalGeneration` like every other one, made of small parts: SmolLM2-135M-Instruct
as language model (fetched once, see `smollm`), an EfficientNet-Lite2 tower and a projector. This
package carries what was trained for it: tower, projector, and a low-rank change (LoRA) of the
language model. It looks at the whole image and once more, closely, at each region (`focal`).
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
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
from vip_llava.models.layouts import listed
from vip_llava.models.safetensors_files import load_tensors, save_tensors
from vip_llava.prompting.focal_views import FocalSettings
from vip_llava.prompting.geometry import ImageGeometry
from vip_llava.prompting.processor import Processor
from vip_llava.prompting.templates import get_template

# A token of the language model's vocabulary that no text of ours uses ("<empty_output>").
IMAGE_TOKEN_ID = 16
FOCAL = FocalSettings()
LORA_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_WEIGHTS = "weights"
_LISTING = "parts.json"

Progress = Callable[[str, int, int], None]


def new_default(language_model: Path) -> VipLlavaForConditionalGeneration:
    """The model with the published language model, and a tower and projector without weights yet.

    Float32 on the CPU; the language model's weights are those of the folder `language_model`.
    """
    text = LlamaConfig.from_pretrained(language_model)
    # The stored weights are bfloat16; a CPU is faster and exacter in float32.
    text.dtype = torch.float32
    config = default_config(EfficientNetLiteConfig(), text, IMAGE_TOKEN_ID)
    with no_init_weights():
        model = VipLlavaForConditionalGeneration(config)
    body: nn.Module = model.model.language_model
    state = load_tensors(language_model / "model.safetensors")
    words = {k.removeprefix("model."): v for k, v in state.items() if k.startswith("model.")}
    body.load_state_dict(words)
    model.tie_weights()
    return model


def default_config(
    vision: EfficientNetLiteConfig, text: LlamaConfig, image_token_id: int
) -> VipLlavaConfig:
    """The configuration of a VipLlava with an EfficientNet-Lite tower, of any size."""
    # transformers 5.17 says "layers", later ones "layer" (and still answer to the older name).
    plural = "vision_feature_layers" in inspect.signature(VipLlavaConfig).parameters
    layer: dict[str, Any] = {"vision_feature_layers" if plural else "vision_feature_layer": 0}
    return VipLlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=image_token_id,
        image_seq_length=vision.tokens_per_view,
        tie_word_embeddings=True,
        **layer,
    )


def default_processor(language_model: Path, focal: FocalSettings = FOCAL) -> Processor:
    """Pad to a 256-pixel square, 65 tokens a view, ChatML, one focal view a region."""
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
    """The default model, ready to answer, and its processor.

    `weights` is a folder of trained parts; by default the one in this package. Raises DownloadError
    where the language model can't be fetched, CheckpointError where the trained parts don't fit.
    """
    language_model = ensure_language_model(progress=progress)
    model = new_default(language_model)
    with nullcontext(weights) if weights is not None else default_parts() as folder:
        apply_trained(model, folder)
        focal = trained_focal(folder)
    tower = model.model.vision_tower
    assert isinstance(tower, EfficientNetLiteTower)
    ready: nn.Module = model.train(False)
    tower.fold()
    ready.to(device=device, dtype=dtype)
    return model, default_processor(language_model, focal)


def default_parts() -> AbstractContextManager[Path]:
    """The folder of trained parts in this package."""
    return as_file(files("vip_llava.models.default") / _WEIGHTS)


def trained_focal(folder: Path) -> FocalSettings:
    """How the parts in a folder were trained to look closely; CheckpointError for odd settings."""
    try:
        return FocalSettings(**read_json(folder / _LISTING).get("focal", {}))
    except TypeError as error:
        raise CheckpointError(f"{folder / _LISTING}: the focal settings: {error}") from None


@dataclass(frozen=True)
class TrainedParts:
    """What training changed, in float32, by piece and by the names inside the piece.

    `lora` has a low-rank change A, B of linear layers of the language model; `language` is all of
    it, where it was tuned whole. One of the two is empty.
    """

    tower: dict[str, Tensor]
    projector: dict[str, Tensor]
    lora: dict[str, Tensor]
    language: dict[str, Tensor]
    lora_scale: float


_PIECES = ("tower", "projector", "lora", "language")


def read_trained(folder: Path) -> TrainedParts:
    """The parts in a folder of `save_trained`. Raises CheckpointError where it is not whole."""
    if not (folder / _LISTING).is_file():
        raise CheckpointError(f"{folder} holds no trained parts: {_LISTING} is missing")
    facts = read_json(folder / _LISTING)
    pieces: dict[str, dict[str, Tensor]] = {piece: {} for piece in _PIECES}
    try:
        names, scale = [str(name) for name in facts["files"]], float(facts["lora_scale"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{folder / _LISTING} lacks or garbles {error}") from error
    for name in names:
        # A listing names files beside it and nothing else.
        if Path(name).name != name or not (folder / name).is_file():
            raise CheckpointError(f"{folder} lacks {name!r}, which {_LISTING} lists")
    for key, value in read_tensors(folder / name for name in names).items():
        piece, _, rest = key.partition(".")
        if piece not in pieces:
            raise CheckpointError(f"{folder}: unexpected weight {key!r}")
        pieces[piece][rest] = value.float()
    return TrainedParts(**pieces, lora_scale=scale)


def apply_trained(model: VipLlavaForConditionalGeneration, folder: Path) -> None:
    """Put trained tower, projector and language changes (folder of `save_trained`) into the model.

    Raises CheckpointError where names or shapes differ; the model is then of no use.
    """
    parts = read_trained(folder)
    load_trained(model, parts, folder)
    _merge(model.model.language_model, parts.lora, parts.lora_scale, folder)


def load_trained(
    model: VipLlavaForConditionalGeneration, parts: TrainedParts, folder: Path
) -> None:
    """All parts but the low-rank change, which may be merged or go on being trained."""
    pieces: list[tuple[str, dict[str, Tensor], nn.Module]] = [
        ("tower", parts.tower, model.model.vision_tower),
        ("projector", parts.projector, model.model.multi_modal_projector),
    ]
    if parts.language:
        pieces.append(("language model", parts.language, model.model.language_model))
    for piece, state, module in pieces:
        try:
            found = module.load_state_dict(state, strict=False)
        except RuntimeError as error:  # shapes
            raise CheckpointError(f"{folder}: the {piece} does not fit: {error}") from error
        missing = [k for k in found.missing_keys if not k.endswith("num_batches_tracked")]
        if missing or found.unexpected_keys:
            raise CheckpointError(
                f"{folder}: the {piece} lacks {listed(missing) or 'none'} and has unexpected "
                f"{listed(found.unexpected_keys) or 'none'}"
            )


@torch.no_grad()
def _merge(body: nn.Module, lora: dict[str, Tensor], scale: float, folder: Path) -> None:
    """weight += scale * B @ A for each changed linear layer."""
    names = sorted({key.removesuffix(".A").removesuffix(".B") for key in lora})
    for name in names:
        try:
            weight = body.get_submodule(name).weight
            assert isinstance(weight, nn.Parameter)
            change = scale * (lora[f"{name}.B"] @ lora[f"{name}.A"])
            weight.add_(change.to(weight.dtype))
        except (AttributeError, KeyError, RuntimeError) as error:
            raise CheckpointError(f"{folder}: can't change the layer {name!r}: {error}") from error


def trained_state(model: VipLlavaForConditionalGeneration, *, whole: bool) -> dict[str, Tensor]:
    """Everything trained, by the names of the stored parts; the LoRA layers are peft's.

    `whole`: the language model was tuned itself and has no LoRA layers.
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
        for ours, theirs in (("A", ".lora_A.default.weight"), ("B", ".lora_B.default.weight")):
            if key.endswith(theirs):
                state[f"lora.{key.removesuffix(theirs)}.{ours}"] = value
    return state


def save_trained(
    state: dict[str, Tensor],
    folder: Path,
    *,
    lora_scale: float,
    facts: dict[str, Any],
    focal: FocalSettings = FOCAL,
) -> None:
    """Write trained parts as float16 safetensors, a file for each part, and what they are.

    `focal`: how the processor they were trained with looks closely. The listing is written last: a folder without it is not whole.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _LISTING).unlink(missing_ok=True)
    names = []
    for piece in _PIECES:
        part = {k: v for k, v in state.items() if k.startswith(f"{piece}.")}
        if not part:
            continue
        keys = sorted(part)
        # Files stay small enough for any host: a part is cut in two where it is large.
        cuts = 2 if sum(v.numel() for v in part.values()) > 7_000_000 else 1
        for cut in range(cuts):
            name = f"{piece}-{cut + 1}-of-{cuts}.safetensors"
            save_tensors(folder / name, {k: part[k].half() for k in keys[cut::cuts]})
            names.append(name)
    listing = {"files": names, "lora_scale": lora_scale, "focal": asdict(focal), **facts}
    (folder / _LISTING).write_text(json.dumps(listing, indent=1) + "\n", encoding="utf-8")
