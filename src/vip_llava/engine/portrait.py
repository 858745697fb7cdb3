"""What a model is made of, quickly: whether anything changed since it was looked at last.

Looking closely at every layer takes longer than a short step of the model, so that is done only
where two portraits differ.

This module knows torch's modules and no model in particular.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor, nn

__all__ = ["Glance", "Portrait", "portrait"]


class Portrait(NamedTuple):
    """Two are equal as long as nothing was changed that is seen from outside."""

    weights: int
    """Of the parameters: where they lie, and how often they were written to (a view of one that is
    written to goes unseen)."""
    parts: int
    """Of modules, hooks on them, and where all tensors lie."""


def portrait(model: nn.Module) -> Portrait:
    """Of a model and all modules in it."""
    parts: list[object] = []
    parameters: list[Any] = []
    buffers: list[Any] = []
    modules: list[Any] = [model]
    # Level by level, and by functions of C where that is possible: every request waits for this.
    while modules:
        parts += map(id, modules)
        parts += map(type, modules)
        below: list[Any] = []
        for module in modules:
            own = module.__dict__
            if own["_forward_hooks"] or own["_forward_pre_hooks"]:
                parts += (*own["_forward_hooks"], None, *own["_forward_pre_hooks"])
            if "forward" in own or "_hf_hook" in own:
                parts.append(id(own.get("forward")))
            if own["_parameters"]:
                parameters += own["_parameters"].values()
            if own["_buffers"]:
                buffers += own["_buffers"].values()
            if own["_modules"]:
                below += own["_modules"].values()
        modules = [module for module in below if module is not None]
    parameters = [one for one in parameters if one is not None]
    places = [one.data_ptr() for one in parameters]
    parts += places
    parts += [one.data_ptr() for one in buffers if one is not None]
    try:
        places += [one._version for one in parameters]
    except RuntimeError:  # tensors of inference mode count no writes
        places += [0 if one.is_inference() else one._version for one in parameters]
    return Portrait(hash(tuple(places)), hash(tuple(parts)))


class Glance:
    """Where the tensors of a model lay when it was looked at closely."""

    def __init__(self, model: nn.Module) -> None:
        self._tensors = [*model.parameters(), *model.buffers()]
        self._places = [one.data_ptr() for one in self._tensors]

    def same(self) -> bool:
        """Whether all of them still lie there, so that what was recorded may read them.

        They may have been written to, and others may have taken their place in the model.
        """
        return list(map(Tensor.data_ptr, self._tensors)) == self._places
