"""The entry point `lmms_eval.models`, through which lmms-eval finds the model `vip_llava`."""

from __future__ import annotations

from typing import Any

__all__ = ["AVAILABLE_MODELS", "manifests"]

#: Read by lmms-eval's older plug-ins (`LMMS_EVAL_PLUGINS`), which find tasks but not this model.
AVAILABLE_MODELS: dict[str, str] = {}


def manifests() -> list[Any]:
    """One manifest, of a chat model: tasks then give messages with their images."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return [
        ModelManifest(
            model_id="vip_llava",
            chat_class_path="vip_llava.evaluation.lmms.model.VipLlavaForLmmsEval",
        )
    ]
