"""Trainable weights and optimizer state as named, unsharded tensors in safetensors files.

A checkpoint holds the trainable weights and their optimizer state, each as one whole tensor under
its parameter's name, regardless of the number of processes that trained it. Any number of processes
can load it, sharded (FSDP2) or not. Tensors are gathered and written one at a time.

This module knows torch's tensors and optimizers. It does not know folders or the trainer.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from vip_llava.errors import CheckpointError
from vip_llava.training.param_groups import trainable_buffers, trainable_parameters

__all__ = [
    "frozen_fingerprint",
    "load_optimizer_state",
    "load_trainable_state",
    "optimizer_settings",
    "optimizer_tensors",
    "safetensors_chunks",
    "strip_wrappers",
    "trainable_state",
]

# What DDP, torch.compile, FSDP and activation checkpointing add to parameter names.
_WRAPPERS = re.compile(
    r"(^|\.)(module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
)
_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_SAMPLES = 64


def strip_wrappers(name: str) -> str:
    """A parameter's name without the prefixes of wrappers."""
    while (shorter := _WRAPPERS.sub(r"\1", name)) != name:
        name = shorter
    return name


def trainable_state(model: nn.Module) -> dict[str, Tensor]:
    """All tensors of a model that training changes: trainable weights, and buffers beside them."""
    found = {strip_wrappers(name): p.detach() for name, p in trainable_parameters(model)}
    return found | {strip_wrappers(name): buffer for name, buffer in trainable_buffers(model)}


