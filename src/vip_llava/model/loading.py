"""The one door to models: a name or a folder of any layout in, a model and its processor out.

`load_model` is what everything else calls. `load_weights` is the half without tokenizer and picture
settings, for folders that have none. The models are transformers' own classes; nothing of a
checkpoint is ever executed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import (
    LlavaForConditionalGeneration,
    PreTrainedConfig,
    PreTrainedModel,
    VipLlavaForConditionalGeneration,
)
from transformers.utils import logging as transformers_logging

from vip_llava.errors import CheckpointError
from vip_llava.model.adapters import apply_adapter
from vip_llava.model.blueprint import transformers_config
from vip_llava.model.hub import Progress
from vip_llava.model.layouts import PROJECTOR, TOWER, listed
from vip_llava.model.processor import Processor
from vip_llava.model.quantize import Quantization, parse_quantization, quantize_model
from vip_llava.model.settings import build_processor, token_limits
from vip_llava.model.sources import EMBEDDING, HEAD, Checkpoint, Source, open_checkpoint
from vip_llava.model.towers import (
    StackedProjector,
    guard_placeholder,
    keep_only_used_states,
    needed,
    stopped,
)

__all__ = ["load_model", "load_weights"]

DEFAULT_NAME = "default"
_DTYPES = {
    "float32": torch.float32,
    "fp32": torch.float32,
    "float16": torch.float16,
    "fp16": torch.float16,
    "half": torch.float16,
    "bfloat16": torch.bfloat16,
    "bf16": torch.bfloat16,
}


@dataclass(frozen=True, slots=True)
class Placement:
    """Where weights go and as what."""

    dtype: torch.dtype
    device: torch.device
    device_map: str | dict[str, Any] | None = None
    quantization: Quantization | None = None

    @staticmethod
    def of(
        dtype: str | torch.dtype,
        device: str | torch.device | None,
        device_map: str | dict[str, Any] | None,
        quantization: str | int | None,
    ) -> Placement:
        """Fill in what the caller left open.

        Raises:
            CheckpointError: an unknown dtype or device, or both device and device_map.
        """
        if device is not None and device_map is not None:
            raise CheckpointError("give device or device_map, not both")
        try:
            place = torch.device(device) if device is not None else best_device()
        except RuntimeError:
            raise CheckpointError(f"unknown device {device!r}; expected cpu, cuda or mps") from None
        if place.type == "cuda" and not torch.cuda.is_available():
            raise CheckpointError(f"device {device!r}: no CUDA device is available here")
        return Placement(
            resolve_dtype(dtype, place), place, device_map, parse_quantization(quantization, place)
        )


def best_device() -> torch.device:
    """CUDA, else Apple's GPU, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def resolve_dtype(dtype: str | torch.dtype, device: torch.device) -> torch.dtype:
    """ "auto" is float32 on a CPU and bfloat16 elsewhere; names and torch's own values otherwise.

    Raises:
        CheckpointError: not a floating type that models run in.
    """
    if dtype == "auto":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    found = _DTYPES.get(dtype.removeprefix("torch.")) if isinstance(dtype, str) else dtype
    if found not in _DTYPES.values():
        raise CheckpointError(f"unknown dtype {dtype!r}; expected auto, float32, float16, bfloat16")
    assert isinstance(found, torch.dtype)
    return found


