"""Exports of a run: a whole model in either layout, a projector, or an adapter.

`vip_llava.load` opens each exported folder. Whole models are saved in transformers' form and then
converted by `models/convert.py`. A folder appears under its name when it is complete. This module
does not know the training loop.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import PreTrainedModel

from vip_llava.errors import CheckpointError
from vip_llava.models.building import silence_transformers
from vip_llava.models.checkpoint_files import find_weights, has_weights, read_tensors
from vip_llava.models.convert import convert
from vip_llava.models.hub import resolve_folder
from vip_llava.models.layouts import PROJECTOR, ProjectorStyle, canonical_to_original
from vip_llava.models.loading import load_model
from vip_llava.models.processor_loading import (
    IMAGE_PROCESSOR_FILE,
    PROCESSOR_FILE,
    TOKENIZER_FILES,
    first_folder_with,
)
from vip_llava.models.safetensors_files import save_tensors
from vip_llava.prompting.processor import Processor
from vip_llava.training.adapters import save_adapter
from vip_llava.training.json_files import write_json

__all__ = [
    "export_adapter",
    "export_model",
    "export_projector",
    "merge_folder",
    "missing_files",
    "push_to_hub",
]

Layout = Literal["hf", "original"]

# Copied unchanged, so that token ids stay the same.
_TOKENIZER_FILES = (
    *TOKENIZER_FILES, "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "merges.txt", "chat_template.jinja",
)  # fmt: skip


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
    """Export a whole model with its tokenizer and image settings into the new folder `target`.

    Args:
        folders: where tokenizer and image settings are copied from, most specific first.
        dtype: of the written weights; by default unchanged.
        state: gathered weights of a sharded model; by default the model's own.

    Raises:
        CheckpointError: the target is not empty, no tokenizer is found, or the layout does not
            support this model.
    """
    sources = list(folders)
    with _new_folder(target) as partial:
        raw = partial / "raw"
        raw.mkdir()
        weights = dict(model.state_dict() if state is None else state)
        if dtype is not None:
            weights = {n: t.to(dtype) if t.is_floating_point() else t for n, t in weights.items()}
        # save_pretrained writes weights that share memory once.
        with silence_transformers():
            model.save_pretrained(raw, state_dict=weights)
        _copy_settings(sources, raw)
        write_json(raw / PROCESSOR_FILE, processor.to_config())
        try:
            convert(raw, partial / "whole", layout)
        except CheckpointError as error:
            raise CheckpointError(str(error).replace(str(raw), "the trained model")) from error
        for path in (partial / "whole").iterdir():
            path.rename(partial / path.name)
        (partial / "whole").rmdir()
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
    """Export the projector alone, for stage 2 on the same language model.

    Args:
        config: `config.json` of a projector folder in the original's layout (`mm_...`).
        state: gathered weights of a sharded model; by default the model's own.
    """
    every = model.state_dict() if state is None else state
    weights = {n: t for n, t in every.items() if n.startswith(PROJECTOR)}
    norm = f"{PROJECTOR}projector_layernorm.weight" in weights
    linears = sum(".linear_" in n and n.endswith(".weight") for n in weights)
    style = ProjectorStyle(linears, norm, linears == 1 and not norm)
    named = {
        canonical_to_original(n, style): t.to(dtype) if dtype else t for n, t in weights.items()
    }
    with _new_folder(target) as partial:
        save_tensors(partial / "mm_projector.safetensors", named)
        write_json(partial / "config.json", config)
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
    """Export the adapter and the projector beside it, for the same `base`.

    Args:
        config: `config.json` of a projector folder, if `base` is a language model.
        state: gathered adapter weights of a sharded model; by default the model's own.
    """
    with _new_folder(target) as partial:
        save_adapter(model, partial, base=base, state=state)
        write_json(partial / PROCESSOR_FILE, processor.to_config())
        if config is not None:
            write_json(partial / "config.json", config)
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
    """Merge an exported adapter into its base and export the whole model in either layout.

    An adapter that was trained on a quantized base is merged into the full base.

    Args:
        folders: where to look for tokenizer and image settings before the base's folder.

    Raises:
        CheckpointError: `adapter` is not an adapter's folder or does not fit the base, or the
            target is not empty.
    """
    if not (adapter / "adapter_config.json").is_file():
        raise CheckpointError(f"{adapter} is not an adapter: adapter_config.json is missing")
    model, processor = load_model(
        adapter, base=base, dtype=dtype, device="cpu", vision_tower=vision_tower
    )
    sources = [adapter, *folders]
    if Path(base).is_dir() or first_folder_with(sources, "tokenizer.json") is None:
        sources.append(resolve_folder(base))
    return export_model(model, processor, sources, target, layout=layout)


def missing_files(folder: Path) -> list[str]:
    """The files that an exported folder lacks to be shared; [] for a complete one."""
    missing = [] if (folder / "README.md").is_file() else ["README.md (the model card)"]
    if (folder / "adapter_config.json").is_file():
        wanted = ["adapter_model.safetensors", PROCESSOR_FILE]
        return missing + [name for name in wanted if not (folder / name).is_file()]
    if (folder / "mm_projector.safetensors").is_file():
        return missing + ([] if (folder / "config.json").is_file() else ["config.json"])
    missing += [n for n in ("config.json", IMAGE_PROCESSOR_FILE) if not (folder / n).is_file()]
    if first_folder_with([folder], *TOKENIZER_FILES) is None:
        missing.append(" or ".join(TOKENIZER_FILES))
    if not has_weights(folder):
        return [*missing, "model.safetensors"]
    try:
        # Reads only the headers of safetensors files; every shard of an index must exist.
        read_tensors(find_weights(folder))
    except CheckpointError as error:
        missing.append(str(error))
    return missing


def push_to_hub(folder: Path, repository: str, *, private: bool = True) -> str:
    """Upload an exported folder to the Hugging Face Hub; returns its URL.

    Uses the Hub's own login (`hf auth login` or HF_TOKEN). The folder `training` is not uploaded.

    Raises:
        CheckpointError: files are missing, or the folder contains pickled weights.
    """
    missing = missing_files(folder)
    if missing:
        raise CheckpointError(f"{folder} is not complete: it lacks {', '.join(missing)}")
    own = [p for p in folder.rglob("*") if p.relative_to(folder).parts[0] != "training"]
    pickles = sorted(p.name for p in own if p.suffix in (".bin", ".pt", ".pth"))
    if pickles:
        raise CheckpointError(f"{folder} contains {pickles[0]}: only safetensors are uploaded")
    from huggingface_hub import HfApi

    api = HfApi()
    url = api.create_repo(repository, private=private, exist_ok=True)
    api.upload_folder(
        repo_id=repository,
        folder_path=folder,
        commit_message="Trained with vip-llava",
        ignore_patterns=["training/*", ".*"],
    )
    return str(url)


@contextmanager
def _new_folder(target: Path) -> Iterator[Path]:
    """A temporary folder that is renamed to `target` at the end of the block.

    Raises CheckpointError if `target` exists and is not empty.
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
    """Copy tokenizer and image settings, each from the first folder that has them."""
    home = first_folder_with(folders, *TOKENIZER_FILES)
    if home is None:
        raise CheckpointError(f"no tokenizer in {', '.join(map(str, folders)) or 'any folder'}")
    for name in _TOKENIZER_FILES:
        if (home / name).is_file():
            shutil.copyfile(home / name, target / name)
    for name in (IMAGE_PROCESSOR_FILE, "generation_config.json"):
        source = first_folder_with(folders, name)
        if source is not None and not (target / name).is_file():
            shutil.copyfile(source / name, target / name)
