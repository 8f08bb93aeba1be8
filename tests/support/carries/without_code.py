"""A small folder of what is carried to a GPU: plans of the bundled checkpoint whose kernels are names without code."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from support.fakes.libcuda import cubin
from support.paths import ROOT

from llmc.compiler.targets.cuda.cubins.compile import Cubin, Specialization
from llmc.runtime.plan.plan import MachineCode

sys.path.append(str(ROOT / "benchmarks"))
import gpu_pack  # pyright: ignore[reportMissingImports]
from bringup import carry  # pyright: ignore[reportMissingImports]
from gpu_engines import EngineSpec  # pyright: ignore[reportMissingImports]
from packing.kernels import Kernels  # pyright: ignore[reportMissingImports]

SPEC = EngineSpec("pico", "fp8", 8, 2304)
MANY = replace(SPEC, max_batch=256, activations="fp8", kv="fp8")
PLANS = {
    carry.FP8: replace(SPEC, activations="fp8"),
    carry.NVFP4: replace(SPEC, quantize="nvfp4"),
    carry.BF16: replace(SPEC, quantize="none"),
    carry.MANY: MANY,
}
WANTED = gpu_pack.Contents(PLANS, (carry.FP8,), (carry.FP8,), (), ("embed", "norm", "probe"), None)
PTX = "//\n.version 9.0\n.target sm_90a\n.visible .entry {0}()\n{{ ret; }}\n"


class NamedKernels(Kernels):
    """Kernels that no compiler has seen; those of refused specializations do not compile."""

    def compile(self, specializations: Iterable[Specialization], *, must: bool = True) -> None:
        for specialization in dict.fromkeys(specializations):
            entry = f"{specialization.function}_{len(self.cubins):04}"
            data = self.cubins[specialization].data if specialization in self.cubins else cubin(entry)
            code = MachineCode(entry, 1024, 32, 0, pdl=True)
            self.cubins.setdefault(specialization, Cubin(90, data, PTX.format(entry), specialization.types, code))


def small_carry(folder: Path, work: Path, wanted: gpu_pack.Contents = WANTED) -> Path:
    """Make the folder as `gpu_pack.py` does, without a compiler."""
    gpu_pack.make(folder, work, 90, wanted, {}, 0, NamedKernels)
    return folder
