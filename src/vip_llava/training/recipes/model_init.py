"""The initial model and processor of a run: a multimodal model, a language model, or a tiny one.

A language model gets a new projector as a small folder in the original's layout, so that `models`
opens it like any other checkpoint. It does not know which parts are trained, or rows.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from vip_llava.errors import CheckpointError
from vip_llava.models.building import build_model
from vip_llava.models.checkpoint_files import read_json
from vip_llava.models.checkpoints import (
    CheckpointLayout,
    CheckpointSource,
    detect_layout,
    open_checkpoint,
)
from vip_llava.models.convert import require_original_layout
from vip_llava.models.hub import DEFAULT_NAME, Progress, resolve_folder
from vip_llava.models.image_token import allow_image_token
from vip_llava.models.loading import load_model
from vip_llava.models.placement import Placement
from vip_llava.models.processor_loading import build_processor
from vip_llava.models.safetensors_files import save_tensors
from vip_llava.models.spec import FIVE_LAYERS, METADATA_KEY
from vip_llava.models.truncate_layers import hidden_state_indices
from vip_llava.models.vision_towers import get_vision_tower, tower_config
from vip_llava.prompting.processor import Processor
from vip_llava.training.json_files import write_json
from vip_llava.training.recipes.recipe import ModelConfig, Recipe
from vip_llava.training.recipes.tiny import write_tiny

__all__ = ["InitialModel", "load_initial_model", "write_new_projector"]

FIVE_LAYER_TOWER = "clip_4layers_336"
"""The original's name of CLIP ViT-L/14-336 with five layers read."""
_CLIP_336 = "openai/clip-vit-large-patch14-336"
# How to name an incomplete checkpoint in a recipe, for errors about `model.start`.
_INCOMPLETE: dict[CheckpointLayout, str] = {
    "projector": "name it as model.projector, and its language model as model.base",
    "lora": "name it as model.adapter, and the model it belongs to as model.start",
    "language_model": "name it as model.base, with model.projector and model.tower",
}


@dataclass(slots=True)
class InitialModel:
    """The model that a run starts from.

    Args:
        folders: where tokenizer and image settings were found, most specific first.
        base: the name of the model that an adapter or projector of this run belongs to.
        projector_config: `config.json` for an exported projector or adapter, if the run started
            from a language model.
    """

    model: PreTrainedModel
    processor: Processor
    folders: list[Path]
    base: str
    projector_config: dict[str, Any] | None = None


def load_initial_model(
    recipe: Recipe,
    work: Path,
    *,
    dtype: torch.dtype,
    device: str | torch.device = "cpu",
    texts: Iterable[str] = (),
    progress: Progress | None = None,
) -> InitialModel:
    """Load or create the initial model of a recipe.

    Args:
        work: folder of the run; a new projector or tiny model is written into it.
        texts: texts of the rows, for the tokenizer of a tiny model.

    Raises:
        CheckpointError: a checkpoint is incomplete or can't be opened. DownloadError: it can't be
            downloaded.
    """
    config = recipe.model
    base = None
    if config.tiny is not None:
        name = str(write_tiny(work / "tiny", config.tiny, texts, recipe.seed))
    elif config.base is None:
        assert config.start is not None
        name = config.start
    else:
        base = config.base
        assert config.projector is not None
        name = config.projector
        if name == "new":
            name = str(write_new_projector(work / "new-projector", config, recipe.seed, progress))
    if name == DEFAULT_NAME:
        return _load_default(config, dtype, device, progress)
    source = CheckpointSource.from_names(name, base, config.tower, progress=progress)
    if base is None and (layout := detect_layout(source.folder)) in _INCOMPLETE:
        raise CheckpointError(f"{name} is not a complete model; {_INCOMPLETE[layout]}")
    checkpoint = open_checkpoint(source)
    if recipe.save.layout == "original":
        require_original_layout(checkpoint.spec)
    processor = build_processor(checkpoint, config.template, config.aspect)
    placement = Placement.resolve(dtype, device, None, None)
    model = build_model(checkpoint, placement, progress=progress)
    if processor.image_token_id != checkpoint.spec.image_token_id:
        allow_image_token(model, processor.image_token_id)
        settings: Any = model.config
        settings.image_token_id = processor.image_token_id
    # With a multimodal model as `base` the exported folder needs no settings of its own.
    own = base is not None and "text_config" not in checkpoint.config
    projector_config = dict(checkpoint.config) if own else None
    return InitialModel(model, processor, checkpoint.folders, base or name, projector_config)


