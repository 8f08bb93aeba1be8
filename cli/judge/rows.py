"""Rows of figures as text, Markdown, CSV or JSON, and the verdicts of gates on them: what `eval` and `bench` print."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ...runtime import environment
from ...runtime.errors import RecipeError, VerifyError
from ..common import console, options
from ..common.options import flag

if TYPE_CHECKING:
    from ...recipes.metrics import Gate, Verdict

Form = Literal["text", "md", "csv", "json"]
FormOption = Annotated[
    Form | None,
    flag("--format", "How to print the figures; --json is short for json.", default="text", group=options.REPORT),
]
Row = Mapping[str, Any]


def gate_option(example: str) -> Any:
    """The option --gate with an example in its help."""
    text = f"A limit, such as '{example}': exit code 1 if it is not kept; may be repeated."
    return flag("--gate", text, default="none", metavar="GATE")


@dataclass(frozen=True)
class Column:
    """A column of a table for people."""

    key: str
    title: str
    show: Callable[[Any], str] = str


@dataclass(frozen=True)
class Shown:
    """How rows are shown to people: the columns of a table, the text of a single row, and how a row is called."""

    columns: Sequence[Column]
    text: Callable[[Row], str]
    name: Callable[[Row], str]


def form_of(asked: Form | None, json: bool) -> Form:
    """The form to print: --format, else json with --json or LLMC_JSON, else text.

    Raises:
        RecipeError: --json and another --format.
    """
    if asked is None:
        return "json" if json else "text"
    if json and asked != "json" and not environment.json():
        raise RecipeError("expected --format or --json, not both", found=f"--format {asked}")
    return asked


def show(rows: Sequence[Row], gates: Sequence[Gate], form: Form, shown: Shown) -> None:
    """Print the rows, then fail if a gate does not hold for one of them.

    One row is one JSON object with a list `gates`; several are the list `rows` of one object.

    Raises:
        typer.Exit: with the exit code of a failed check, after its error was printed.
    """
    from ...recipes.metrics import judge

    verdicts = [judge(gates, row) for row in rows]
    error = _error(rows, verdicts, shown)
    if form == "json":
        objects = [{**row, "gates": [one.to_json() for one in of]} for row, of in zip(rows, verdicts, strict=True)]
        found = objects[0] if len(objects) == 1 else {"rows": objects}
        console.out_json({**found, **(console.error_json(error) if error else {})})
    elif form == "csv":
        console.out(as_csv(rows), end="")
    else:
        lines = [as_markdown(rows, shown.columns) + "\n" if form == "md" else as_text(rows, shown)]
        lines += [("- " if form == "md" else "") + line for line in _gate_lines(rows, verdicts, shown)]
        console.out("\n".join(lines))
    if error:
        console.note(f"llmc: {error}")
        raise typer.Exit(error.exit_code)


def as_text(rows: Sequence[Row], shown: Shown) -> str:
    """The text of a single row, or a table."""
    return shown.text(rows[0]) if len(rows) == 1 else console.table(_cells(rows, shown.columns), indent="")


def as_markdown(rows: Sequence[Row], columns: Sequence[Column]) -> str:
    """A table in GitHub's Markdown."""
    head, *body = [[cell.replace("|", "\\|") for cell in row] for row in _cells(rows, columns)]
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *body))


def as_csv(rows: Sequence[Row]) -> str:
    """All figures of all rows under their keys; a mapping becomes `name:value` pairs."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [*rows[0]], lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({key: _pairs(value) if isinstance(value, Mapping) else value for key, value in row.items()})
    return text.getvalue()


def _pairs(value: Mapping[str, Any]) -> str:
    return " ".join(f"{name}:{one}" for name, one in value.items())


def _cells(rows: Sequence[Row], columns: Sequence[Column]) -> list[list[str]]:
    present = [column for column in columns if column.key in rows[0]]
    return [[column.title for column in present], *([one.show(row[one.key]) for one in present] for row in rows)]


def _worst(rows: Sequence[Row], verdicts: Sequence[Sequence[Verdict]], index: int) -> tuple[Row, Verdict]:
    """The row that keeps a gate the least, with its verdict; what fails comes first, NaN too."""
    sign = 1 if verdicts[0][index].gate.metric.better == "lower" else -1
    pairs = [(row, of[index]) for row, of in zip(rows, verdicts, strict=True)]
    return max(pairs, key=lambda pair: (not pair[1].passed, sign * pair[1].measured))


def _figure(row: Row, verdict: Verdict, several: bool, shown: Shown) -> str:
    unit = verdict.gate.metric.unit
    text = f"{verdict.measured:.6g}{' ' + unit if unit else ''}"
    return f"{text} of {shown.name(row)}" if several else text


def _gate_lines(rows: Sequence[Row], verdicts: Sequence[Sequence[Verdict]], shown: Shown) -> Iterable[str]:
    for index in range(len(verdicts[0])):
        row, verdict = _worst(rows, verdicts, index)
        outcome = "passed" if verdict.passed else "failed"
        yield f"gate {verdict.gate} {outcome}: {_figure(row, verdict, len(rows) > 1, shown)}"


def _error(rows: Sequence[Row], verdicts: Sequence[Sequence[Verdict]], shown: Shown) -> VerifyError | None:
    worst = [_worst(rows, verdicts, index) for index in range(len(verdicts[0]))]
    failed = [(row, verdict) for row, verdict in worst if not verdict.passed]
    if not failed:
        return None
    names = ", ".join(str(verdict.gate) for _, verdict in failed)
    figures = [f"{one.gate.name} {_figure(row, one, len(rows) > 1, shown)}" for row, one in failed]
    return VerifyError(f"cannot pass the gate{'s' if len(failed) > 1 else ''} {names}", found="; ".join(figures))
