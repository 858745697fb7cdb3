"""Option groups and the order of typed options."""

from __future__ import annotations

import dataclasses
from typing import Annotated, ClassVar

import typer
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from vip_llava.cli.option_groups import OrderedCommand, TypedOption, grouped, typed_options


@dataclasses.dataclass(frozen=True)
class Group:
    """Options for the tests."""

    one: Annotated[list[str] | None, typer.Option("--one", "-o")] = None
    two: Annotated[list[str] | None, typer.Option("--two")] = None
    flag: Annotated[bool, typer.Option("--flag")] = False


def run(
    *argv: str, command: type[OrderedCommand] = OrderedCommand
) -> tuple[tuple[TypedOption, ...], Group, str | None]:
    seen: list[tuple[tuple[TypedOption, ...], Group, str | None]] = []
    app = typer.Typer()

    def verb(ctx: typer.Context, *, group: Group, name: str | None = None) -> None:
        seen.append((typed_options(ctx), group, name))

    app.command(cls=command)(grouped(verb))
    shown = CliRunner().invoke(app, list(argv))
    assert shown.exit_code == 0, shown.output
    return seen[0]


def test_a_group_is_filled_from_its_options() -> None:
    typed, group, name = run("--one", "a", "--flag", "--name", "n", "-o", "b")
    assert (group, name) == (Group(one=["a", "b"], flag=True), "n")
    assert typed == (TypedOption("one", "a"), TypedOption("one", "b"))


def test_a_group_has_its_defaults() -> None:
    assert run() == ((), Group(), None)


def test_an_alias_is_replaced_by_its_option() -> None:
    class Command(OrderedCommand):
        aliases: ClassVar = {"--uno": "--one"}

    typed, group, _ = run("--uno", "a", "--uno=--uno", command=Command)
    assert group.one == ["a", "--uno"]
    assert typed == (TypedOption("one", "a"), TypedOption("one", "--uno"))


def test_values_that_look_like_options() -> None:
    typed, _, _ = run("--two=--one", "--one", "-5,-5", "--two", "x=y")
    assert typed == (
        TypedOption("two", "--one"),
        TypedOption("one", "-5,-5"),
        TypedOption("two", "x=y"),
    )


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["one", "two"]), st.from_regex(r"[a-z0-9,.]{1,9}", fullmatch=True)
        )
    )
)
def test_typed_order_is_kept(pairs: list[tuple[str, str]]) -> None:
    argv = [item for name, value in pairs for item in (f"--{name}", value)]
    typed, group, _ = run(*argv)
    assert typed == tuple(TypedOption(*pair) for pair in pairs)
    assert (group.one or []) == [value for name, value in pairs if name == "one"]
