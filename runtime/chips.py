"""Figures of GPUs: they choose tile sizes, refuse kernels too large for a chip, and price a plan.

Sources: NVIDIA's data sheets of A100 80 GB SXM, A10, L4, L40S, H100 SXM, H200, HGX B200, HGX B300, GB200 NVL72 (a
72nd of it), RTX PRO 6000 Blackwell Server Edition and DGX Spark (GB10); the whitepapers of Ampere GA102 (RTX 3090), Ada
(RTX 4090) and RTX Blackwell (RTX 5090), for matrix products accumulated in float32; the technical brief of Jetson AGX
Orin; limits of a multiprocessor (shared memory, threads, blocks, registers): the CUDA programming guide's table of
technical specifications per compute capability; memory: published output of nvidia-smi (of Orin and GB10, whose memory
is the host's too, the data sheets); processors of B200, GB200, B300 and GB10: published output of their
drivers. FLOP/s are dense, without sparsity; those of GB10 are derived by halving its 1 PFLOP/s of sparse FP4, those of
RTX PRO 6000 from its 120 TFLOP/s of float32: a processor's tensor cores do 4, 8 and 16 times its float32 operations in
bf16, FP8 and FP4 (whitepaper of RTX PRO Blackwell). Links: the same data sheets and whitepapers (NVLink of A100, RTX
3090, H100, H200, B200, GB200 and B300; PCIe 4.0 or 5.0 x16 of the others).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from .errors import RecipeError

_KIB, _MIB, _GB, _TFLOPS = 1 << 10, 1 << 20, 10**9, 1e12
RESERVED = _KIB
"""Bytes of shared memory that the system reserves in each block."""


@dataclass(frozen=True)
class Multiprocessor:
    """Limits of one multiprocessor: resident threads, resident blocks, bytes of shared memory, registers."""

    threads: int
    blocks: int
    shared: int
    registers: int = 1 << 16

    def resident(self, threads: int, registers: int, shared: int) -> int:
        """Blocks that run at once, of `threads` threads, `registers` per thread and `shared` bytes of shared memory.

        The system reserves 1 KiB of shared memory per block. Registers are allocated per warp in units of 256, from
        four equal parts of the multiprocessor (as NVIDIA's occupancy calculator counts).
        """
        warps = -(-threads // 32)
        fitting = self.registers // 4 // (-(-registers * 32 // 256) * 256) * 4
        return min(self.threads // (warps * 32), self.blocks, fitting // warps, self.shared // (shared + RESERVED))


MULTIPROCESSORS: Mapping[int, Multiprocessor] = {
    80: Multiprocessor(2048, 32, 164 * _KIB),
    86: Multiprocessor(1536, 16, 100 * _KIB),
    87: Multiprocessor(1536, 16, 164 * _KIB),
    **dict.fromkeys((89, 120, 121), Multiprocessor(1536, 24, 100 * _KIB)),
    **dict.fromkeys((90, 100, 103), Multiprocessor(2048, 32, 228 * _KIB)),
}
"""By compute capability."""
SHARED = {sm: one.shared - RESERVED for sm, one in MULTIPROCESSORS.items()}
"""Bytes of shared memory that a block may opt in to, by compute capability."""


@dataclass(frozen=True)
class Chip:
    """A GPU; or, under a name such as "sm_90", the reference GPU of a compute capability."""

    name: str
    sm: int
    """Compute capability: 90 for 9.0."""
    processors: int
    bandwidth: float
    """Bytes/s of the data sheet."""
    gigabytes: int
    """Of memory, as its name and data sheet count them."""
    memory: int
    """Bytes that its driver reports, up to 7 % more than these gigabytes."""
    bf16: float
    """FLOP/s."""
    fp8: float | None
    """FLOP/s; None without FP8 tensor cores."""
    fp4: float | None
    """FLOP/s; None without FP4 tensor cores."""
    link: float | None
    """Bytes/s to the other GPUs of a machine, both directions together, by NVLink or else PCIe; None for one GPU."""
    copy: float | None = None
    """Bytes/s measured with a copy kernel; None if not measured."""

    @property
    def shared(self) -> int:
        """Bytes of shared memory that a block may opt in to."""
        return SHARED[self.sm]

    @property
    def narrow_rates(self) -> dict[str, float]:
        """FLOP/s of kernels that multiply fewer than 16 bits, by name; a chip without such tensor cores runs none."""
        rates = {"linear_fp8": self.fp8, "linear_fp4": self.fp4}
        return {kernel: rate for kernel, rate in rates.items() if rate is not None}

    @property
    def reachable_bandwidth(self) -> float:
        """Bytes/s of a perfect kernel: the measured copy, else 90 % of the data sheet's figure (the ratio on H200)."""
        return self.copy or 0.9 * self.bandwidth


_PCIE_4, _PCIE_5 = 64 * _GB, 128 * _GB
_GPUS = (
    Chip("a100", 80, 108, 2.039e12, 80, 81920 * _MIB, 312 * _TFLOPS, None, None, 600 * _GB),
    Chip("a10", 86, 72, 600e9, 24, 23028 * _MIB, 125 * _TFLOPS, None, None, _PCIE_4),
    Chip("rtx3090", 86, 82, 936e9, 24, 24576 * _MIB, 71 * _TFLOPS, None, None, 112.5 * _GB),
    Chip("orin", 87, 16, 204.8e9, 64, 64 * _GB, 42.5 * _TFLOPS, None, None, None),
    Chip("l4", 89, 58, 300e9, 24, 23034 * _MIB, 121 * _TFLOPS, 242.5 * _TFLOPS, None, _PCIE_4),
    Chip("l40s", 89, 142, 864e9, 48, 46068 * _MIB, 362.05 * _TFLOPS, 733 * _TFLOPS, None, _PCIE_4),
    Chip("rtx4090", 89, 128, 1.008e12, 24, 24564 * _MIB, 165.2 * _TFLOPS, 330.3 * _TFLOPS, None, _PCIE_4),
    Chip("h100", 90, 132, 3.35e12, 80, 81559 * _MIB, 989 * _TFLOPS, 1979 * _TFLOPS, None, 900 * _GB),
    Chip("h200", 90, 132, 4.8e12, 141, 143771 * _MIB, 989 * _TFLOPS, 1979 * _TFLOPS, None, 900 * _GB, copy=4.3e12),
    Chip("b200", 100, 148, 7.7e12, 180, 183359 * _MIB, 2250 * _TFLOPS, 4500 * _TFLOPS, 9000 * _TFLOPS, 1800 * _GB),
    Chip("gb200", 100, 152, 8e12, 186, 189471 * _MIB, 2500 * _TFLOPS, 5000 * _TFLOPS, 10000 * _TFLOPS, 1800 * _GB),
    Chip("b300", 103, 148, 8e12, 288, 275040 * _MIB, 2250 * _TFLOPS, 4500 * _TFLOPS, 13500 * _TFLOPS, 1800 * _GB),
    Chip("rtx5090", 120, 170, 1.792e12, 32, 32607 * _MIB, 209.5 * _TFLOPS, 419 * _TFLOPS, 1676 * _TFLOPS, _PCIE_5),
    Chip("rtxpro6000", 120, 188, 1.597e12, 96, 97887 * _MIB, 480 * _TFLOPS, 960 * _TFLOPS, 1920 * _TFLOPS, _PCIE_5),
    Chip("gb10", 121, 48, 273e9, 128, 128 * _GB, 125 * _TFLOPS, 250 * _TFLOPS, 500 * _TFLOPS, None),
)
_REFERENCE = {80: "a100", 86: "a10", 87: "orin", 89: "rtx4090", 90: "h200", 100: "b200", 120: "rtx5090"}
"""The GPU that stands for a compute capability when no GPU is named, to choose tiles and to price plans. For 8.9 it is
the RTX 4090, not the L40S with more processors: a grid that fills 128 processors fills 142 to 90 %, but parts of K
chosen for 142 need a second round on the smaller chips."""

CAPABILITIES = tuple(_REFERENCE)
"""The compute capabilities that kernels are compiled for."""
SM = {f"sm_{sm}": sm for sm in reversed(CAPABILITIES)}
"""Targets that are NVIDIA GPUs, with their compute capability times ten; best first."""
TARGETS = ("cpu", *reversed(SM))
"""Names of all targets that engines are built for."""
_LATER = {80: (86, 89), 86: (89,), 87: (), 89: (), 90: (), 100: (103,), 120: (121,)}
"""Other compute capabilities that run the machine code of one (CUDA programming guide): later minors of the same major
except Tegra's 8.7; for sm_100 and sm_120, which are compiled for their families, the family's."""
CHIPS = {gpu.name: gpu for gpu in _GPUS}
CHIPS |= {
    f"sm_{sm}": replace(CHIPS[name], name=f"sm_{sm}") for sm, name in {**_REFERENCE, 103: "b300", 121: "gb10"}.items()
}
GPUS = tuple(gpu.name for gpu in _GPUS)
"""Names of GPUs with figures; `cuda/names.py` knows more names."""


def chip(name: str | int) -> Chip:
    """The chip called "h200" or "sm_90", or of compute capability 90.

    Raises:
        RecipeError: there is none. Names the known ones: the nearest may be of another generation.
    """
    known = str(name).lower()
    known = f"sm_{known}" if known.isdecimal() else known
    if known not in CHIPS:
        raise RecipeError(f"cannot find chip {str(name)!r}", fix=f"one of {', '.join(CHIPS)}")
    return CHIPS[known]


def runs_on(sm: int, chip: int) -> bool:
    """True if code for compute capability `sm` runs on a chip of capability `chip`; shared memory is not considered."""
    return sm == chip or chip in _LATER.get(sm, ())


def lacks(sm: int, shared: int, chip: int) -> str:
    """Why code compiled for compute capability `sm` does not run on a chip of capability `chip`, or "".

    `shared` is the number of bytes of shared memory that one of its blocks takes.
    """
    if not runs_on(sm, chip):
        return f"needs compute capability {capability(sm)}"
    return f"needs {shared} bytes of shared memory a block" if shared > SHARED[chip] else ""


def target_for(chip: int) -> str | None:
    """The target whose code runs on a chip of compute capability `chip`; None if llmc has none."""
    return next((target for target, sm in SM.items() if runs_on(sm, chip)), None)


def capability(sm: int) -> str:
    """Compute capability in NVIDIA's spelling: 90 is 9.0."""
    return f"{sm // 10}.{sm % 10}"
