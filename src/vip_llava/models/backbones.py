"""The registry of language models that a checkpoint in the original's layout can be built on.

Hugging Face folders name their language model by transformers' `model_type`; the original writes
one flat configuration with a class name of its own, which has to be recognized. A `Backbone` says
how, and which conversation template belongs to it. This module does not know files or weights.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from transformers import CONFIG_MAPPING

from vip_llava.errors import CheckpointError

__all__ = [
    "Backbone",
    "backbone_template",
    "recognize_backbone",
    "register_backbone",
    "registered_backbones",
    "text_config_of",
]

_LLAMA_3_VOCABULARY = 128_000
_BACKBONES: dict[str, Backbone] = {}


@dataclass(frozen=True, slots=True)
class Backbone:
    """One kind of language model.

    Args:
        model_type: transformers' `model_type`.
        keyword: what the original's `model_type` or class name contains ("phi" in
            `LlavaPhi3ForCausalLM`), in lower case.
        template: conversation template, or a function of the language model's configuration.
        weight_suffix: end of the name of a weight that tells this kind from others with the same
            keyword.
    """

    model_type: str
    keyword: str
    template: str | Callable[[Mapping[str, Any]], str] = "llava_v1"
    weight_suffix: str | None = None


def register_backbone(backbone: Backbone) -> Backbone:
    """Make a kind of language model known; transformers must have its `model_type`.

    Where several keywords fit a configuration, the backbone registered last wins.
    """
    _BACKBONES[backbone.model_type] = backbone
    return backbone


def registered_backbones() -> tuple[str, ...]:
    """The model types that are registered."""
    return tuple(_BACKBONES)


def _llama_template(text: Mapping[str, Any]) -> str:
    llama_3 = int(text.get("vocab_size", 0)) >= _LLAMA_3_VOCABULARY
    return "llava_llama_3" if llama_3 else "llava_v1"


register_backbone(Backbone("llama", "llama", _llama_template))
register_backbone(Backbone("gemma", "gemma"))
register_backbone(Backbone("qwen2", "qwen2"))
register_backbone(Backbone("mistral", "mistral", "mistral_instruct"))
register_backbone(Backbone("phi3", "phi", "llava_phi_3", "self_attn.qkv_proj.weight"))


def recognize_backbone(config: Mapping[str, Any], weights: Iterable[str]) -> str:
    """transformers' `model_type` of the language model in one of the original's configurations.

    Raises:
        CheckpointError: a backbone that is not registered; names those that are.
    """
    named = f"{config.get('model_type', '')} {' '.join(config.get('architectures') or [])}".lower()
    if "mpt" in named:
        raise CheckpointError("MPT backbones are not supported: transformers has no LLaVA with MPT")
    for backbone in reversed(_BACKBONES.values()):
        if backbone.keyword not in named:
            continue
        suffix = backbone.weight_suffix
        if suffix is not None and not any(name.endswith(suffix) for name in weights):
            raise CheckpointError(
                f"{named.strip()!r} has no weight {suffix}, so its language model is not "
                f"{backbone.model_type}, the only supported one of that family"
            )
        return backbone.model_type
    if config.get("model_type") == "llava":
        return "llama"
    raise CheckpointError(
        f"unknown model type {config.get('model_type')!r}; expected one of vipllava, llava, "
        f"llava_llama, llava_phi3, llava_mistral, or a language model of type "
        f"{', '.join(_BACKBONES)}"
    )


def backbone_template(text: Mapping[str, Any]) -> str:
    """Name of the conversation template for a language model's configuration."""
    backbone = _BACKBONES.get(str(text["model_type"]))
    if backbone is None:
        return "llava_v1"
    return backbone.template if isinstance(backbone.template, str) else backbone.template(text)


def text_config_of(config: Mapping[str, Any], model_type: str) -> dict[str, Any]:
    """The settings of a flat configuration that the language model's class knows."""
    known = {field.name for field in dataclasses.fields(CONFIG_MAPPING[model_type])}
    known |= {"rope_theta", "rope_scaling", "partial_rotary_factor"}
    known -= {"architectures", "dtype", "torch_dtype", "transformers_version"}
    known -= {"id2label", "label2id"}
    text = {key: value for key, value in config.items() if key in known}
    return {**text, "model_type": model_type}