def safetensors_chunks(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> Iterator[memoryview | bytes]:
    """The bytes of a safetensors file: its header, then one tensor at a time.

    Sharded tensors are gathered on the way, so all processes must consume the iterator together.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name, tensor in tensors.items():
        if tensor.dtype not in _DTYPES:
            raise CheckpointError(f"{name} has dtype {tensor.dtype}, which can't be saved")
        start, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": _DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for tensor in tensors.values():
        whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        flat = whole.detach().to("cpu").contiguous().reshape(-1)
        array: Any = flat.view(torch.uint8).numpy()
        yield memoryview(array)


def load_trainable_state(model: nn.Module, path: Path) -> None:
    """Load saved weights into a model with the same trainable parts, sharded or not.

    Raises:
        CheckpointError: names or shapes differ from the trainable weights of the model.
    """
    targets = trainable_state(model)
    with safe_open(path, "pt") as file:
        _require_same_names(path, set(targets), set(file.keys()))
        with torch.no_grad():
            for name, target in targets.items():
                _copy_into(target, _read(file, path, name, target.shape))


def _require_same_names(path: Path, expected: set[str], found: set[str]) -> None:
    for verb, names in (("lacks", expected - found), ("also has", found - expected)):
        if names:
            raise CheckpointError(
                f"{path} {verb} {min(names)} and {len(names) - 1} more: it was saved with other "
                "train.parts"
            )


def _read(file: Any, path: Path, name: str, shape: torch.Size) -> Tensor:
    value: Tensor = file.get_tensor(name)
    if value.shape != shape:
        raise CheckpointError(f"{path}: {name} is {tuple(value.shape)}, expected {tuple(shape)}")
    return value


def _copy_into(target: Tensor, value: Tensor) -> None:
    if isinstance(target, DTensor):
        value, target = _shard(value, target).to_local(), target.to_local()
    target.copy_(value)


def _shard(value: Tensor, like: DTensor) -> DTensor:
    """A tensor that every process holds whole, sharded like another one."""
    mesh = like.device_mesh
    device = torch.device(mesh.device_type)
    # Without a source rank each process slices its own copy and no data is sent.
    return distribute_tensor(value.to(device), mesh, like.placements, src_data_rank=None)


def optimizer_tensors(optimizer: Any, model: nn.Module) -> dict[str, Tensor]:
    """The tensors of an optimizer's state, named `PARAMETER/KEY`; AdamW has no other state."""
    names = _names(model)
    return {
        f"{names[id(parameter)]}/{key}": value
        for parameter, state in _inner(optimizer).state.items()
        for key, value in state.items()
        if isinstance(value, Tensor)
    }


def optimizer_settings(optimizer: Any, model: nn.Module) -> list[dict[str, Any]]:
    """The parameter groups as JSON values."""
    names = _names(model)
    groups = []
    for group in _inner(optimizer).param_groups:
        settings = {key: _jsonable(value) for key, value in group.items() if key != "params"}
        groups.append({"settings": settings, "parameters": [names[id(p)] for p in group["params"]]})
    return groups


def load_optimizer_state(
    optimizer: Any, model: nn.Module, path: Path, groups: list[dict[str, Any]]
) -> None:
    """Load saved state and settings into an optimizer over the same parameters.

    Raises:
        CheckpointError: the parameter groups differ from the saved ones.
    """
    names, inner = _names(model), _inner(optimizer)
    if len(groups) != len(inner.param_groups):
        raise CheckpointError(
            f"{path} was saved with {len(groups)} parameter groups, not {len(inner.param_groups)}"
        )
    state: dict[int, dict[str, Any]] = {}
    packed: list[dict[str, Any]] = []
    with safe_open(path, "pt") as file:
        tensor_keys: dict[str, list[str]] = {}
        for full_key in file.keys():  # noqa: SIM118 - safe_open is not a mapping
            name, _, key = full_key.rpartition("/")
            tensor_keys.setdefault(name, []).append(key)
        for group, saved in zip(inner.param_groups, groups, strict=True):
            members = [names[id(p)] for p in group["params"]]
            _require_same_names(path, set(members), set(saved["parameters"]))
            first = len(state)
            for name, parameter in zip(members, group["params"], strict=True):
                state[len(state)] = {
                    key: _value(file, f"{name}/{key}", parameter)
                    for key in tensor_keys.get(name, [])
                }
            settings = {
                key: _typed(value, group.get(key)) for key, value in saved["settings"].items()
            }
            packed.append({**settings, "params": list(range(first, len(state)))})
    filled = {index: values for index, values in state.items() if values}
    inner.load_state_dict({"state": filled, "param_groups": packed})


def _value(file: Any, key: str, parameter: Tensor) -> Tensor:
    value: Tensor = file.get_tensor(key)
    if isinstance(parameter, DTensor) and value.shape == parameter.shape and value.dim():
        return _shard(value, parameter)
    return value


def _inner(optimizer: Any) -> torch.optim.Optimizer:
    """The torch optimizer inside accelerate's."""
    inner: torch.optim.Optimizer = getattr(optimizer, "optimizer", optimizer)
    return inner


def _names(model: nn.Module) -> dict[int, str]:
    return {id(parameter): strip_wrappers(name) for name, parameter in model.named_parameters()}


def _jsonable(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.item()
    return list(value) if isinstance(value, tuple) else value


def _typed(value: Any, like: Any) -> Any:
    """A JSON value converted to the type of the optimizer's current value."""
    if isinstance(like, Tensor):
        return torch.as_tensor(value, dtype=like.dtype, device=like.device)
    return tuple(value) if isinstance(like, tuple) else value


def frozen_fingerprint(model: nn.Module) -> str | None:
    """A hash over samples of every frozen weight, which tells base models apart.

    None if the weights are sharded already, because no process holds them whole.
    """
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            continue
        if isinstance(parameter, DTensor) or hasattr(parameter, "ds_shape") or parameter.is_meta:
            return None
        digest.update(
            f"{strip_wrappers(name)} {tuple(parameter.shape)} {parameter.dtype}\n".encode()
        )
        flat = parameter.detach().reshape(-1)
        picked = flat[:: max(1, flat.numel() // _SAMPLES)].to("cpu", torch.float64)
        digest.update(picked.numpy().tobytes())
    return digest.hexdigest()
