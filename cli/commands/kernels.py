"""`llmc kernels`: compiles every GPU kernel with no GPU, and shows what each costs on each chip."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from ...runtime.errors import RecipeError, VerifyError
from ..common import complete, console, extras, options, progress
from ..common.options import flag

if TYPE_CHECKING:
    from ...compiler.targets.cuda.cubins.report import Entry

_LONGEST_LISTING = 5
_FIGURES = ("instr/weight", "in flight", "tensor cores")


def kernels(
    sm: Annotated[
        list[str] | None,
        flag(
            "--sm",
            "A chip: 90, h200 or native; may be repeated.",
            default="all",
            metavar="CHIP",
            autocompletion=complete.chips,
        ),
    ] = None,
    file: Annotated[
        list[str] | None, flag("--file", "Only this file's kernels; may be repeated.", default="all", metavar="FILE")
    ] = None,
    jobs: Annotated[
        int | None, flag("--jobs", "Compilers at the same time.", default="as many as fit", min=1, metavar="N")
    ] = None,
    evidence: Annotated[
        bool,
        flag("--evidence", "Hold the kernels in CUDA C++ against Triton's: bytes in flight, cycles, spills (sm_90)."),
    ] = False,
    json: options.Json = False,
) -> None:
    """Compile every GPU kernel and show its registers, spills, shared memory, instructions and size on each chip."""
    extras.need("cuda-build", "llmc kernels")
    if evidence:
        _show_evidence(jobs, json)
        return
    from ...compiler.targets.cuda.cubins import sass
    from ...compiler.targets.cuda.cubins.report import report
    from ...runtime import chips

    wanted = tuple(dict.fromkeys(map(_compiled_for, sm))) if sm else chips.CAPABILITIES
    entries = report(wanted, tuple(dict.fromkeys(file or ())), progress=progress.for_terminal(quiet=json), jobs=jobs)
    error = _error([entry for entry in entries if entry.bad])
    found = {"ok": error is None, "chips": list(wanted), "kernels": [entry.as_json() for entry in entries]}
    text = "\n".join(_text(one, [entry for entry in entries if entry.sm == one]) for one in wanted)
    console.show({**found, **(console.error_json(error) if error else {})}, text, json)
    if sass.disassembler() is None:
        console.note(f"llmc: {', '.join(_FIGURES)} are not shown without a disassembler: pip install {sass.WHEEL}")
    if error:
        console.note(f"llmc: {error}")
        raise typer.Exit(error.exit_code)


def _show_evidence(jobs: int | None, json: bool) -> None:
    from dataclasses import asdict

    from ...compiler.targets.cuda.evidence import compare as evidence
    from ...compiler.targets.cuda.kernels.linear.native.versus import pairs

    found = evidence.compare(pairs(), progress.for_terminal(quiet=json), jobs)
    error = _unkept([pair.name for pair in found if not all(pair.verdict.values())])
    shown = [{**asdict(pair), "verdict": pair.verdict} for pair in found]
    facts = {"ok": error is None, "evidence": shown, "limits": evidence.limits()}
    text = "\n".join([console.table([*evidence.rows_of(found)]), *evidence.legend()])
    console.show({**facts, **(console.error_json(error) if error else {})}, text, json)
    if error:
        console.note(f"llmc: {error}")
        raise typer.Exit(error.exit_code)


def _unkept(names: Sequence[str]) -> VerifyError | None:
    if not names:
        return None
    found = "; ".join(names[:_LONGEST_LISTING])
    return VerifyError("expected kernels in CUDA C++ to beat Triton's on (a) to (c)", found=found)


def _compiled_for(name: str) -> int:
    """The compute capability that kernels for a chip are compiled for: of B300 that of its family."""
    from ...runtime.chips import CAPABILITIES, SM, capability, target_for
    from ...runtime.cuda.names import capability_of

    found = capability_of(name)
    target = target_for(found)
    if target is None:
        known = ", ".join(map(capability, CAPABILITIES))
        asked = f"cannot compile kernels for {name!r} of compute capability {capability(found)}"
        raise RecipeError(asked, fix=f"a GPU of {known}")
    return SM[target]


def _error(bad: Sequence[Entry]) -> VerifyError | None:
    if not bad:
        return None
    first = [f"{entry.specialization} on sm_{entry.sm}" for entry in bad[:_LONGEST_LISTING]]
    more = f"; {len(bad) - len(first)} more" if len(bad) > len(first) else ""
    return VerifyError(
        "expected every kernel to compile, and none of a model's shapes to spill",
        found="; ".join(first) + more,
        fix="smaller tiles, more warps or fewer stages",
    )


def _text(sm: int, entries: Sequence[Entry]) -> str:
    from ...compiler.targets.cuda.cubins.compile import Cubin

    shown = _FIGURES if any(entry.figures for entry in entries) else ()
    head = ("file", "kernel", "use", "registers", "spills", "shared", *shown, "cubin", "constants")
    rows: list[tuple[str, ...]] = [head]
    refused = []
    sizes = []
    for entry in entries:
        specialization, outcome = entry.specialization, entry.outcome
        given = {name: value for name, value in specialization.constants if value is not None}
        given |= {"warps": specialization.warps, "stages": specialization.stages}
        constants = " ".join(f"{name}={value}" for name, value in given.items())
        if not isinstance(outcome, Cubin):
            refused.append(f"  refused: {specialization.file}: {specialization}\n    {outcome.found}")
            continue
        sizes.append(len(outcome.data))
        numbers = map(str, (outcome.code.registers, outcome.code.spills, outcome.shared))
        use = "model" if entry.decode else "case"
        found = _figures(entry) if shown else ()
        rows.append((specialization.file, specialization.kernel, use, *numbers, *found, str(sizes[-1]), constants))
    spilling = sum(entry.spills > 0 for entry in entries)
    counts = f"{len(sizes)} cubins of {console.size(sum(sizes))}, {spilling} spill, {len(refused)} refused"
    return "\n".join([f"sm_{sm}: {counts}", *([console.table(rows)] if sizes else []), *refused])


def _figures(entry: Entry) -> tuple[str, ...]:
    found = entry.figures
    if found is None:
        return ("",) * len(_FIGURES)
    weights = "" if found.instr_per_weight is None else f"{found.instr_per_weight:.2f}"
    return weights, "" if found.in_flight is None else str(found.in_flight), " ".join(found.mma)
