"""Opens a checkpoint of any layout: a spec, weights under canonical names, perhaps an adapter.

Nothing is built here: `building.py` turns a `Checkpoint` into a model, and `convert.py` writes it
in another layout.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch

from vip_llava.errors import CheckpointError
from vip_llava.models.adapters import LoraAdapter, read_lora
from vip_llava.models.backbones import registered_backbones
from vip_llava.models.checkpoint_files import find_weights, has_weights, read_json, read_tensors
from vip_llava.models.hub import Progress, resolve_folder
from vip_llava.models.layouts import (
    PROJECTOR,
    TOWER,
    canonical_from_hub,
    canonical_from_original,
    format_names,
    rename,
)
from vip_llava.models.spec import (
    ModelSpec,
    is_hub_config,
    is_original_config,
    spec_from_hub,
    spec_from_original,
)
from vip_llava.models.vision_towers import canonical_tower_id, get_vision_tower, tower_config

__all__ = [
    "EMBEDDING",
    "HEAD",
    "Checkpoint",
    "CheckpointLayout",
    "CheckpointSource",
    "detect_layout",
    "open_checkpoint",
    "read_vision_tower",
]

CheckpointLayout: TypeAlias = Literal["hub", "original", "projector", "lora", "language_model"]

EMBEDDING = "model.language_model.embed_tokens.weight"
HEAD = "lm_head.weight"


@dataclass(frozen=True, slots=True)
class CheckpointSource:
    """Folders of a checkpoint.

    Args:
        folder: the folder to open.
        base: the model that a projector or LoRA folder belongs to.
        vision_tower: a tower instead of the one inside, or where there is none inside.
        resolve: turns the name of a tower in a configuration into a folder.
    """

    folder: Path
    base: Path | None = None
    vision_tower: Path | None = None
    resolve: Callable[[str], Path] = resolve_folder

    @staticmethod
    def from_names(
        name: str | Path,
        base: str | Path | None = None,
        vision_tower: str | Path | None = None,
        revision: str | None = None,
        progress: Progress | None = None,
    ) -> CheckpointSource:
        """Resolve names to folders; hub ids are downloaded."""

        def resolve(name: str | Path) -> Path:
            return resolve_folder(name, progress=progress)

        return CheckpointSource(
            resolve_folder(name, revision=revision, progress=progress),
            resolve(base) if base is not None else None,
            resolve(vision_tower) if vision_tower is not None else None,
            resolve,
        )


@dataclass(slots=True)
class Checkpoint:
    """A multimodal model as its files describe it.

    Args:
        layout: of the folder that was opened.
        tensors: every weight under its canonical name.
        file_names: canonical name -> name in the file, for messages.
        folders: folders to search for tokenizer and image settings, most specific first.
        config: the folder's `config.json`; of a projector or LoRA folder on a whole model, that
            of the model.
        adapter: LoRA weights that are still to be applied.
        tower_folder: the folder of a tower of its own.
    """

    layout: CheckpointLayout
    spec: ModelSpec
    tensors: dict[str, torch.Tensor]
    file_names: dict[str, str]
    folders: list[Path]
    config: dict[str, Any]
    adapter: LoraAdapter | None = None
    tower_folder: Path | None = None


def detect_layout(folder: Path) -> CheckpointLayout:
    """Which layout a folder has.

    Raises:
        CheckpointError: none that is known; lists what was expected.
    """
    if (folder / "adapter_config.json").is_file():
        return "lora"
    config = read_json(folder / "config.json")
    if is_hub_config(config):
        return "hub"
    if is_original_config(config):
        return "original" if has_weights(folder) else "projector"
    if config.get("model_type") in registered_backbones():
        return "language_model"
    raise CheckpointError(
        f"{folder}: unknown model type {config.get('model_type')!r}; expected vipllava or llava "
        "with a text_config, one of the original's (llava_llama, llava_phi3, ...), or as base= "
        f"(command line: --base) a language model ({', '.join(registered_backbones())})"
    )


def open_checkpoint(source: CheckpointSource) -> Checkpoint:
    """Open a folder of any layout.

    Raises:
        CheckpointError: files or weights are missing or unexpected, or a base is needed.
    """
    layout = detect_layout(source.folder)
    if layout == "hub":
        return _open_hub(source.folder)
    if layout == "original":
        return _open_original(source)
    if layout == "language_model":
        raise CheckpointError(
            f"{source.folder} is a language model without a vision tower and projector; give it "
            "as base= (command line: --base), together with a projector or LoRA folder"
        )
    if source.base is None:
        raise CheckpointError(_base_needed(source.folder, layout))
    return _open_on_base(source, layout)


def _base_needed(folder: Path, layout: CheckpointLayout) -> str:
    content = "LoRA adapters" if layout == "lora" else "a projector"
    hint = ""
    if layout == "lora":
        named = read_json(folder / "adapter_config.json").get("base_model_name_or_path")
        hint = f" (its adapter_config.json names {named!r})" if named else ""
    return (
        f"{folder} contains {content} only; give the model that it belongs to as base= "
        f"(command line: --base){hint}"
    )


def _open_hub(folder: Path) -> Checkpoint:
    config = read_json(folder / "config.json")
    tensors, file_names = rename(read_tensors(find_weights(folder)), canonical_from_hub, folder)
    return Checkpoint("hub", spec_from_hub(config, tensors), tensors, file_names, [folder], config)


def _open_original(source: CheckpointSource) -> Checkpoint:
    folder = source.folder
    config = read_json(folder / "config.json")
    tensors, names = rename(read_tensors(find_weights(folder)), canonical_from_original, folder)
    return _with_tower("original", config, tensors, names, source, [folder])


def _with_tower(
    layout: CheckpointLayout,
    config: dict[str, Any],
    tensors: dict[str, torch.Tensor],
    file_names: dict[str, str],
    source: CheckpointSource,
    folders: list[Path],
) -> Checkpoint:
    """Add the vision tower and read the spec: the last step for every original-style layout."""
    if not any(name.startswith(PROJECTOR) for name in tensors):
        raise CheckpointError(f"{source.folder} has no projector weights (mm_projector)")
    if EMBEDDING not in tensors:
        raise CheckpointError(f"{source.folder}: missing weight model.embed_tokens.weight")
    vision: dict[str, Any] | None = None
    for name in ("vision_config.json", "vision_config.used.json"):
        if vision is None and (source.folder / name).is_file():
            vision = read_json(source.folder / name)
            vision.setdefault("model_type", "clip_vision_model")
    inside = any(name.startswith(TOWER) for name in tensors)
    tower_folder = None
    if source.vision_tower is not None or not inside:
        # As in the original, a tower that the caller names replaces the one inside.
        tower_folder = source.vision_tower or _named_tower(config, source)
        vision, weights = read_vision_tower(tower_folder)
        tensors = {name: t for name, t in tensors.items() if not name.startswith(TOWER)} | weights
        folders = [*folders, tower_folder]
    spec = spec_from_original(config, tensors, vision)
    return Checkpoint(layout, spec, tensors, file_names, folders, config, tower_folder=tower_folder)


def _named_tower(config: Mapping[str, Any], source: CheckpointSource) -> Path:
    name = config.get("mm_vision_tower")
    if not isinstance(name, str) or not name:
        raise CheckpointError(
            f"{source.folder} has no vision tower and names none; give its folder as vision_tower= "
            "(command line: --vision-tower)"
        )
    beside = source.folder / name
    return beside if beside.is_dir() else source.resolve(canonical_tower_id(name))


def read_vision_tower(folder: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Configuration and weights (canonical names) of a tower's folder, or its parent model's.

    Raises:
        CheckpointError: not a folder of a registered tower.
    """
    try:
        config = tower_config(read_json(folder / "config.json"))
    except CheckpointError as error:
        raise CheckpointError(f"{folder}: {error}") from None
    weights = get_vision_tower(config["model_type"]).select_weights(
        read_tensors(find_weights(folder))
    )
    return config, {TOWER + name: tensor for name, tensor in weights.items()}


