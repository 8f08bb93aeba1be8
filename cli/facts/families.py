"""`llmc families`: the model families that llmc computes, and what of each was verified."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from ...runtime.errors import RecipeError, Unsupported, nearest
from ..common import console, extras, options

Name = Annotated[
    str | None,
    typer.Argument(
        metavar="NAME", help="Only this one: a model type, or an architecture of config.json.", show_default=False
    ),
]


def families(name: Name = None, json: options.Json = False) -> None:
    """List the model families: features, weight formats, targets, and what their numbers were compared with."""
    extras.need("build", "llmc families")
    from ...compiler.kernel_imports import late_imports

    with late_imports():
        from ...compiler.coverage import document
        from ...compiler.coverage.rows import rows

    found = rows()
    if name is not None:
        found = tuple(row for row in found if name in (row.model_type, row.architecture))
        if not found:
            raise _unknown(name, [known for row in rows() for known in (row.model_type, row.architecture)])
    facts = {"families": [{**asdict(row), "targets": row.targets} for row in found]}
    lines = [document.cells(row) for row in found]
    if name is not None:
        console.show(facts, console.table([*zip(document.HEAD, lines[0], strict=True)], indent=""), json)
        return
    table = console.table([document.HEAD, *lines], indent="")
    console.show(facts, "\n".join([table, "", *document.legend()]), json)


def _unknown(name: str, known: list[str]) -> RecipeError | Unsupported:
    from ...compiler.config.foreign import missing

    if lacking := missing(name, name):
        fix = "llmc families, for those that llmc computes"
        return Unsupported(f"cannot compute {name}", found=", ".join(lacking), fix=fix)
    return RecipeError(f"cannot find family {name!r}{nearest(name, known)}", fix="llmc families")
