"""Opening a checkpoint of any layout: weights under canonical names, a blueprint, an adapter.

One function per layout. Nothing is built here: `loading.py` turns a `Checkpoint` into a model,
`convert.py` writes it in another layout.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch

from vip_llava.errors import CheckpointError
from vip_llava.models.adapters import Adapter, read_adapter
from vip_llava.models.checkpoint_files import find_weights, has_weights, read_json, read_tensors
from vip_llava.models.hub import Progress, resolve_folder
from vip_llava.models.layouts import (
    PROJECTOR,
    TOWER,
    canonical_from_hub,
    canonical_from_original,
    listed,
    rename,
    tower_canonical,
)
from vip_llava.models.spec import (
    BACKBONES,
    Blueprint,
    blueprint_from_hub,
    blueprint_from_original,
    is_hub_config,
    is_original_config,
)

__all__ = ["Checkpoint", "Kind", "Source", "kind_of", "open_checkpoint"]

Kind = Literal["hub", "original", "projector", "lora", "language_model"]

EMBEDDING = "model.language_model.embed_tokens.weight"
HEAD = "lm_head.weight"
# What the original calls the five-layer encoder is this model, read in another way.
_TOWER_ALIASES = {"clip_4layers_336": "openai/clip-vit-large-patch14-336"}


@dataclass(frozen=True, slots=True)
class Source:
    """Where to look: the named folder, what it builds on, and how names become folders."""

    folder: Path
    base: Path | None = None
    vision_tower: Path | None = None
    resolve: Callable[[str], Path] = resolve_folder

    @staticmethod
    def named(
        name: str | Path,
        base: str | Path | None = None,
        vision_tower: str | Path | None = None,
        revision: str | None = None,
        progress: Progress | None = None,
    ) -> Source:
        """Resolve names to folders; hub ids are downloaded."""

        def resolve(name: str | Path) -> Path:
            return resolve_folder(name, progress=progress)

        return Source(
            resolve_folder(name, revision=revision, progress=progress),
            resolve(base) if base is not None else None,
            resolve(vision_tower) if vision_tower is not None else None,
            resolve,
        )


@dataclass(slots=True)
class Checkpoint:
    """A multimodal model as files hold it.

    Args:
        tensors: every weight under its canonical name.
        spelled: canonical name -> name in the file, for messages.
        folders: where tokenizer and image settings may be, most specific first.
        adapter: LoRA weights still to be applied.
    """

    kind: Kind
    blueprint: Blueprint
    tensors: dict[str, torch.Tensor]
    spelled: dict[str, str]
    folders: list[Path]
    adapter: Adapter | None = None
    configs: list[dict[str, Any]] = field(default_factory=list)


def kind_of(folder: Path) -> Kind:
    """Which layout a folder has.

    Raises:
        CheckpointError: none that is known; says what was looked for.
    """
    if (folder / "adapter_config.json").is_file():
        return "lora"
    config = read_json(folder / "config.json")
    if is_hub_config(config):
        return "hub"
    if is_original_config(config):
        return "original" if has_weights(folder) else "projector"
    if config.get("model_type") in BACKBONES:
        return "language_model"
    raise CheckpointError(
        f"{folder}: unknown model type {config.get('model_type')!r}; expected vipllava or llava with "
        f"a text_config, one of the original's (llava_llama, llava_phi3, ...), or as base= "
        f"(command line: --base) a language model ({', '.join(BACKBONES)})"
    )


def open_checkpoint(source: Source) -> Checkpoint:
    """Open whatever layout the folder has.

    Raises:
        CheckpointError: missing or unexpected files or weights, or a base where one is needed.
    """
    kind = kind_of(source.folder)
    if kind == "hub":
        return _open_hub(source.folder)
    if kind == "original":
        return _open_original(source)
    if kind == "language_model":
        raise CheckpointError(
            f"{source.folder} is a language model without an image encoder and projector; give it "
            "as base= (command line: --base), together with a projector or LoRA folder"
        )
    if source.base is None:
        raise CheckpointError(_base_wanted(source.folder, kind))
    return _open_on_base(source, kind)


def _base_wanted(folder: Path, kind: Kind) -> str:
    what = "LoRA adapters" if kind == "lora" else "a projector"
    said = ""
    if kind == "lora":
        named = read_json(folder / "adapter_config.json").get("base_model_name_or_path")
        said = f" (its adapter_config.json says {named!r})" if named else ""
    return f"{folder} holds {what} only; give the model they belong to as base= (command line: --base){said}"


def _open_hub(folder: Path) -> Checkpoint:
    config = read_json(folder / "config.json")
    tensors, spelled = rename(read_tensors(find_weights(folder)), canonical_from_hub, folder)
    blueprint = blueprint_from_hub(config, tensors)
    return Checkpoint("hub", blueprint, tensors, spelled, [folder], configs=[config])


def _open_original(source: Source) -> Checkpoint:
    folder = source.folder
    config = read_json(folder / "config.json")
    tensors, spelled = rename(read_tensors(find_weights(folder)), canonical_from_original, folder)
    return _assemble("original", config, tensors, spelled, source, [folder])


def _assemble(
    kind: Kind,
    config: Mapping[str, Any],
    tensors: dict[str, torch.Tensor],
    spelled: dict[str, str],
    source: Source,
    folders: list[Path],
) -> Checkpoint:
    """Add the image encoder and read the blueprint: the end of every original-style layout."""
    if not any(name.startswith(PROJECTOR) for name in tensors):
        raise CheckpointError(f"{source.folder} has no projector weights (mm_projector)")
    if EMBEDDING not in tensors:
        raise CheckpointError(f"{source.folder}: missing weight model.embed_tokens.weight")
    vision: dict[str, Any] | None = None
    for name in ("vision_config.json", "vision_config.used.json"):
        if vision is None and (source.folder / name).is_file():
            vision = read_json(source.folder / name)
            vision.setdefault("model_type", "clip_vision_model")
    folders = list(folders)
    inside = any(name.startswith(TOWER) for name in tensors)
    if source.vision_tower is not None or not inside:
        # An encoder that the caller names wins over the copy inside, as in the original.
        place = source.vision_tower or _named_tower(config, source)
        vision, weights = read_tower(place)
        tensors = {name: t for name, t in tensors.items() if not name.startswith(TOWER)} | weights
        folders.append(place)
    blueprint = blueprint_from_original(config, tensors, vision)
    return Checkpoint(kind, blueprint, tensors, spelled, folders, configs=[dict(config)])


def _named_tower(config: Mapping[str, Any], source: Source) -> Path:
    name = config.get("mm_vision_tower")
    if not isinstance(name, str) or not name:
        raise CheckpointError(
            f"{source.folder} has no image encoder and names none; give its folder as vision_tower= "
            "(command line: --vision-tower)"
        )
    beside = source.folder / name
    return beside if beside.is_dir() else source.resolve(_TOWER_ALIASES.get(name, name))


def read_tower(folder: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Configuration and canonical weights of a CLIP folder (the image half of a whole CLIP too).

    Raises:
        CheckpointError: not a CLIP folder.
    """
    config = read_json(folder / "config.json")
    if config.get("model_type") == "clip" and isinstance(config.get("vision_config"), dict):
        config = {**config["vision_config"], "model_type": "clip_vision_model"}
    if config.get("model_type") != "clip_vision_model":
        raise CheckpointError(
            f"{folder}: model type {config.get('model_type')!r} is no CLIP image encoder"
        )
    tensors = read_tensors(find_weights(folder))
    image = {name: t for name, t in tensors.items() if name.startswith("vision_model.")}
    image = image or {
        name: t for name, t in tensors.items() if name.startswith(("embeddings.", "encoder.", "p"))
    }
    drop = "embeddings.position_ids"
    return config, {
        TOWER + tower_canonical(name): t for name, t in image.items() if not name.endswith(drop)
    }


