"""Kernels for what is carried: collected as variants, compiled together, and then known by their ids in the folder."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from bringup.carry import CarryWriter

from llmc.compiler.targets.cuda.cubins.compile import Cubin, Variant, attempt
from llmc.compiler.targets.cuda.emit import with_code
from llmc.runtime.plan.plan import Module, Plan
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
        return self.writer.add(facts(variant, cubin), cubin.data, cubin.ptx)

    def placed(self, plan: Plan, variants: Iterable[Variant]) -> Plan:
        """The plan whose modules, each compiled from its variant, point into what is carried."""
        cubins = [self.cubins[self._kept(variant)] for variant in variants]
        modules, code, _ = with_code(plan.modules, cubins)
        return replace(plan, modules=tuple(self._carried(module, code) for module in modules))

    def _kept(self, variant: Variant) -> Variant:
        self.id(variant)
        return variant

    def _carried(self, module: Module, code: bytes) -> Module:
        """A module that points to its machine code in the folder; its PTX is found by that."""
        made = module.code
        assert made is not None, "a compiled module"
        offset, size = self.writer.place(code[made.offset : made.offset + made.size])
        return replace(module, code=replace(made, offset=offset, size=size, ptx_offset=0, ptx_size=0))


def facts(variant: Variant, cubin: Cubin) -> dict[str, Any]:
    """The fields of `Code` but for the two places."""
    same = ("entry", "shared", "global_scratch", "profile_scratch", "pdl", "registers", "spills")
    named = {"kernel": variant.kernel, "types": cubin.types, "warps": variant.warps}
    return {**named, **{name: getattr(cubin.code, name) for name in same}}
