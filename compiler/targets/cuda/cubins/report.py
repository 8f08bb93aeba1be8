"""Reports the cost of every kernel on every chip without a GPU: registers, spills, shared memory, size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from .....runtime.errors import LlmcError, Unsupported
from .....runtime.progress import Progress
from ..kernels import suites
from .cache import KernelCache
from .compile import Cubin, Specialization, need_compiler, specialization_of, try_compile
from .figures import Figures, figures_of
from .sass import disassembler


@dataclass(frozen=True)
class Entry:
    """A specialization on a chip."""

    sm: int
    specialization: Specialization
    decode: bool
    """True if Llama-3.1-8B runs it (`Suite.calls`), False if only a test case does."""
    outcome: Cubin | LlmcError
    figures: Figures | None = None
    """None if it was not compiled, or without a disassembler."""

    @property
    def spills(self) -> int:
        return self.outcome.code.spills if isinstance(self.outcome, Cubin) else 0

    @property
    def bad(self) -> bool:
        """True for an error: a kernel of a real model's shapes spills, or any kernel does not compile."""
        if isinstance(self.outcome, Cubin):
            return self.decode and self.spills > 0
        return not isinstance(self.outcome, Unsupported)

    def as_json(self) -> dict[str, Any]:
        outcome = self.outcome
        facts = {"kernel": self.specialization.kernel, **self.specialization.request(self.sm), "decode": self.decode}
        del facts["function"], facts["parameters"]  # `kernel` already names them
        if isinstance(outcome, LlmcError):
            return {**facts, "refused": outcome.found}
        return facts | {
            "registers": outcome.code.registers,
            "spills": outcome.code.spills,
            "local": outcome.local,
            "shared": outcome.shared,
            "global_scratch": outcome.code.global_scratch,
            "bytes": len(outcome.data),
            **{field.name: getattr(self.figures, field.name, None) for field in fields(Figures)},
        }


def report(
    sms: Sequence[int],
    files: Sequence[str] = (),
    *,
    progress: Progress,
    jobs: int | None = None,
    cache: KernelCache | None = None,
) -> tuple[Entry, ...]:
    """Compile every call of the kernel files (by default all) for the chips; entries by chip, then by file.

    Raises:
        RecipeError: a kernel file does not exist.
        ResourceError: no compiler is installed, or the installed disassembler does not work.
    """
    need_compiler()
    chosen = suites(files)
    cases = {name: [case.call for case in suite.cases()] for name, suite in chosen.items()}
    program = disassembler()
    entries = []
    for sm in sms:
        decode: dict[Specialization, bool] = {}
        for name, suite in chosen.items():
            for call in suite.calls(sm):
                decode[specialization_of(call)] = True
            for call in cases[name]:
                decode.setdefault(specialization_of(call), False)
        outcomes = try_compile(decode, sm, progress=progress, jobs=jobs, cache=cache)
        compiled = {
            specialization: outcome for specialization, outcome in outcomes.items() if isinstance(outcome, Cubin)
        }
        found = figures_of(compiled, sm, program) if program is not None else {}
        entries += [
            Entry(sm, specialization, decode[specialization], outcome, found.get(specialization))
            for specialization, outcome in outcomes.items()
        ]
    return tuple(entries)