def _open_on_base(source: Source, kind: Kind) -> Checkpoint:
    """A projector or LoRA folder on a language model, or on a whole multimodal model."""
    assert source.base is not None
    extras, extra_names = _extras(source.folder)
    adapter = read_adapter(source.folder) if kind == "lora" else None
    if adapter is not None:
        extras |= adapter.plain
    base_kind = kind_of(source.base)
    if base_kind in ("lora", "projector"):
        raise CheckpointError(
            f"the base {source.base} is itself a {base_kind} folder; expected a whole model"
        )
    if base_kind == "language_model":
        config = read_json(source.folder / "config.json")
        if not is_original_config(config):
            raise CheckpointError(
                f"{source.folder}/config.json has no mm_... settings, so a projector can't be built "
                f"on the language model {source.base}; give a multimodal model as base= (command "
                "line: --base)"
            )
        tensors, spelled = rename(
            read_tensors(find_weights(source.base)), canonical_from_original, source.base
        )
        tensors, spelled = overlay(tensors, extras, source.folder), spelled | extra_names
        config = {**config, "vocab_size": tensors[EMBEDDING].shape[0]}
        folders = [source.folder, source.base]
        checkpoint = _assemble(kind, config, tensors, spelled, source, folders)
    else:
        checkpoint = open_checkpoint(replace(source, folder=source.base, base=None))
        checkpoint.tensors = overlay(checkpoint.tensors, extras, source.folder)
        checkpoint.spelled |= extra_names
        checkpoint.folders = [source.folder, *checkpoint.folders]
        checkpoint.kind = kind
    checkpoint.adapter = adapter
    return checkpoint


