"""What lmms-eval finds through the entry point `lmms_eval.models`: the model `vip_llava`."""

from __future__ import annotations

from typing import Any

__all__ = ["AVAILABLE_MODELS", "manifests"]

#: Asked for by the older way of plugging in (`LMMS_EVAL_PLUGINS`), which finds tasks; the model comes
#: through the entry point.
AVAILABLE_MODELS: dict[str, str] = {}


def manifests() -> list[Any]:
    """The one manifest: a chat model, so that tasks hand over messages with their images."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return [
        ModelManifest(
            model_id="vip_llava",
            chat_class_path="vip_llava.evaluation.lmms.model.VipLlavaForLmmsEval",
        )
    ]
