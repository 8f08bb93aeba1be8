"""`--trust`: which machine code of an engine a GPU may be given; brings the compiler that `rebuild` needs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from ...runtime.errors import RecipeError
from ..common import extras, options, progress
from ..common.options import flag

if TYPE_CHECKING:
    from ...runtime.cuda.trust import Judge
    from ...runtime.engine_file.file import EngineFile

Trust = Annotated[
    str | None,
    flag(
        "--trust",
        "Machine code for a GPU: what this llmc compiles alike, what this machine has compiled, any.",
        default="any",
        metavar="rebuild|digest|any",
        group=options.MACHINE,
    ),
]


def judge(trust: str | None, *, simulated: bool = False, quiet: bool = False) -> Judge | None:
    """How to judge an engine's machine code; None if nobody asked.

    Raises:
        RecipeError: the value is unknown, or no machine code will run.
        ResourceError: the compiler is not installed.
    """
    from ...runtime.cuda.trust import judge_of

    def rebuild(engine: EngineFile, profile: str) -> None:
        from ...compiler.targets.cuda.cubins.rebuild import judge

        judge(engine, profile, progress.for_terminal(quiet=quiet))

    found = judge_of(trust, rebuild)
    if found is not None and simulated:
        why = "--simulate, which interprets this llmc's kernels and runs no machine code"
        raise RecipeError("cannot use --trust, which would change nothing", found=why, fix="no --trust")
    if trust == "rebuild":
        extras.need("cuda-build", "--trust rebuild")
    return found
