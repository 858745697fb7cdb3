"""What a run leaves behind: a whole model in either layout, a projector, or an adapter.

Each is a folder that `vip_llava.load` opens. Whole models are written once as transformers holds
them and then put into the wanted layout by `models/convert.py`; folders get their name when they are
complete. It knows no training loop.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import PreTrainedModel

from vip_llava.errors import CheckpointError
from vip_llava.models.building import quiet
from vip_llava.models.checkpoint_files import find_weights, has_weights, read_tensors
from vip_llava.models.convert import convert
from vip_llava.models.layouts import PROJECTOR, ProjectorStyle, canonical_to_original
from vip_llava.models.loading import load_model
from vip_llava.models.processor_loading import PROCESSOR_FILE
from vip_llava.models.safetensors_files import save_tensors
from vip_llava.prompting.processor import Processor
from vip_llava.training.adapters import write_adapter

__all__ = [
    "export_adapter",
    "export_model",
    "export_projector",
    "merge_folder",
    "missing_files",
    "push_to_hub",
]

Layout = Literal["hf", "original"]

# What a tokenizer may consist of; copied as they are, so that ids can't change.
_TOKENIZER = (
    "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json", "vocab.json", "merges.txt", "chat_template.jinja",
)  # fmt: skip
_IMAGES = "preprocessor_config.json"


def export_model(
    model: PreTrainedModel,
    processor: Processor,
    folders: Iterable[Path],
    target: Path,
    *,
    layout: Layout = "hf",
    dtype: torch.dtype | None = None,
    state: Mapping[str, torch.Tensor] | None = None,
) -> Path:
    """Write a whole model, its tokenizer and its image settings into the new folder `target`.

    Args:
        folders: where the tokenizer and image settings are copied from, most specific first.
        dtype: of the written weights; as they are if not given.
        state: the weights, where they were gathered from several devices; else the model's own.

    Raises:
        CheckpointError: the target is taken, no tokenizer is found, or the layout can't hold this
            model.
    """
    places = list(folders)
    with _made(target) as partial:
        raw = partial / "raw"
        raw.mkdir()
        weights = dict(model.state_dict() if state is None else state)
        if dtype is not None:
            weights = {n: t.to(dtype) if t.is_floating_point() else t for n, t in weights.items()}
        # Weights that share memory are written once, as transformers does it.
        with quiet():
            model.save_pretrained(raw, state_dict=weights)
        _copy_settings(places, raw)
        _write_json(raw / PROCESSOR_FILE, processor.to_config())
        try:
            convert(raw, partial / "whole", layout)
        except CheckpointError as error:
            raise CheckpointError(str(error).replace(str(raw), "the trained model")) from error
        _move_up(partial / "whole", partial)
        shutil.rmtree(raw)
    return target


def export_projector(
    model: PreTrainedModel,
    config: Mapping[str, Any],
    target: Path,
    *,
    dtype: torch.dtype | None,
    state: Mapping[str, torch.Tensor] | None = None,
) -> Path:
    """Write the projector alone, to be put on the same language model again (stage 2).

    Args:
        config: the settings of a projector folder in the original's layout (`mm_...`).
        state: the model's weights, where they were gathered from several devices.
    """
    every = model.state_dict() if state is None else state
    weights = {n: t for n, t in every.items() if n.startswith(PROJECTOR)}
    norm = f"{PROJECTOR}projector_layernorm.weight" in weights
    linears = sum(".linear_" in n and n.endswith(".weight") for n in weights)
    bare = linears == 1 and not norm
    style = ProjectorStyle(linears, norm, bare)
    named = {
        canonical_to_original(n, style): t.to(dtype) if dtype else t for n, t in weights.items()
    }
    with _made(target) as partial:
        save_tensors(partial / "mm_projector.safetensors", named)
        _write_json(partial / "config.json", config)
    return target


def export_adapter(
    model: PreTrainedModel,
    processor: Processor,
    target: Path,
    *,
    base: str,
    config: Mapping[str, Any] | None = None,
    state: Mapping[str, torch.Tensor] | None = None,
) -> Path:
    """Write the adapter with the projector beside it, to be put on `base` again.

    Args:
        config: settings of a projector folder, where `base` is a language model alone.
    """
    with _made(target) as partial:
        write_adapter(model, partial, base=base, state=state)
        _write_json(partial / PROCESSOR_FILE, processor.to_config())
        if config is not None:
            _write_json(partial / "config.json", config)
    return target


def merge_folder(
    adapter: Path,
    base: str | Path,
    target: Path,
    *,
    layout: Layout = "hf",
    dtype: str | torch.dtype = "auto",
    vision_tower: str | Path | None = None,
    folders: Iterable[Path] = (),
) -> Path:
    """Fold a written adapter into its full base and write the whole model in either layout.

    Also for adapters that were trained on a base of few bits: what is merged is the full one.

    Args:
        folders: where tokenizer and image settings are, if not in the base's folder.

    Raises:
        CheckpointError: `adapter` is none, does not fit the base, or the target is taken.
    """
    if not (adapter / "adapter_config.json").is_file():
        raise CheckpointError(f"{adapter} holds no adapter: adapter_config.json is missing")
    model, processor = load_model(
        adapter, base=base, dtype=dtype, device="cpu", vision_tower=vision_tower
    )
    places = [adapter, *folders, *(Path(f) for f in (base,) if Path(f).is_dir())]
    if not any((place / "tokenizer.json").is_file() for place in places):
        from vip_llava.models.hub import resolve_folder

        places.append(resolve_folder(base))
    return export_model(model, processor, places, target, layout=layout)


def missing_files(folder: Path) -> list[str]:
    """What a folder lacks to be used by someone else: names of files, or [] for a complete one."""
    missing = [] if (folder / "README.md").is_file() else ["README.md (the model card)"]
    if (folder / "adapter_config.json").is_file():
        wanted = ["adapter_model.safetensors", PROCESSOR_FILE]
        return missing + [name for name in wanted if not (folder / name).is_file()]
    if (folder / "mm_projector.safetensors").is_file():
        return missing + ([] if (folder / "config.json").is_file() else ["config.json"])
    missing += [n for n in ("config.json", _IMAGES) if not (folder / n).is_file()]
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model")):
        missing.append("tokenizer.json or tokenizer.model")
    if not has_weights(folder):
        return [*missing, "model.safetensors"]
    try:
        # Reads only the heads of safetensors files; a shard that an index lists must be there.
        read_tensors(find_weights(folder))
    except CheckpointError as error:
        missing.append(str(error))
    return missing


def push_to_hub(folder: Path, repository: str, *, private: bool = True) -> str:
    """Upload an exported folder to the Hugging Face hub; returns its address there.

    The hub's own login is used (`hf auth login` or HF_TOKEN). Nothing is uploaded if a file is
    missing or the folder holds anything that is no part of a model.

    Raises:
        CheckpointError: the folder is not complete, or holds pickled weights; says which files.
    """
    missing = missing_files(folder)
    if missing:
        raise CheckpointError(f"{folder} is not complete: it lacks {', '.join(missing)}")
    own = [p for p in folder.rglob("*") if p.relative_to(folder).parts[0] != "training"]
    pickles = sorted(p.name for p in own if p.suffix in (".bin", ".pt", ".pth"))
    if pickles:
        raise CheckpointError(f"{folder} holds {pickles[0]}: only safetensors are uploaded")
    from huggingface_hub import HfApi

    api = HfApi()
    place = api.create_repo(repository, private=private, exist_ok=True)
    api.upload_folder(
        repo_id=repository,
        folder_path=folder,
        commit_message="Trained with vip-llava",
        ignore_patterns=["training/*", ".*"],
    )
    return str(place)


@contextmanager
def _made(target: Path) -> Iterator[Path]:
    """A new folder that gets its name when everything inside is written.

    Raises CheckpointError if `target` is there and not empty.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise CheckpointError(f"{target} already exists; give a new or empty folder")
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        if target.exists():
            target.rmdir()
        partial.rename(target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _copy_settings(folders: list[Path], target: Path) -> None:
    """Tokenizer and image settings, each from the first folder that has them."""
    names = ("tokenizer.json", "tokenizer.model")
    home = next((f for f in folders if any((f / n).is_file() for n in names)), None)
    if home is None:
        raise CheckpointError(f"no tokenizer in {', '.join(map(str, folders)) or 'no folder'}")
    for name in _TOKENIZER:
        if (home / name).is_file():
            shutil.copyfile(home / name, target / name)
    for name in (_IMAGES, "generation_config.json"):
        place = next((f for f in folders if (f / name).is_file()), None)
        if place is not None and not (target / name).is_file():
            shutil.copyfile(place / name, target / name)


def _move_up(folder: Path, target: Path) -> None:
    for path in folder.iterdir():
        path.rename(target / path.name)
    folder.rmdir()


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
