"""Groups of command-line options written once as frozen dataclasses and shared by several verbs.

A verb asks for a group as one parameter; `grouped` spreads the group's fields into options for
typer and hands the verb the filled dataclass. `OrderedCommand` remembers in which order options
were typed, which typer forgets across different options. Knows nothing of what the options mean.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, get_type_hints

import typer
from typer.core import TyperCommand

__all__ = ["OrderedCommand", "Typed", "grouped", "typed_options"]

META_KEY = "vip_llava.cli.typed"


@dataclasses.dataclass(frozen=True, slots=True)
class Typed:
    """One option as it was typed: the name of its parameter and the raw text after it."""

    name: str
    value: str


class OrderedCommand(TyperCommand):
    """A command that keeps the order of its options; read it with `typed_options`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        # The command's own parser reports every parameter once per occurrence, in typed order, and
        # gathers the values of each; both are thrown away later, so it runs once more for itself.
        values, _, order = self.make_parser(ctx).parse_args(args=list(args))
        left = {name: list(found) for name, found in values.items() if isinstance(found, list)}
        ctx.meta[META_KEY] = tuple(
            Typed(param.name, str(left[param.name].pop(0)))
            for param in order
            if left.get(param.name)
        )
        return super().parse_args(ctx, args)


def typed_options(ctx: typer.Context) -> tuple[Typed, ...]:
    """The repeatable options of this command line, in the order they were typed."""
    typed: tuple[Typed, ...] = ctx.meta.get(META_KEY, ())
    return typed


def grouped(verb: Callable[..., None]) -> Callable[..., None]:
    """Spread every dataclass-annotated parameter of `verb` into one option per field."""
    hints = get_type_hints(verb, include_extras=True)
    parameters: list[inspect.Parameter] = []
    groups: dict[str, type[Any]] = {}
    for parameter in inspect.signature(verb).parameters.values():
        hint = hints[parameter.name]
        if dataclasses.is_dataclass(hint) and isinstance(hint, type):
            groups[parameter.name] = hint
            parameters += _field_parameters(hint)
        else:
            kind = inspect.Parameter.KEYWORD_ONLY
            parameters.append(parameter.replace(annotation=hint, kind=kind))

    @functools.wraps(verb)
    def call(**given: Any) -> None:
        for name, group in groups.items():
            fields = [field.name for field in dataclasses.fields(group)]
            given[name] = group(**{field: given.pop(field) for field in fields})
        verb(**given)

    _describe(call, parameters)
    return call


def _field_parameters(group: type[Any]) -> list[inspect.Parameter]:
    hints = get_type_hints(group, include_extras=True)
    return [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=field.default,
            annotation=hints[field.name],
        )
        for field in dataclasses.fields(group)
    ]


def _describe(function: Any, parameters: Sequence[inspect.Parameter]) -> None:
    """Make `function` look as if it had been written with `parameters`."""
    function.__signature__ = inspect.Signature(list(parameters))
    function.__annotations__ = {item.name: item.annotation for item in parameters}
    del function.__wrapped__
