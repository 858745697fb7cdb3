"""Files of a checkpoint folder: which ones hold weights, reading them, writing them in shards.

It knows file names and tensors by name. What a name means is `layouts.py`, what a configuration
means is `blueprint.py`, where a folder comes from is `hub.py`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from vip_llava.errors import CheckpointError
from vip_llava.models.layouts import listed, read_bin
from vip_llava.models.safetensors_files import load_tensors, save_tensors

__all__ = ["find_weights", "has_weights", "read_json", "read_tensors", "write_tensors"]

STEMS = ("model.safetensors", "pytorch_model.bin")


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        CheckpointError: the file is missing, no JSON, or no object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except PermissionError as error:
        raise CheckpointError(
            f"{path}: permission denied; this user needs read access to the file"
        ) from error
    except FileNotFoundError:
        raise CheckpointError(
            f"{path.parent} is no checkpoint folder: it has no {path.name}"
        ) from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise CheckpointError(f"{path} is no readable JSON file: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} must hold a JSON object, not a {type(value).__name__}")
    return value


def has_weights(folder: Path) -> bool:
    """Whether the folder holds a whole model's weights, in one file or in shards."""
    return any(
        (folder / stem).is_file() or (folder / f"{stem}.index.json").is_file() for stem in STEMS
    )


def find_weights(folder: Path) -> list[Path]:
    """The files of a whole model: safetensors before `.bin`, an index before a single file.

    Raises:
        CheckpointError: there are none, or an index names a file that is missing or elsewhere.
    """
    for stem in STEMS:
        index = folder / f"{stem}.index.json"
        if index.is_file():
            return _indexed(index)
        if (folder / stem).is_file():
            return [folder / stem]
    raise CheckpointError(
        f"{folder} has no weights: expected model.safetensors or pytorch_model.bin, whole or with "
        f"an index; it holds {listed(path.name for path in folder.iterdir()) or 'nothing'}"
    )


def _indexed(index: Path) -> list[Path]:
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise CheckpointError(f"{index} has no weight_map from weights to files")
    names = sorted({str(name) for name in places.values()})
    for name in names:
        # An index is untrusted: it may name files of its own folder and nothing else.
        if Path(name).name != name or not name.endswith((".safetensors", ".bin")):
            raise CheckpointError(f"{index} names {name!r}, which is no weight file beside it")
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        raise CheckpointError(f"{index.parent} lacks the shards {listed(missing)}")
    return [index.parent / name for name in names]


def read_tensors(paths: Iterable[Path]) -> dict[str, torch.Tensor]:
    """All tensors of some files, on the CPU, mapped from disk where the format allows it.

    Raises:
        CheckpointError: a file is damaged, one name is in two files, or an index lists a weight
            that no shard has.
    """
    tensors: dict[str, torch.Tensor] = {}
    files = list(paths)
    for path in files:
        part = read_bin(path) if path.suffix == ".bin" else load_tensors(path)
        twice = tensors.keys() & part.keys()
        if twice:
            raise CheckpointError(f"{path} repeats weights of another shard: {listed(twice)}")
        tensors.update(part)
    for index in {path.parent / f"{stem}.index.json" for path in files for stem in STEMS}:
        if index.is_file() and any(path in files for path in _indexed(index)):
            lost = read_json(index)["weight_map"].keys() - tensors.keys()
            if lost:
                raise CheckpointError(f"{index} lists weights that no shard has: {listed(lost)}")
    return tensors


def write_tensors(
    folder: Path, tensors: Mapping[str, torch.Tensor], max_shard_bytes: int
) -> list[Path]:
    """Write `model.safetensors`, or shards of at most `max_shard_bytes` each with an index.

    A single tensor that is larger gets a shard of its own. Names are written in sorted order.
    """
    shards: list[dict[str, torch.Tensor]] = [{}]
    size = 0
    for name in sorted(tensors):
        tensor = tensors[name]
        if shards[-1] and size + tensor.nbytes > max_shard_bytes:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += tensor.nbytes
    if len(shards) == 1:
        return [save_tensors(folder / "model.safetensors", shards[0])]
    paths, places = [], {}
    for number, shard in enumerate(shards, start=1):
        path = folder / f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        paths.append(save_tensors(path, shard))
        places.update(dict.fromkeys(shard, path.name))
    total = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
    return paths
