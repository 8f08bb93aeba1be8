"""Loads a plan's kernels: the machine code or, if the driver refuses it, the PTX, which the driver compiles."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from ..errors import EngineError
from ..plan.plan import MachineCode, Plan
from .contents import Contents
from .driver import Driver, RefusedCode, keep
from .launches import LoadedKernel


@dataclass
class Modules:
    """Kernels loaded through a driver; equal machine code is loaded once. `cleanup` unloads it."""

    driver: Driver
    contents: Contents
    cleanup: ExitStack
    refused: list[tuple[str, str]] = field(default_factory=list)
    """Kernels whose machine code the driver refused, so that it compiled their PTX, and the driver's reason."""
    _loaded: dict[tuple[int, int], Any] = field(default_factory=dict)

    def kernels(self, plan: Plan) -> tuple[LoadedKernel, ...]:
        """Load every module of the plan.

        Raises:
            EngineError: the engine lacks machine code, or the driver does not find a kernel in it.
            RefusedCode: the driver refuses both the machine code and the PTX of a kernel.
            ResourceError: this GPU has less shared memory than a kernel needs.
        """
        kernels = []
        for module in plan.modules:
            what = f"kernel {module.kernel} of {self.contents.what}"
            if module.code is None:
                raise EngineError(f"expected machine code for {what}", found="none", fix="build the engine again")
            kernels.append(LoadedKernel(module, module.code, self._function(module.code, module.kernel, what)))
        return tuple(kernels)

    @property
    def notes(self) -> tuple[str, ...]:
        """Messages for the user about loading."""
        if not self.refused:
            return ()
        (kernel, why), count = self.refused[0], len(self.refused)
        return (f"the driver refused the machine code of {count} kernels and compiled their PTX; {kernel}: {why}",)

    def _function(self, code: MachineCode, kernel: str, what: str) -> Any:
        at = code.offset, code.size
        if at not in self._loaded:
            self._loaded[at] = keep(self.cleanup, self._module(code, kernel, what), self.driver.unload)
        return self.driver.function(self._loaded[at], code.entry, code.shared, what)

    def _module(self, code: MachineCode, kernel: str, what: str) -> Any:
        try:
            return self.driver.module(self.contents.cubin(code, kernel), what)
        except RefusedCode as refusal:
            ptx = self.contents.ptx(code)
            if not ptx:
                raise
            module = self.driver.jit(ptx, what)
            self.refused.append((kernel, refusal.found))
            return module