def _extras(folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """What is stored beside adapters or instead of a model: the projector, perhaps embeddings."""
    for stem in ("mm_projector", "non_lora_trainables"):
        for suffix in (".safetensors", ".bin"):
            path = folder / f"{stem}{suffix}"
            if path.is_file():
                return rename(read_tensors([path]), _canonical_from_any, path)
    if (folder / "adapter_config.json").is_file():
        return {}, {}
    raise CheckpointError(f"{folder} has neither weights nor mm_projector.bin")


def _canonical_from_any(name: str) -> str | None:
    """Extras come from the original's training or from ours, which writes transformers' names."""
    hub = ("multi_modal_projector.", "language_model.", "model.language_model.")
    bare = name
    while bare.startswith(("base_model.model.", "module.")):
        bare = bare.split(".", 2)[2] if bare.startswith("base") else bare.split(".", 1)[1]
    if bare.startswith((*hub, "model.multi_modal_projector.")):
        return canonical_from_hub(bare)
    # LoRA training wraps once more: base_model.model.model.mm_projector and model.model.…
    return canonical_from_original(bare.replace("model.model.", "model.", 1))


def overlay(
    tensors: Mapping[str, torch.Tensor], extras: Mapping[str, torch.Tensor], where: Path
) -> dict[str, torch.Tensor]:
    """`tensors` with `extras` in their place; a larger vocabulary is grown as the original does.

    Raises:
        CheckpointError: an extra weight that the base has no place for, or another shape.
    """
    merged = dict(tensors)
    unknown = [n for n in extras if n not in merged and not n.startswith(PROJECTOR)]
    if unknown:
        raise CheckpointError(f"{where}: the base has no weights {listed(unknown)}")
    had_projector = any(name.startswith(PROJECTOR) for name in tensors)
    for name, extra in extras.items():
        old = merged.get(name)
        if name in (EMBEDDING, HEAD) and old is not None and old.shape[1:] == extra.shape[1:]:
            # Start and end markers: all rows, or only those of the new tokens.
            extra = extra if extra.shape[0] >= old.shape[0] else torch.cat([old, extra.to(old)])
        elif old is not None and old.shape != extra.shape:
            raise CheckpointError(
                f"{where}: {name} has shape {tuple(extra.shape)}, the base's is {tuple(old.shape)}"
            )
        elif old is None and had_projector:
            raise CheckpointError(f"{where}: the base's projector has no {name}")
        merged[name] = extra
    if HEAD in merged and (new := merged[EMBEDDING].shape[0] - merged[HEAD].shape[0]) > 0:
        head = merged[HEAD]
        average = head.float().mean(dim=0, keepdim=True).to(head.dtype)
        merged[HEAD] = torch.cat([head, average.expand(new, -1)])
    return merged
