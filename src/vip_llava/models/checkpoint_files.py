"""Files of a checkpoint folder: finds, reads and writes weight files, whole or in shards.

It does not know what a weight's name means (`layouts.py`), what a configuration means (`spec.py`)
or where a folder comes from (`hub.py`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from vip_llava.errors import CheckpointError
from vip_llava.models.layouts import format_names, read_bin
from vip_llava.models.safetensors_files import load_tensors, save_tensors

__all__ = ["find_weights", "has_weights", "read_json", "read_tensors", "write_tensors"]

STEMS = ("model.safetensors", "pytorch_model.bin")


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        CheckpointError: the file is missing, is not JSON, or is not an object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except PermissionError as error:
        raise CheckpointError(
            f"{path}: permission denied; this user needs read access to the file"
        ) from error
    except FileNotFoundError:
        raise CheckpointError(
            f"{path.parent} is not a checkpoint folder: it has no {path.name}"
        ) from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise CheckpointError(f"{path} is not a readable JSON file: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} must contain a JSON object, not a {type(value).__name__}")
    return value


def has_weights(folder: Path) -> bool:
    """Whether the folder contains a whole model's weights, in one file or in shards."""
    return any(
        (folder / stem).is_file() or (folder / f"{stem}.index.json").is_file() for stem in STEMS
    )


def find_weights(folder: Path) -> list[Path]:
    """The weight files of a whole model: safetensors before `.bin`, an index before one file.

    Raises:
        CheckpointError: there are none, or an index names a file that is missing or outside the
            folder.
    """
    for stem in STEMS:
        index = folder / f"{stem}.index.json"
        if index.is_file():
            return _indexed(index)
        if (folder / stem).is_file():
            return [folder / stem]
    raise CheckpointError(
        f"{folder} has no weights: expected model.safetensors or pytorch_model.bin, whole or with "
        f"an index; it contains {format_names(p.name for p in folder.iterdir()) or 'nothing'}"
    )


def _indexed(index: Path) -> list[Path]:
    shards = read_json(index).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise CheckpointError(f"{index} has no weight_map from weights to files")
    names = sorted({str(name) for name in shards.values()})
    for name in names:
        # An index is untrusted: it may name weight files of its own folder only.
        if Path(name).name != name or not name.endswith((".safetensors", ".bin")):
            raise CheckpointError(f"{index} names {name!r}, which is not a weight file beside it")
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        raise CheckpointError(f"{index.parent} lacks the shards {format_names(missing)}")
    return [index.parent / name for name in names]


def read_tensors(paths: Iterable[Path]) -> dict[str, torch.Tensor]:
    """Read all tensors of some files, on the CPU, memory-mapped where the format allows it.

    Raises:
        CheckpointError: a file is damaged, two files contain the same name, or an index lists a
            weight that no shard has.
    """
    tensors: dict[str, torch.Tensor] = {}
    files = list(paths)
    for path in files:
        part = read_bin(path) if path.suffix == ".bin" else load_tensors(path)
        repeated = tensors.keys() & part.keys()
        if repeated:
            raise CheckpointError(
                f"{path} repeats weights of another shard: {format_names(repeated)}"
            )
        tensors.update(part)
    for index in {path.parent / f"{stem}.index.json" for path in files for stem in STEMS}:
        if index.is_file() and any(path in files for path in _indexed(index)):
            missing = read_json(index)["weight_map"].keys() - tensors.keys()
            if missing:
                names = format_names(missing)
                raise CheckpointError(f"{index} lists weights that no shard has: {names}")
    return tensors


def write_tensors(
    folder: Path, tensors: Mapping[str, torch.Tensor], max_shard_bytes: int
) -> list[Path]:
    """Write `model.safetensors`, or an index and shards of at most `max_shard_bytes` each.

    A tensor larger than that gets its own shard. Names are in sorted order.
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
    paths, weight_map = [], {}
    for number, shard in enumerate(shards, start=1):
        path = folder / f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        paths.append(save_tensors(path, shard))
        weight_map.update(dict.fromkeys(shard, path.name))
    total = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
    return paths
