"""Groups of options, written once as frozen dataclasses and shared by several verbs.

A verb takes a group as one parameter: `grouped` shows typer one option per field and passes the
verb the filled dataclass. `OrderedCommand` keeps the order in which options were typed, which typer
forgets across different options. This module does not know what the options mean.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, get_type_hints

import typer
from typer.core import TyperCommand

__all__ = ["OrderedCommand", "TypedOption", "grouped", "typed_options"]

META_KEY = "vip_llava.cli.typed"


@dataclasses.dataclass(frozen=True, slots=True)
class TypedOption:
    """One typed option: the name of its parameter and its raw text."""

    name: str
    value: str


class OrderedCommand(TyperCommand):
    """A command that keeps the order of its options; read it with `typed_options`.

    A subclass may name `aliases`: other spellings of options, which the help does not list.
    """

    aliases: ClassVar[Mapping[str, str]] = {}

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        args = [self._without_alias(arg) for arg in args]
        # The parser lists every occurrence of a parameter in typed order, and the values of each
        # parameter. The base class discards both, so the parser runs once more here.
        values, _, order = self.make_parser(ctx).parse_args(args=list(args))
        left = {name: list(found) for name, found in values.items() if isinstance(found, list)}
        ctx.meta[META_KEY] = tuple(
            TypedOption(param.name, str(left[param.name].pop(0)))
            for param in order
            if left.get(param.name)
        )
        return super().parse_args(ctx, args)

    def _without_alias(self, arg: str) -> str:
        name, equals, value = arg.partition("=")
        return self.aliases.get(name, name) + equals + value


def typed_options(ctx: typer.Context) -> tuple[TypedOption, ...]:
    """The repeatable options of this command line, in typed order."""
    typed: tuple[TypedOption, ...] = ctx.meta.get(META_KEY, ())
    return typed


def grouped(verb: Callable[..., None]) -> Callable[..., None]:
    """Replace every parameter of `verb` that is annotated with a dataclass by its fields."""
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

    _set_signature(call, parameters)
    return call


def _field_parameters(group: type[Any]) -> list[inspect.Parameter]:
    hints = get_type_hints(group, include_extras=True)
    kind = inspect.Parameter.KEYWORD_ONLY
    return [
        inspect.Parameter(field.name, kind, default=field.default, annotation=hints[field.name])
        for field in dataclasses.fields(group)
    ]


def _set_signature(function: Any, parameters: Sequence[inspect.Parameter]) -> None:
    """Give `function` these parameters, for typer's inspection."""
    function.__signature__ = inspect.Signature(list(parameters))
    function.__annotations__ = {item.name: item.annotation for item in parameters}
    del function.__wrapped__
