"""The model and processor that a run starts from: a whole model, a language model, or a tiny one.

A language model gets a new projector as a small folder of its own, in the original's layout, so
that the one door of `model` opens it like any other. It chooses nothing of what learns (`parts`,
`adapters`) and knows no rows.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from vip_llava.errors import CheckpointError
from vip_llava.models.building import build
from vip_llava.models.checkpoint_files import read_json
from vip_llava.models.checkpoints import Kind, Source, kind_of, open_checkpoint
from vip_llava.models.hub import DEFAULT_NAME, Progress, resolve_folder
from vip_llava.models.loading import load_model
from vip_llava.models.placement import Placement
from vip_llava.models.processor_loading import build_processor
from vip_llava.models.safetensors_files import save_tensors
from vip_llava.models.truncate_layers import guard_placeholder
from vip_llava.prompting.processor import Processor
from vip_llava.training.recipes.recipe import Model, Recipe
from vip_llava.training.recipes.tiny import write_tiny

__all__ = ["Start", "open_start", "write_new_projector"]

FIVE_LAYER_TOWER = "clip_4layers_336"
"""What the original calls CLIP ViT-L/14-336 when five of its layers are read."""
_CLIP_336 = "openai/clip-vit-large-patch14-336"
# What a recipe says instead, where `model.start` names a part of a model. `--base` of the command
# line is `model.base`, so the general message would ask for both in one recipe.
_PARTIAL: dict[Kind, str] = {
    "projector": "name it as model.projector, and its language model as model.base",
    "lora": "name it as model.adapter, and the model it belongs to as model.start",
    "language_model": "name it as model.base, with model.projector and model.tower",
}


@dataclass(slots=True)
class Start:
    """What a run starts from.

    Args:
        folders: where tokenizer and image settings were found, most specific first.
        belongs_to: what an adapter or projector of this run is to be put on again.
        projector_config: `config.json` for a projector or adapter folder, where the run started
            from a language model; None where it started from a whole model.
    """

    model: PreTrainedModel
    processor: Processor
    folders: list[Path]
    belongs_to: str
    projector_config: dict[str, Any] | None = None


def open_start(
    recipe: Recipe,
    work: Path,
    *,
    dtype: torch.dtype,
    device: str | torch.device = "cpu",
    texts: Iterable[str] = (),
    progress: Progress | None = None,
) -> Start:
    """Open or make what the recipe starts from.

    Args:
        work: folder of the run; a new projector or tiny model is written into it.
        texts: the rows' texts, for the tokenizer of a tiny model.

    Raises:
        CheckpointError: something can't be opened as it is. DownloadError: or fetched.
    """
    wanted = recipe.model
    base = None
    if wanted.tiny is not None:
        name = str(write_tiny(work / "tiny", wanted.tiny, texts, recipe.seed))
    elif wanted.base is None:
        assert wanted.start is not None
        name = wanted.start
    else:
        base = wanted.base
        assert wanted.projector is not None
        name = wanted.projector
        if name == "new":
            name = str(write_new_projector(work / "new-projector", wanted, recipe.seed, progress))
    if name == DEFAULT_NAME:
        return _default(wanted, dtype, device, progress)
    source = Source.named(name, base, wanted.tower, progress=progress)
    if base is None and (kind := kind_of(source.folder)) in _PARTIAL:
        raise CheckpointError(f"{name} is no whole model to start from; {_PARTIAL[kind]}")
    checkpoint = open_checkpoint(source)
    processor = build_processor(checkpoint, wanted.template, wanted.aspect)
    placement = Placement.of(dtype, device, None, None)
    model = build(checkpoint, placement, progress=progress)
    if processor.image_token_id != checkpoint.blueprint.image_token_id:
        guard_placeholder(model, processor.image_token_id)
        config: Any = model.config
        config.image_token_id = processor.image_token_id
    config_of_projector = dict(checkpoint.configs[0]) if base is not None else None
    if config_of_projector is not None and "text_config" in config_of_projector:
        config_of_projector = None  # `base` was a whole model after all
    return Start(model, processor, checkpoint.folders, base or name, config_of_projector)


def _default(
    wanted: Model, dtype: torch.dtype, device: str | torch.device, progress: Progress | None
) -> Start:
    from vip_llava.models.default.language_model import ensure_language_model

    model, processor = load_model(
        None,
        dtype=dtype,
        device=device,
        template=wanted.template,
        image_aspect_ratio=wanted.aspect,
        progress=progress,
    )
    return Start(model, processor, [ensure_language_model(progress=progress)], DEFAULT_NAME)


def write_new_projector(
    folder: Path, wanted: Model, seed: int, progress: Progress | None = None
) -> Path:
    """Write a folder with a new projector for `wanted.base` and `wanted.tower`, or keep it.

    Two layers with GELU, behind a LayerNorm where five layers of the encoder are read; weights as
    torch starts them, from `seed`.

    Raises:
        CheckpointError: no tower is named, or base or tower are not what they should be.
    """
    assert wanted.base is not None
    if wanted.tower is None:
        raise CheckpointError("a new projector needs the image encoder: name it as model.tower")
    if (folder / "config.json").is_file():
        return folder
    text = read_json(resolve_folder(wanted.base, progress=progress) / "config.json")
    tower = read_json(resolve_folder(wanted.tower, progress=progress) / "config.json")
    vision = tower.get("vision_config", tower)
    try:
        width, hidden = int(vision["hidden_size"]), int(text["hidden_size"])
    except (KeyError, TypeError):
        raise CheckpointError(
            f"{wanted.base} or {wanted.tower}: config.json has no hidden_size, so a projector can't "
            "be made for it; expected a language model and a CLIP image encoder"
        ) from None
    five = not isinstance(wanted.features, int)
    inside = width * (5 if five else 1)
    named = FIVE_LAYER_TOWER if five and wanted.tower == _CLIP_336 else _place(wanted.tower)
    config = {
        **text,
        "model_type": f"llava_{text.get('model_type', 'llama')}",
        "mm_vision_tower": named,
        "mm_hidden_size": inside,
        "mm_projector_type": "mlp2x_gelu",
        "mm_vision_select_layer": wanted.features if isinstance(wanted.features, int) else -2,
        "mm_vision_select_feature": "patch",
        "mm_use_im_start_end": False,
        "mm_use_im_patch_token": False,
        "image_aspect_ratio": wanted.aspect or "square",
        "use_mm_proj": True,
    }
    folder.mkdir(parents=True, exist_ok=True)
    save_tensors(folder / "mm_projector.safetensors", _new_weights(inside, hidden, five, seed))
    text_of_config = json.dumps(config, indent=2) + "\n"
    (folder / "config.json").write_text(text_of_config, encoding="utf-8")  # last: it completes
    return folder


def _place(name: str) -> str:
    """A folder as a whole path, so that it is found from elsewhere; a hub id as it is."""
    folder = Path(name).expanduser()
    return str(folder.resolve()) if folder.is_dir() else name


def _new_weights(inside: int, hidden: int, norm: bool, seed: int) -> dict[str, torch.Tensor]:
    state = torch.random.get_rng_state()
    torch.manual_seed(seed)
    try:
        layers = [nn.Linear(inside, hidden), nn.GELU(), nn.Linear(hidden, hidden)]
    finally:
        torch.random.set_rng_state(state)
    root = "model.mm_projector."
    stack = root + ("final_linear." if norm else "")
    weights = {f"{stack}{k}": v for k, v in nn.Sequential(*layers).state_dict().items()}
    if norm:
        weights |= {
            f"{root}clip_layernorm.weight": torch.ones(inside),
            f"{root}clip_layernorm.bias": torch.zeros(inside),
        }
    return weights
