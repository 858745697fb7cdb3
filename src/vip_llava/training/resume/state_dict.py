"""What learns, as named whole tensors in safetensors files, and back.

A checkpoint holds the weights that learn and the optimizer's state for them, each under its
parameter's name and in one piece, however many processes trained it: so it can be read by any
number of them, sharded (FSDP2) or not. Tensors are gathered and written one at a time.

This module knows torch's tensors and optimizers. It knows no folders and no trainer.
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
from vip_llava.training.param_groups import learned_buffers, learning

__all__ = [
    "as_safetensors",
    "frozen_fingerprint",
    "learned_state",
    "load_learned",
    "load_optimizer",
    "optimizer_settings",
    "optimizer_state",
]

# What DDP, torch.compile, FSDP and activation checkpointing put into names.
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


def plain_name(name: str) -> str:
    """A parameter's name without what wrappers added."""
    while (shorter := _WRAPPERS.sub(r"\1", name)) != name:
        name = shorter
    return name


def learned_state(model: nn.Module) -> dict[str, Tensor]:
    """Everything in a model that training changes: weights that learn, statistics beside them."""
    found = {plain_name(name): parameter.detach() for name, parameter in learning(model)}
    return found | {plain_name(name): buffer for name, buffer in learned_buffers(model)}


def as_safetensors(
    tensors: Mapping[str, Tensor], about: Mapping[str, str] | None = None
) -> Iterator[memoryview | bytes]:
    """The bytes of a safetensors file, a tensor at a time; `about` are texts in its header.

    Sharded tensors are gathered on the way: all processes must go through it together.
    """
    header: dict[str, Any] = {"__metadata__": dict(about)} if about else {}
    end = 0
    for name, tensor in tensors.items():
        if tensor.dtype not in _DTYPES:
            raise CheckpointError(f"{name} is {tensor.dtype}, which can't be saved")
        start, end = end, end + tensor.numel() * tensor.element_size()
        shape = list(tensor.shape)
        header[name] = {
            "dtype": _DTYPES[tensor.dtype],
            "shape": shape,
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


def load_learned(model: nn.Module, path: Path) -> None:
    """Put the saved weights into a model of the same parts, sharded or not.

    Raises:
        CheckpointError: names or shapes differ from what learns here.
    """
    targets = learned_state(model)
    with safe_open(path, "pt") as file:
        _same_names(path, set(targets), set(file.keys()))
        with torch.no_grad():
            for name, target in targets.items():
                _fill(target, _read(file, path, name, target.shape))


def _same_names(path: Path, wanted: set[str], found: set[str]) -> None:
    for what, names in (("lacks", wanted - found), ("has also", found - wanted)):
        if names:
            raise CheckpointError(
                f"{path} {what} {min(names)} and {len(names) - 1} more: it was made with other "
                "parts to train"
            )


def _read(file: Any, path: Path, name: str, shape: torch.Size) -> Tensor:
    value: Tensor = file.get_tensor(name)
    if value.shape != shape:
        raise CheckpointError(f"{path}: {name} is {tuple(value.shape)}, expected {tuple(shape)}")
    return value


def _fill(target: Tensor, value: Tensor) -> None:
    if isinstance(target, DTensor):
        value, target = _sharded(value, target).to_local(), target.to_local()
    target.copy_(value)


def _sharded(value: Tensor, like: DTensor) -> DTensor:
    """A whole tensor that every process has, as shards like those of another one."""
    mesh = like.device_mesh
    device = torch.device(mesh.device_type)
    # Each takes its own part: nothing is sent.
    return distribute_tensor(value.to(device), mesh, like.placements, src_data_rank=None)


def optimizer_state(optimizer: Any, model: nn.Module) -> dict[str, Tensor]:
    """The tensors of an optimizer's state as `parameter/key`."""
    names = _names(model)
    return {
        f"{names[id(parameter)]}/{key}": value
        for parameter, state in _inner(optimizer).state.items()
        for key, value in state.items()
        if isinstance(value, Tensor)
    }


def optimizer_settings(optimizer: Any, model: nn.Module) -> list[dict[str, Any]]:
    """The optimizer's groups, and states that are no tensors, as values for JSON."""
    names, inner = _names(model), _inner(optimizer)
    groups = []
    for group in inner.param_groups:
        settings = {key: _jsonable(value) for key, value in group.items() if key != "params"}
        other = {
            f"{names[id(p)]}/{key}": value
            for p in group["params"]
            for key, value in inner.state.get(p, {}).items()
            if not isinstance(value, Tensor)
        }
        members = [names[id(p)] for p in group["params"]]
        groups.append({"settings": settings, "parameters": members, "other_state": other})
    return groups


def load_optimizer(
    optimizer: Any, model: nn.Module, path: Path, groups: list[dict[str, Any]]
) -> None:
    """Put the saved state and settings into an optimizer over the same parameters.

    Raises:
        CheckpointError: the groups hold other parameters, or tensors have other shapes.
    """
    names, inner = _names(model), _inner(optimizer)
    state: dict[int, dict[str, Any]] = {}
    packed: list[dict[str, Any]] = []
    with safe_open(path, "pt") as file:
        saved: dict[str, list[str]] = {}
        for key in file.keys():  # noqa: SIM118 - not a mapping
            saved.setdefault(key.rpartition("/")[0], []).append(key.rpartition("/")[2])
        if len(groups) != len(inner.param_groups):
            raise CheckpointError(f"{path}: made with {len(groups)} groups of parameters")
        for group, kept in zip(inner.param_groups, groups, strict=True):
            members = [names[id(p)] for p in group["params"]]
            _same_names(path, set(members), set(kept["parameters"]))
            first = len(state)
            for index, (name, parameter) in enumerate(zip(members, group["params"], strict=True)):
                values = {
                    key: _value(file, f"{name}/{key}", parameter) for key in saved.get(name, [])
                }
                for key, value in kept["other_state"].items():
                    if key.rpartition("/")[0] == name:
                        values[key.rpartition("/")[2]] = value
                state[first + index] = values
            settings = {
                key: _typed(value, group.get(key)) for key, value in kept["settings"].items()
            }
            packed.append({**settings, "params": list(range(first, len(state)))})
    filled = {index: values for index, values in state.items() if values}
    inner.load_state_dict({"state": filled, "param_groups": packed})


def _value(file: Any, key: str, parameter: Tensor) -> Tensor:
    value: Tensor = file.get_tensor(key)
    if isinstance(parameter, DTensor) and value.shape == parameter.shape and value.dim():
        return _sharded(value, parameter)
    return value


def _inner(optimizer: Any) -> torch.optim.Optimizer:
    """The torch optimizer inside accelerate's."""
    inner: torch.optim.Optimizer = getattr(optimizer, "optimizer", optimizer)
    return inner


def _names(model: nn.Module) -> dict[int, str]:
    return {id(parameter): plain_name(name) for name, parameter in model.named_parameters()}


def _jsonable(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.item()
    return list(value) if isinstance(value, tuple) else value


def _typed(value: Any, like: Any) -> Any:
    """A value from JSON in the type that the optimizer has it."""
    if isinstance(like, Tensor):
        return torch.as_tensor(value, dtype=like.dtype, device=like.device)
    return tuple(value) if isinstance(like, tuple) else value


def frozen_fingerprint(model: nn.Module) -> str | None:
    """A hash over samples of every weight that doesn't learn: another base model gives another.

    None where the weights are spread over processes already, so that no one can see them.
    """
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            continue
        if isinstance(parameter, DTensor) or hasattr(parameter, "ds_shape") or parameter.is_meta:
            return None
        digest.update(f"{plain_name(name)} {tuple(parameter.shape)} {parameter.dtype}\n".encode())
        flat = parameter.detach().reshape(-1)
        picked = flat[:: max(1, flat.numel() // _SAMPLES)].to("cpu", torch.float64)
        digest.update(picked.numpy().tobytes())
    return digest.hexdigest()