def _open_on_base(source: CheckpointSource, layout: CheckpointLayout) -> Checkpoint:
    """A projector or LoRA folder on a language model, or on a whole multimodal model."""
    assert source.base is not None
    extras, extra_names = _read_extras(source.folder)
    adapter = read_lora(source.folder) if layout == "lora" else None
    if adapter is not None:
        extras |= adapter.full_weights
    base_layout = detect_layout(source.base)
    if base_layout in ("lora", "projector"):
        raise CheckpointError(
            f"the base {source.base} is itself a {base_layout} folder; expected a whole model"
        )
    if base_layout == "language_model":
        config = read_json(source.folder / "config.json")
        if not is_original_config(config):
            raise CheckpointError(
                f"{source.folder}/config.json has no mm_... settings, so its projector cannot be "
                f"combined with the language model {source.base}; give a multimodal model as base= "
                "(command line: --base)"
            )
        tensors, names = rename(
            read_tensors(find_weights(source.base)), canonical_from_original, source.base
        )
        tensors = overlay(tensors, extras, source.folder)
        config = {**config, "vocab_size": tensors[EMBEDDING].shape[0]}
        folders = [source.folder, source.base]
        checkpoint = _with_tower(layout, config, tensors, names | extra_names, source, folders)
    else:
        checkpoint = open_checkpoint(replace(source, folder=source.base, base=None))
        checkpoint.tensors = overlay(checkpoint.tensors, extras, source.folder)
        checkpoint.file_names |= extra_names
        checkpoint.folders = [source.folder, *checkpoint.folders]
        checkpoint.layout = layout
    checkpoint.adapter = adapter
    return checkpoint


