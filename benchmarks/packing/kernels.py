"""Kernels for what is carried: collected as variants, compiled together, and then known by their ids in the folder."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from bringup.carry import CarryWriter

from llmc.compiler.targets.cuda.cubins.compile import Cubin, Variant, attempt
from llmc.runtime.errors import LlmcError
from llmc.runtime.plan.plan import Binary, Plan
from llmc.runtime.progress import NO_PROGRESS, Progress


@dataclass
class Kernels:
    """Machine code of variants. refused: what did not compile, in words, of variants that need not."""

    writer: CarryWriter
    progress: Progress = NO_PROGRESS
    cubins: dict[Variant, Cubin] = field(default_factory=dict)
    refused: dict[Variant, str] = field(default_factory=dict)

    def compile(self, variants: Iterable[Variant], *, must: bool = True) -> None:
        """Compile what is not known yet.

        Raises:
            LlmcError: one that must be there does not compile.
        """
        wanted = [variant for variant in dict.fromkeys(variants) if variant not in self.cubins]
        for variant, outcome in attempt(wanted, self.writer.sm, progress=self.progress).items():
            if isinstance(outcome, Cubin):
                self.cubins[variant] = outcome
            elif must:
                raise outcome
            else:
                self.refused[variant] = str(outcome)

    def id(self, variant: Variant) -> str:
        """Where a compiled variant lies; it is put there when it is first asked for."""
        cubin = self.cubins[variant]
        return self.writer.add(facts(variant, cubin), cubin.data, cubin.ptx or "")

    def placed(self, plan: Plan, variants: Iterable[Variant]) -> Plan:
        """The plan whose modules, each compiled from its variant, point into what is carried."""
        modules = []
        for module, variant in zip(plan.modules, variants, strict=True):
            self.id(variant)
            cubin = self.cubins[variant]
            offset, size = self.writer.place(cubin.data)
            modules.append(replace(module, binary=binary(cubin, offset, size)))
        return replace(plan, modules=tuple(modules))


def facts(variant: Variant, cubin: Cubin) -> dict[str, Any]:
    """The fields of `Code` but for the two places."""
    return {
        "kernel": variant.kernel,
        "entry": cubin.entry,
        "types": cubin.types,
        "warps": cubin.warps,
        "shared": cubin.shared,
        "global_scratch": cubin.global_scratch,
        "profile_scratch": cubin.profile_scratch,
        "pdl": cubin.pdl,
        "registers": cubin.registers,
        "spills": cubin.spills,
    }


def binary(cubin: Cubin, offset: int, size: int) -> Binary:
    """A kernel's machine code as a plan's module has it."""
    return Binary(
        offset=offset,
        size=size,
        entry=cubin.entry,
        warps=cubin.warps,
        shared=cubin.shared,
        registers=cubin.registers,
        spills=cubin.spills,
        pdl=cubin.pdl,
        global_scratch=cubin.global_scratch,
        global_scratch_align=cubin.global_scratch_align,
        profile_scratch=cubin.profile_scratch,
    )
