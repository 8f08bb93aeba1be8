"""Help texts: options in groups, the default of every flag, and examples that can be pasted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from typer.core import TyperCommand, TyperGroup, TyperOption

from . import given
from .examples import EXAMPLES
from .exits import EXIT_CODES
from .options import MACHINE, RECIPE, REPORT, SAMPLE

SETTINGS = {"help_option_names": ["-h", "--help"]}


class Command(TyperCommand):
    """A command whose options are shown by `rich_help_panel`, and after them its examples."""

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        for option in self.params:
            if isinstance(option, TyperOption) and option.is_bool_flag and not option.default:
                option.help = f"{option.help}  [default: off]"

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not ctx.resilient_parsing:  # not while a shell completes a line
            values, _, order = self.make_parser(ctx).parse_args(list(args))
            given.check(self.get_params(ctx), order, values)
        rest = super().parse_args(ctx, args)
        given.check_numbers(ctx.params)
        return rest

    def format_options(self, ctx: Any, formatter: Any) -> None:
        order = ("Arguments", "Options", RECIPE, SAMPLE, MACHINE, REPORT)
        groups: dict[str, list[tuple[str, str]]] = {title: [] for title in order}
        for one in self.get_params(ctx):
            if (record := one.get_help_record(ctx)) is not None:
                if one.param_type_name == "argument":
                    groups["Arguments"].append((record[0].partition(" <")[0], record[1]))  # without a type, as <str>
                else:
                    groups.setdefault(getattr(one, "rich_help_panel", None) or "Options", []).append(record)
        _write(groups, formatter)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        _write_examples(self.name or "", formatter)


class Group(TyperGroup):
    """The commands, shown by `rich_help_panel`, and after them examples and exit codes."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        groups: dict[str, list[tuple[str, str]]] = {}
        for name in self.list_commands(ctx):
            command = self.get_command(ctx, name)
            if command is not None and not command.hidden:
                panel = getattr(command, "rich_help_panel", None) or "Commands"
                groups.setdefault(panel, []).append((name, (command.help or "").partition("\n")[0]))
        _write(groups, formatter)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        alone = ctx.parent is None
        _write_examples("" if alone else self.name or "", formatter)
        codes = [(str(code), meaning) for code, meaning in EXIT_CODES.items()]
        _write({"Exit codes": codes} if alone else {}, formatter)


def _write(groups: Mapping[str, Sequence[tuple[str, str]]], formatter: Any) -> None:
    for title, rows in groups.items():
        if rows:
            with formatter.section(title):
                formatter.write_dl(rows)


def _write_examples(command: str, formatter: Any) -> None:
    if examples := EXAMPLES.get(command):
        with formatter.section("Examples"):
            indent = " " * formatter.current_indent
            for does, line in examples:
                formatter.write(f"{indent}# {does}\n{indent}{line}\n")