def _load_default(
    config: ModelConfig, dtype: torch.dtype, device: str | torch.device, progress: Progress | None
) -> InitialModel:
    from vip_llava.models.default.language_model import ensure_language_model

    model, processor = load_model(
        None,
        dtype=dtype,
        device=device,
        template=config.template,
        image_aspect_ratio=config.aspect,
        progress=progress,
    )
    return InitialModel(model, processor, [ensure_language_model(progress=progress)], DEFAULT_NAME)


def write_new_projector(
    folder: Path, config: ModelConfig, seed: int, progress: Progress | None = None
) -> Path:
    """Write a folder with a new projector for `config.base` and `config.tower`, or keep it.

    Two linear layers with GELU between them, behind a LayerNorm if several hidden states are read;
    torch's default initialization from `seed`.

    Raises:
        CheckpointError: no tower is named, its type is not registered or it lacks a hidden state
            of `config.features`, or the base has no hidden size.
    """
    assert config.base is not None
    if config.tower is None:
        raise CheckpointError("a new projector needs a vision tower: name it as model.tower")
    if (folder / "config.json").is_file():
        return folder
    text = read_json(resolve_folder(config.base, progress=progress) / "config.json")
    vision = tower_config(
        read_json(resolve_folder(config.tower, progress=progress) / "config.json")
    )
    depth = get_vision_tower(vision["model_type"]).num_hidden_layers(vision)
    states = hidden_state_indices(config.features, depth)
    if not isinstance(text.get("hidden_size"), int):
        raise CheckpointError(
            f"{config.base}: config.json has no hidden_size; a new projector needs a language model"
        )
    several = not isinstance(config.features, int)
    input_size, hidden = int(vision["hidden_size"]) * len(states), int(text["hidden_size"])
    folder.mkdir(parents=True, exist_ok=True)
    weights = _new_weights(input_size, hidden, several, seed)
    save_tensors(folder / "mm_projector.safetensors", weights)
    settings = {
        **text,
        "model_type": f"llava_{text.get('model_type', 'llama')}",
        "mm_vision_tower": FIVE_LAYER_TOWER
        if config.features == FIVE_LAYERS and config.tower == _CLIP_336
        else _absolute(config.tower),
        "mm_hidden_size": input_size,
        "mm_projector_type": "mlp2x_gelu",
        "mm_vision_select_layer": config.features if isinstance(config.features, int) else -2,
        "mm_vision_select_feature": "patch",
        "mm_use_im_start_end": False,
        "mm_use_im_patch_token": False,
        "image_aspect_ratio": config.aspect or "square",
        "use_mm_proj": True,
    }
    if several and config.features != FIVE_LAYERS:  # the original has no setting for these
        settings[METADATA_KEY] = {"feature_layers": config.features}
    write_json(folder / "config.json", settings)  # last: it marks the folder as complete
    return folder


def _absolute(name: str) -> str:
    """A folder as an absolute path; a hub id unchanged."""
    folder = Path(name).expanduser()
    return str(folder.resolve()) if folder.is_dir() else name


def _new_weights(input_size: int, hidden: int, norm: bool, seed: int) -> dict[str, torch.Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers = [nn.Linear(input_size, hidden), nn.GELU(), nn.Linear(hidden, hidden)]
    root = "model.mm_projector."
    stack = root + ("final_linear." if norm else "")
    weights = {f"{stack}{k}": v for k, v in nn.Sequential(*layers).state_dict().items()}
    if norm:
        weights |= {
            f"{root}clip_layernorm.weight": torch.ones(input_size),
            f"{root}clip_layernorm.bias": torch.zeros(input_size),
        }
    return weights