def _read_extras(folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Whole weights in a projector or LoRA folder: the projector, perhaps embeddings."""
    for stem in ("mm_projector", "non_lora_trainables"):
        for suffix in (".safetensors", ".bin"):
            path = folder / f"{stem}{suffix}"
            if path.is_file():
                return rename(read_tensors([path]), _canonical_from_any, path)
    if (folder / "adapter_config.json").is_file():
        return {}, {}
    raise CheckpointError(f"{folder} has neither weights nor mm_projector.bin")


def _canonical_from_any(name: str) -> str | None:
    """Canonical name of an extra weight, which the original's training or this package wrote."""
    bare = name
    while bare.startswith(("base_model.model.", "module.")):
        bare = bare.split(".", 2)[2] if bare.startswith("base") else bare.split(".", 1)[1]
    hub = ("multi_modal_projector.", "language_model.")
    if bare.removeprefix("model.").startswith(hub):
        return canonical_from_hub(bare)
    # LoRA training wraps once more: base_model.model.model.mm_projector and model.model....
    return canonical_from_original(bare.replace("model.model.", "model.", 1))


def overlay(
    tensors: Mapping[str, torch.Tensor], extras: Mapping[str, torch.Tensor], where: Path
) -> dict[str, torch.Tensor]:
    """`tensors` with `extras` in their place; a larger vocabulary grows as in the original.

    Raises:
        CheckpointError: an extra weight that the base does not have, or of another shape.
    """
    merged = dict(tensors)
    unknown = [n for n in extras if n not in merged and not n.startswith(PROJECTOR)]
    if unknown:
        raise CheckpointError(f"{where}: the base has no weights {format_names(unknown)}")
    had_projector = any(name.startswith(PROJECTOR) for name in tensors)
    for name, extra in extras.items():
        old = merged.get(name)
        if name in (EMBEDDING, HEAD) and old is not None and old.shape[1:] == extra.shape[1:]:
            # With start and end tokens: all rows, or only those of the new tokens.
            extra = extra if extra.shape[0] >= old.shape[0] else torch.cat([old, extra.to(old)])
        elif old is not None and old.shape != extra.shape:
            raise CheckpointError(
                f"{where}: {name} has shape {tuple(extra.shape)}, the base's is {tuple(old.shape)}"
            )
        elif old is None and had_projector:
            raise CheckpointError(f"{where}: the base's projector has no {name}")
        merged[name] = extra
    if HEAD in merged and (new := merged[EMBEDDING].shape[0] - merged[HEAD].shape[0]) > 0:
        merged[HEAD] = extend_head(merged[HEAD], new)
    return merged


def extend_head(head: torch.Tensor, rows: int) -> torch.Tensor:
    """The output matrix [V, C] with `rows` more rows, each the average, which is never the best."""
    average = head.float().mean(dim=0, keepdim=True).to(head.dtype)
    return torch.cat([head, average.expand(rows, -1)])
