"""Writes the picture of a plan, after a check that it writes over nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ...compiler.deploy.picture import MARK, picture
from ...runtime.errors import RecipeError
from ...runtime.files.outputs import FileKind, check_output, write_whole
from ..common import console

if TYPE_CHECKING:
    from ...compiler.deploy.plan_model import Plan

_ENDING = ".svg"
_KIND = FileKind("a picture of a plan", "", MARK.encode())


def check(path: Path, source: str, *, force: bool) -> None:
    """Check, before a plan, that its picture may be written.

    Raises:
        RecipeError: the name has another ending, or is an input or a file of another kind.
        ResourceError: its folder cannot be written.
    """
    if path.suffix != _ENDING:
        raise RecipeError(f"expected --chart as a file that ends in {_ENDING}", found=str(path))
    check_output(path, _KIND, [source], force=force)


def write(path: Path, plan: Plan, *, force: bool) -> None:
    """Write the picture of a plan; says so instead if nothing fits, and there is no frontier.

    Raises:
        ResourceError: the file cannot be written.
    """
    if not plan.frontier:
        console.note(f"llmc: {path} is not written: no candidate fits, so there is no frontier")
        return
    load = plan.report.load
    title = f"{plan.report.model.path}: {load.input_tokens} tokens in, {load.output_tokens} out"
    check_output(path, _KIND, force=force)
    write_whole(path, picture(plan.places, plan.frontier, title).encode())
