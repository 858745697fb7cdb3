"""How devices share the work, as plain values for transformers' TrainingArguments.

DDP copies the model to each device, FSDP2 and ZeRO spread weights, gradients or optimizer state.
The settings of FSDP2 and ZeRO are also files in `recipes/parallel/`, for launchers that want files.

What was run: DDP and FSDP2 with two processes on CPUs (and in the tests). ZeRO needs DeepSpeed and a
GPU and has not been run; its checkpoints are DeepSpeed's own (sharded, and pickles inside), so they
can't be moved to another number of processes here.

It knows no names of models' parts and starts no process.
"""

from __future__ import annotations

import copy
import dataclasses
import importlib.util
from typing import Any, Literal, get_args

from torch import nn
from transformers import TrainingArguments

from vip_llava.errors import MissingExtraError, RequestError

__all__ = [
    "PARALLEL",
    "Parallel",
    "fsdp_config",
    "layer_classes",
    "parallel_arguments",
    "share_for_certain",
    "zero_config",
]

Parallel = Literal["ddp", "fsdp2", "fsdp2-offload", "zero2", "zero3", "zero3-offload"]
PARALLEL: tuple[str, ...] = get_args(Parallel)

_FSDP2: dict[str, Any] = {
    "version": 2,
    "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
    "reshard_after_forward": True,
    "cpu_ram_efficient_loading": False,
    "state_dict_type": "SHARDED_STATE_DICT",
}
_ZERO: dict[str, Any] = {
    "train_micro_batch_size_per_gpu": "auto",
    "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto",
    "bf16": {"enabled": "auto"},
    "fp16": {"enabled": "auto"},
    "zero_allow_untested_optimizer": True,
}
_ZERO_STAGES: dict[str, dict[str, Any]] = {
    "zero2": {
        "stage": 2,
        "overlap_comm": True,
        "contiguous_gradients": True,
        "reduce_bucket_size": "auto",
    },
    "zero3": {
        "stage": 3,
        "overlap_comm": True,
        "contiguous_gradients": True,
        "reduce_bucket_size": "auto",
        "stage3_prefetch_bucket_size": "auto",
        "stage3_param_persistence_threshold": "auto",
        "stage3_gather_16bit_weights_on_model_save": True,
    },
}


def fsdp_config(*, offload: bool = False, checkpointing: bool = False) -> dict[str, Any]:
    """FSDP2: each layer of the model is a unit; weights are gathered for it and let go again."""
    config = {**_FSDP2, "cpu_offload": offload}
    # Inside the units: transformers' own would gather each layer once more.
    return {**config, "activation_checkpointing": True} if checkpointing else config


def zero_config(kind: str) -> dict[str, Any]:
    """DeepSpeed's settings for `zero2`, `zero3` or `zero3-offload`."""
    config = copy.deepcopy({**_ZERO, "zero_optimization": _ZERO_STAGES[kind[: len("zero0")]]})
    if kind.endswith("-offload"):
        config["zero_force_ds_cpu_optimizer"] = False
        for what in ("optimizer", "param"):
            config["zero_optimization"][f"offload_{what}"] = {"device": "cpu", "pin_memory": True}
    return config


def parallel_arguments(kind: str, *, checkpointing: bool = False) -> dict[str, Any]:
    """Keyword arguments for TrainingArguments: how to share the work, and activation checkpointing.

    Raises:
        RequestError: an unknown kind. MissingExtraError: ZeRO without DeepSpeed.
    """
    if kind not in PARALLEL:
        raise RequestError(
            f"no way to share the work is called {kind!r}: expected {list(PARALLEL)}"
        )
    if kind.startswith("fsdp2"):
        config = fsdp_config(offload=kind.endswith("-offload"), checkpointing=checkpointing)
        return {"fsdp": True, "fsdp_config": config}
    arguments: dict[str, Any] = {}
    if checkpointing:
        # Later versions of transformers say "activation", earlier ones "gradient".
        fields = {field.name for field in dataclasses.fields(TrainingArguments)}
        new = "activation_checkpointing" in fields
        name = "activation_checkpointing" if new else "gradient_checkpointing"
        arguments = {name: True, f"{name}_kwargs": {"use_reentrant": False}}
    if kind == "ddp":
        # Everything that learns takes part in every batch; see `vision`.
        return {
            **arguments,
            "ddp_find_unused_parameters": False,
            "ddp_broadcast_buffers": False,
        }
    if importlib.util.find_spec("deepspeed") is None:
        raise MissingExtraError(
            f"parallel {kind} needs DeepSpeed, which no extra brings: pip install deepspeed"
        )
    return {**arguments, "deepspeed": zero_config(kind)}


def layer_classes(model: nn.Module) -> list[str]:
    """Names of the classes of a model's layers: those that lists of like modules hold.

    transformers names such classes itself, but also some that a vision tower alone lacks.
    """
    lists = [list(module) for module in model.modules() if isinstance(module, nn.ModuleList)]
    kinds = [{type(layer) for layer in layers} for layers in lists]
    return sorted({kind.pop().__name__ for kind in kinds if len(kind) == 1})


def share_for_certain(accelerator: Any, plugin_arguments: dict[str, Any] | None) -> None:
    """See to it that several processes which shall share by FSDP2 do so.

    accelerate leaves it out on CPUs, in silence; there it is switched on here.
    Raises RequestError where it is out for another reason.
    """
    from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

    state = accelerator.state
    alone = state.num_processes == 1
    if plugin_arguments is None or alone or state.distributed_type == DistributedType.FSDP:
        return
    if state.distributed_type != DistributedType.MULTI_CPU:
        raise RequestError(f"accelerate can't share by FSDP2 here ({state.distributed_type})")
    plugin = FullyShardedDataParallelPlugin(**plugin_arguments)
    if state.mixed_precision != "no":
        plugin.set_mixed_precision(state.mixed_precision)
    state.fsdp_plugin = plugin
    state.distributed_type = DistributedType.FSDP
