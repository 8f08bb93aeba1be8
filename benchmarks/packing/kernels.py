"""Collects the kernels to carry, compiles them together, and gives their ids in the folder."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from bringup.carry import CarryWriter

from llmc.compiler.targets.cuda.cubins.compile import Cubin, Specialization, try_compile
from llmc.compiler.targets.cuda.emit import with_code
from llmc.runtime.plan.plan import Module, Plan
from llmc.runtime.progress import NO_PROGRESS, Progress


@dataclass
class Kernels:
    """Machine code of specializations. refused: what did not compile, in words, of specializations that need not."""

    writer: CarryWriter
    progress: Progress = NO_PROGRESS
    cubins: dict[Specialization, Cubin] = field(default_factory=dict)
    refused: dict[Specialization, str] = field(default_factory=dict)

    def compile(self, specializations: Iterable[Specialization], *, must: bool = True) -> None:
        """Compile the specializations that have not been compiled yet.

        Raises:
            LlmcError: a required kernel does not compile.
        """
        wanted = [
            specialization for specialization in dict.fromkeys(specializations) if specialization not in self.cubins
        ]
        for specialization, outcome in try_compile(wanted, self.writer.sm, progress=self.progress).items():
            if isinstance(outcome, Cubin):
                self.cubins[specialization] = outcome
            elif must:
                raise outcome
            else:
                self.refused[specialization] = str(outcome)

    def id(self, specialization: Specialization) -> str:
        """Where a compiled specialization lies; it is put there when it is first asked for."""
        cubin = self.cubins[specialization]
        return self.writer.add(facts(specialization, cubin), cubin.data, cubin.ptx)

    def placed(self, plan: Plan, specializations: Iterable[Specialization]) -> Plan:
        """The plan whose modules, each compiled from its specialization, point into what is carried."""
        cubins = [self.cubins[self._kept(specialization)] for specialization in specializations]
        modules, code, _ = with_code(plan.modules, cubins)
        return replace(plan, modules=tuple(self._carried(module, code) for module in modules))

    def _kept(self, specialization: Specialization) -> Specialization:
        self.id(specialization)
        return specialization

    def _carried(self, module: Module, code: bytes) -> Module:
        """A module that points to its machine code in the folder; its PTX is found by that."""
        made = module.code
        assert made is not None, "a compiled module"
        offset, size = self.writer.place(code[made.offset : made.offset + made.size])
        return replace(module, code=replace(made, offset=offset, size=size, ptx_offset=0, ptx_size=0))


def facts(specialization: Specialization, cubin: Cubin) -> dict[str, Any]:
    """The fields of `Code` but for the two places."""
    same = ("entry", "shared", "global_scratch", "profile_scratch", "pdl", "registers", "spills")
    named = {"kernel": specialization.kernel, "types": cubin.types, "warps": specialization.warps}
    return {**named, **{name: getattr(cubin.code, name) for name in same}}