def load_model(
    name_or_folder: str | Path | None = None,
    *,
    base: str | Path | None = None,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device | None = None,
    device_map: str | dict[str, Any] | None = None,
    quantization: str | int | None = None,
    merge_adapter: bool = True,
    template: str | None = None,
    image_aspect_ratio: str | None = None,
    progress: Progress | None = None,
    vision_tower: str | Path | None = None,
    revision: str | None = None,
) -> tuple[PreTrainedModel, Processor]:
    """Open a model and the processor that feeds it.

    Args:
        name_or_folder: None or "default" for the model that comes with this package; a folder, or
            a hub id, in the Hugging Face layout or the original's (whole, projector only, LoRA).
        base: the model that a projector or LoRA folder belongs to.
        dtype: "auto" (float32 on a CPU, bfloat16 elsewhere), a name, or a torch dtype.
        device: where to put it; the best one by default. Or `device_map` as transformers takes it.
        quantization: "8bit" or "4bit" for the language model's weights.
        merge_adapter: fold a LoRA into the weights; False keeps it as a peft adapter.
        template: conversation template instead of the one that the checkpoint implies.
        image_aspect_ratio: "pad", "square" (crop) or "resize" instead of the checkpoint's.
        progress: called as `progress(stage, done, total)`.
        vision_tower: folder or hub id of the picture encoder, where a checkpoint has none inside.
        revision: of a hub id; all its files come from that one commit.

    Raises:
        CheckpointError: the folder can't be loaded as it is; says which file, key or setting.
        QuantizationError: this quantization can't be done here.
        DownloadError: a part could not be fetched.
    """
    placement = Placement.of(dtype, device, device_map, quantization)
    if name_or_folder is None or str(name_or_folder) == DEFAULT_NAME:
        return _load_default(placement, template, image_aspect_ratio, progress)
    source = Source.named(name_or_folder, base, vision_tower, revision, progress)
    checkpoint = open_checkpoint(source)
    processor = build_processor(checkpoint, template, image_aspect_ratio)
    model = build(checkpoint, placement, merge_adapter, progress)
    if processor.image_token_id != checkpoint.blueprint.image_token_id:
        guard_placeholder(model, processor.image_token_id)
    return model, processor


def load_weights(
    folder: str | Path,
    *,
    base: str | Path | None = None,
    vision_tower: str | Path | None = None,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device | None = None,
    device_map: str | dict[str, Any] | None = None,
    quantization: str | int | None = None,
    merge_adapter: bool = True,
    progress: Progress | None = None,
    revision: str | None = None,
) -> PreTrainedModel:
    """The model alone, as `load_model` builds it; the folder needs no tokenizer.

    `model.config.image_token_id` marks picture tokens in `input_ids`, `model.config.image_seq_length`
    of them a picture.
    """
    placement = Placement.of(dtype, device, device_map, quantization)
    source = Source.named(folder, base, vision_tower, revision, progress)
    return build(open_checkpoint(source), placement, merge_adapter, progress)


def _load_default(
    placement: Placement, template: str | None, aspect: str | None, progress: Progress | None
) -> tuple[PreTrainedModel, Processor]:
    if placement.device_map is not None:
        raise CheckpointError("the default model is small: give device instead of device_map")
    from vip_llava.model.default import load_default
    from vip_llava.model.geometry import aspect_mode
    from vip_llava.model.templates import get_template

    model, processor = load_default(
        dtype=placement.dtype, device=placement.device, progress=progress
    )
    if placement.quantization is not None:
        quantize_model(model, placement.quantization)
    if template is not None:
        processor.template = get_template(template)
    if aspect is not None:
        processor.geometry = replace(processor.geometry, mode=aspect_mode(aspect))
    return model, processor


def build(
    checkpoint: Checkpoint,
    placement: Placement,
    merge_adapter: bool = True,
    progress: Progress | None = None,
) -> PreTrainedModel:
    """A transformers model of an opened checkpoint, in evaluation mode."""
    tell = progress or (lambda stage, done, total: None)
    tell("loading weights", 0, 1)
    if placement.quantization is None or placement.device_map is not None:
        model = _assemble(checkpoint, placement)
    else:
        # The full weights may not fit where the small ones will: start on the CPU.
        model = _assemble(checkpoint, replace(placement, device=torch.device("cpu")))
    if checkpoint.adapter is not None:
        model = apply_adapter(model, checkpoint.adapter, merge_adapter)
    if placement.quantization is not None:
        if placement.device_map is None:
            quantize_model(model, placement.quantization, placement.device)
            model.to(placement.device)
        else:
            quantize_model(model, placement.quantization)
    keep_only_used_states(model)
    guard_placeholder(model, checkpoint.blueprint.image_token_id)
    for name, value in token_limits(checkpoint).items():
        setattr(model.generation_config, name, value)
    model.eval()
    tell("loading weights", 1, 1)
    return model


def _assemble(checkpoint: Checkpoint, placement: Placement) -> PreTrainedModel:
    blueprint = stopped(checkpoint.blueprint)
    tensors = needed(checkpoint.tensors, int(blueprint.vision.get("num_hidden_layers", 0)))
    _untie_if_different(blueprint.text, tensors)
    config = transformers_config(blueprint)
    norm = blueprint.projector.norm
    cls = VipLlavaForConditionalGeneration if norm else LlavaForConditionalGeneration
    usual = blueprint.projector.linears == 2
    tensors = check_weights(cls, config, tensors, checkpoint, usual)
    projector = {n: t for n, t in tensors.items() if n.startswith(PROJECTOR)}
    if not usual:
        tensors = {n: t for n, t in tensors.items() if n not in projector}
    model = _from_tensors(cls, config, tensors, placement)
    if not usual:
        eps = float(blueprint.notes.get("projector_layernorm_eps", 1e-5))
        _swap_projector(model, projector, eps)
    return model


