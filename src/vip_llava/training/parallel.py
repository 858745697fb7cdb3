"""Parallelism of a run as keyword arguments for transformers' TrainingArguments.

DDP replicates the model on each device; FSDP2 and ZeRO shard weights, gradients or optimizer state.
The settings of FSDP2 and ZeRO are also files in `recipes/parallel/`, for launchers that read files.

DDP and FSDP2 are tested with two processes on CPUs. ZeRO needs DeepSpeed and a GPU and has not been
run; its checkpoints are DeepSpeed's own (sharded, with pickles inside) and can't be resumed with
another number of processes.

It does not know the parts of a model and starts no process.
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
    "STRATEGIES",
    "Strategy",
    "fsdp_config",
    "layer_class_names",
    "parallel_arguments",
    "require_fsdp2",
    "zero_config",
]

Strategy = Literal["ddp", "fsdp2", "fsdp2-offload", "zero2", "zero3", "zero3-offload"]
STRATEGIES: tuple[str, ...] = get_args(Strategy)

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
_ZERO2: dict[str, Any] = {
    "stage": 2,
    "overlap_comm": True,
    "contiguous_gradients": True,
    "reduce_bucket_size": "auto",
}
_ZERO3: dict[str, Any] = {
    **_ZERO2,
    "stage": 3,
    "stage3_prefetch_bucket_size": "auto",
    "stage3_param_persistence_threshold": "auto",
    "stage3_gather_16bit_weights_on_model_save": True,
}


def fsdp_config(*, offload: bool = False, checkpointing: bool = False) -> dict[str, Any]:
    """FSDP2: each layer is a unit, whose weights are gathered for its call and freed after it."""
    config = {**_FSDP2, "cpu_offload": offload}
    # FSDP's own checkpointing: transformers' would gather each layer's weights once more.
    return {**config, "activation_checkpointing": True} if checkpointing else config


def zero_config(strategy: str) -> dict[str, Any]:
    """DeepSpeed's settings for `zero2`, `zero3` or `zero3-offload`."""
    stage = _ZERO2 if strategy == "zero2" else _ZERO3
    config = copy.deepcopy({**_ZERO, "zero_optimization": stage})
    if strategy.endswith("-offload"):
        config["zero_force_ds_cpu_optimizer"] = False
        for name in ("offload_optimizer", "offload_param"):
            config["zero_optimization"][name] = {"device": "cpu", "pin_memory": True}
    return config


def parallel_arguments(strategy: str, *, checkpointing: bool = False) -> dict[str, Any]:
    """Arguments of TrainingArguments for a strategy, with or without activation checkpointing.

    Raises:
        RequestError: an unknown strategy. MissingExtraError: ZeRO without DeepSpeed.
    """
    if strategy not in STRATEGIES:
        raise RequestError(f"unknown parallel strategy {strategy!r}: expected {list(STRATEGIES)}")
    if strategy.startswith("fsdp2"):
        config = fsdp_config(offload=strategy.endswith("-offload"), checkpointing=checkpointing)
        return {"fsdp": True, "fsdp_config": config}
    arguments: dict[str, Any] = {}
    if checkpointing:
        # Newer releases of transformers call it "activation", older ones "gradient".
        fields = {field.name for field in dataclasses.fields(TrainingArguments)}
        new = "activation_checkpointing" in fields
        name = "activation_checkpointing" if new else "gradient_checkpointing"
        arguments = {name: True, f"{name}_kwargs": {"use_reentrant": False}}
    if strategy == "ddp":
        # Every trainable parameter takes part in every batch; see `vision`.
        return {
            **arguments,
            "ddp_find_unused_parameters": False,
            "ddp_broadcast_buffers": False,
        }
    if importlib.util.find_spec("deepspeed") is None:
        raise MissingExtraError(
            f"parallel: {strategy} needs DeepSpeed, which is in no extra: pip install deepspeed"
        )
    return {**arguments, "deepspeed": zero_config(strategy)}


def layer_class_names(model: nn.Module) -> list[str]:
    """The classes of a model's layers: those of every ModuleList with a single class.

    transformers names layer classes itself, but also some that a vision tower alone does not have.
    """
    lists = [list(module) for module in model.modules() if isinstance(module, nn.ModuleList)]
    classes = [{type(layer) for layer in layers} for layers in lists]
    return sorted({each.pop().__name__ for each in classes if len(each) == 1})


def require_fsdp2(accelerator: Any, plugin_arguments: dict[str, Any] | None) -> None:
    """Enable FSDP2 if it was requested and accelerate did not enable it.

    accelerate silently skips FSDP on CPUs; there it is enabled here.
    Raises RequestError if accelerate skipped it for another reason.
    """
    from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

    state = accelerator.state
    single = state.num_processes == 1
    if plugin_arguments is None or single or state.distributed_type == DistributedType.FSDP:
        return
    if state.distributed_type != DistributedType.MULTI_CPU:
        raise RequestError(f"accelerate can't use FSDP2 with {state.distributed_type}")
    plugin = FullyShardedDataParallelPlugin(**plugin_arguments)
    if state.mixed_precision != "no":
        plugin.set_mixed_precision(state.mixed_precision)
    state.fsdp_plugin = plugin
    state.distributed_type = DistributedType.FSDP
