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
        from ...compiler.coverage.rows import rows, wrappers

    alone, around = rows(), wrappers()
    if name is not None:
        known = [one for row in (*alone, *around) for one in (row.model_type, row.architecture)]
        alone = tuple(row for row in alone if name in (row.model_type, row.architecture))
        around = tuple(row for row in around if name in (row.model_type, row.architecture))
        if not alone and not around:
            raise _unknown(name, known)
    facts = {
        "families": [{**asdict(row), "targets": row.targets} for row in alone],
        "wrappers": [asdict(row) for row in around],
    }
    tables = [
        (document.HEAD, [document.cells(row) for row in alone]),
        (document.WRAPPER_HEAD, [document.wrapper_cells(row) for row in around]),
    ]
    if name is None:
        parts = [console.table([head, *lines], indent="") for head, lines in tables]
        console.show(facts, "\n\n".join([*parts, "\n".join(document.legend())]), json)
    else:
        one = [zip(head, line, strict=True) for head, lines in tables for line in lines]
        console.show(facts, "\n\n".join(console.table(list(pairs), indent="") for pairs in one), json)


def _unknown(name: str, known: list[str]) -> RecipeError | Unsupported:
    from ...compiler.config.foreign import missing

    if lacking := missing(name, name):
        fix = "llmc families, for those that llmc computes"
        return Unsupported(f"cannot compute {name}", found=", ".join(lacking), fix=fix)
    return RecipeError(f"cannot find family {name!r}{nearest(name, known)}", fix="llmc families")