def _untie_if_different(text: dict[str, Any], tensors: Mapping[str, torch.Tensor]) -> None:
    """A checkpoint with its own output matrix has one, whatever its configuration claims."""
    head = tensors.get(HEAD)
    if text.get("tie_word_embeddings") and head is not None:
        text["tie_word_embeddings"] = torch.equal(head, tensors[EMBEDDING])


def _from_tensors(
    cls: type[PreTrainedModel],
    config: PreTrainedConfig,
    tensors: dict[str, torch.Tensor],
    placement: Placement,
) -> PreTrainedModel:
    where = placement.device_map
    if where is None and placement.device.type != "cpu":
        where = {"": placement.device}
    with quiet():
        model: PreTrainedModel = cls.from_pretrained(
            None, config=config, state_dict=tensors, dtype=placement.dtype, device_map=where
        )
    return model


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars and reports of transformers: the checks here are stricter than its own."""
    level = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()


def check_weights(
    cls: Callable[[Any], PreTrainedModel],
    config: PreTrainedConfig,
    tensors: dict[str, torch.Tensor],
    checkpoint: Checkpoint,
    usual_projector: bool,
) -> dict[str, torch.Tensor]:
    """Compare all names and shapes with the model's before anything is loaded.

    Returns the tensors, those of the encoder renamed where its class has one more level.

    Raises:
        CheckpointError: weights missing, unexpected or of another shape, by their names in the file.
    """
    with torch.device("meta"), quiet():
        expected = {name: t.shape for name, t in cls(config).state_dict().items()}
    tensors = _with_tower_level(tensors, expected)
    ours = PROJECTOR if not usual_projector else "\0"
    missing = {n for n in expected.keys() - tensors.keys() if not n.startswith(ours)}
    if config.tie_word_embeddings:
        missing.discard(HEAD)
    unexpected = {n for n in tensors.keys() - expected.keys() if not n.startswith(ours)}
    where = checkpoint.folders[0]

    def named(names: set[str]) -> str:
        return listed(checkpoint.spelled.get(name, name) for name in names) or "none"

    if missing or unexpected:
        raise CheckpointError(
            f"{where}: weights missing: {named(missing)}; unexpected: {named(unexpected)}"
        )
    wrong = [
        f"{checkpoint.spelled.get(name, name)} is {tuple(tensor.shape)}, expected "
        f"{tuple(expected[name])}"
        for name, tensor in tensors.items()
        if name in expected and not name.startswith(ours) and tensor.shape != expected[name]
    ]
    if wrong:
        raise CheckpointError(f"{where}: weights of another shape: {listed(wrong)}")
    return tensors


def _with_tower_level(
    tensors: dict[str, torch.Tensor], expected: Mapping[str, torch.Size]
) -> dict[str, torch.Tensor]:
    """Encoders other than CLIP may still call their insides `vision_model`."""
    deeper = f"{TOWER}vision_model."
    if not any(name.startswith(deeper) for name in expected):
        return tensors
    return {
        deeper + name.removeprefix(TOWER) if name.startswith(TOWER) else name: tensor
        for name, tensor in tensors.items()
    }


def _swap_projector(
    model: PreTrainedModel, weights: Mapping[str, torch.Tensor], eps: float
) -> None:
    """Put our projector where transformers' two-layer one doesn't fit."""
    plain = {name.removeprefix(PROJECTOR): tensor for name, tensor in weights.items()}
    old = model.get_submodule(PROJECTOR.rstrip("."))
    place = next(old.parameters())
    new = StackedProjector(plain, eps)
    if new.state_dict().keys() != plain.keys():
        difference = new.state_dict().keys() ^ plain.keys()
        raise CheckpointError(f"projector weights missing or unexpected: {listed(difference)}")
    new.load_state_dict(plain)
    new.to(device=place.device, dtype=place.dtype)
    if (hook := getattr(old, "_hf_hook", None)) is not None:
        from accelerate.hooks import add_hook_to_module

        add_hook_to_module(new, hook)
    model.set_submodule(PROJECTOR.rstrip("."), new)
