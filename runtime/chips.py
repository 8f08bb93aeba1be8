"""What the GPUs can do: the figures that choose tile sizes, refuse kernels too large for a chip, and price a plan.

Sources: NVIDIA's data sheets of A100 80 GB SXM, A10, L4, L40S, H100 SXM, H200, HGX B200, HGX B300 and DGX Spark (GB10);
the whitepapers of Ampere GA102 (RTX 3090), Ada (RTX 4090) and RTX Blackwell (RTX 5090), for matrix products
accumulated in float32; the technical brief of Jetson AGX Orin; shared memory and what else blocks
share: the CUDA programming guide's table of technical specifications per compute capability; processors of B200,
B300 and GB10: published reports of what their drivers say. FLOP/s are dense, without sparsity; those of GB10 are halves
of its 1 PFLOP/s of sparse FP4. Links: the same data sheets and whitepapers (NVLink of A100, RTX 3090, H100, H200, B200
and B300; PCIe 4.0 or 5.0 x16 of the others).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from .errors import RecipeError, nearest

_KIB, _GB, _TFLOPS = 1 << 10, 10**9, 1e12
_RESERVED = _KIB
"""Bytes of each block's shared memory that the system keeps."""


@dataclass(frozen=True)
class Multiprocessor:
    """What the blocks on one multiprocessor share: threads and blocks at most, bytes of shared memory, registers."""

    threads: int
    blocks: int
    shared: int
    registers: int = 1 << 16

    def resident(self, threads: int, registers: int, shared: int) -> int:
        """Blocks at the same time, each of so many threads and bytes, with so many registers a thread.

        The system keeps 1 KiB of each block's shared memory. A warp gets registers in units of 256, and as many warps
        fit as into the four equal parts of a multiprocessor (as NVIDIA's occupancy calculator counts).
        """
        warps = -(-threads // 32)
        fitting = self.registers // 4 // (-(-registers * 32 // 256) * 256) * 4
        return min(self.threads // (warps * 32), self.blocks, fitting // warps, self.shared // (shared + _RESERVED))


MULTIPROCESSORS: Mapping[int, Multiprocessor] = {
    80: Multiprocessor(2048, 32, 164 * _KIB),
    86: Multiprocessor(1536, 16, 100 * _KIB),
    87: Multiprocessor(1536, 16, 164 * _KIB),
    **dict.fromkeys((89, 120, 121), Multiprocessor(1536, 24, 100 * _KIB)),
    **dict.fromkeys((90, 100, 103), Multiprocessor(2048, 32, 228 * _KIB)),
}
"""By compute capability."""
SHARED = {sm: one.shared - _RESERVED for sm, one in MULTIPROCESSORS.items()}
"""Bytes of shared memory a block may opt in to, by compute capability."""


@dataclass(frozen=True)
class Chip:
    """A GPU, or under the name "sm_90" what kernels of a compute capability are chosen for.

    sm: compute capability, 90 for 9.0. bandwidth: bytes/s on paper; copy: bytes/s a copy kernel was measured at, None
    where we measured none. bf16, fp8: FLOP/s, None without such tensor cores. link: bytes/s to the other GPUs of a
    machine, both ways together, by NVLink or else by PCIe; None where there are no others.
    """

    name: str
    sm: int
    processors: int
    bandwidth: float
    memory: int
    bf16: float
    fp8: float | None
    link: float | None
    copy: float | None = None

    @property
    def shared(self) -> int:
        """Bytes of shared memory that a block may opt in to."""
        return SHARED[self.sm]

    @property
    def reachable_bandwidth(self) -> float:
        """Bytes/s a perfect kernel reaches: the measured copy, else 90 % of the figure on paper, as on H200."""
        return self.copy or 0.9 * self.bandwidth


_PCIE_4, _PCIE_5 = 64 * _GB, 128 * _GB
_GPUS = (
    Chip("a100", 80, 108, 2.039e12, 80 * _GB, 312 * _TFLOPS, None, 600 * _GB),
    Chip("a10", 86, 72, 600e9, 24 * _GB, 125 * _TFLOPS, None, _PCIE_4),
    Chip("rtx3090", 86, 82, 936e9, 24 * _GB, 71 * _TFLOPS, None, 112.5 * _GB),
    Chip("orin", 87, 16, 204.8e9, 64 * _GB, 42.5 * _TFLOPS, None, None),
    Chip("l4", 89, 58, 300e9, 24 * _GB, 121 * _TFLOPS, 242.5 * _TFLOPS, _PCIE_4),
    Chip("l40s", 89, 142, 864e9, 48 * _GB, 362.05 * _TFLOPS, 733 * _TFLOPS, _PCIE_4),
    Chip("rtx4090", 89, 128, 1.008e12, 24 * _GB, 165.2 * _TFLOPS, 330.3 * _TFLOPS, _PCIE_4),
    Chip("h100", 90, 132, 3.35e12, 80 * _GB, 989 * _TFLOPS, 1979 * _TFLOPS, 900 * _GB),
    Chip("h200", 90, 132, 4.8e12, 141 * _GB, 989 * _TFLOPS, 1979 * _TFLOPS, 900 * _GB, copy=4.3e12),
    Chip("b200", 100, 148, 7.7e12, 180 * _GB, 2250 * _TFLOPS, 4500 * _TFLOPS, 1800 * _GB),
    Chip("b300", 103, 148, 8e12, 288 * _GB, 2250 * _TFLOPS, 4500 * _TFLOPS, 1800 * _GB),
    Chip("rtx5090", 120, 170, 1.792e12, 32 * _GB, 209.5 * _TFLOPS, 419 * _TFLOPS, _PCIE_5),
    Chip("gb10", 121, 48, 273e9, 128 * _GB, 125 * _TFLOPS, 250 * _TFLOPS, None),
)
_REFERENCE = {80: "a100", 86: "a10", 87: "orin", 89: "rtx4090", 90: "h200", 100: "b200", 120: "rtx5090"}
"""The GPU whose figures a compute capability has when no GPU is named, for all that kernels are compiled for: of their
prices and of their tiles. For 8.9 not L40S, whose processors are more: what fills 128 of them is still 90 % full there,
and parts of K that fill 142 leave the smaller chips a second round."""

CAPABILITIES = tuple(_REFERENCE)
"""The compute capabilities kernels are compiled for."""
SM = {f"sm_{sm}": sm for sm in reversed(CAPABILITIES)}
"""Targets that are NVIDIA GPUs, and their compute capability times ten; best first."""
TARGETS = ("cpu", *reversed(SM))
"""The kinds of machine that engines are built for, by name."""
_LATER = {80: (86, 89), 86: (89,), 87: (), 89: (), 90: (), 100: (103,), 120: (121,)}
"""Other compute capabilities that machine code of one runs on: later ones of its major, though none of Tegra (8.7), or
for sm_100 and sm_120, which are compiled for their families, those of the family (CUDA programming guide)."""
CHIPS = {gpu.name: gpu for gpu in _GPUS}
CHIPS |= {
    f"sm_{sm}": replace(CHIPS[name], name=f"sm_{sm}") for sm, name in {**_REFERENCE, 103: "b300", 121: "gb10"}.items()
}
GPUS = tuple(gpu.name for gpu in _GPUS)
"""Names of GPUs, for which `chip` has figures and `target_of` the target whose code they run."""


def chip(name: str | int) -> Chip:
    """The chip called "h200" or "sm_90", or of compute capability 90.

    Raises:
        RecipeError: there is none; names the nearest.
    """
    known = _chip_key(name)
    if known not in CHIPS:
        raise RecipeError(f"no chip {str(name)!r}{nearest(known, CHIPS)}", fix=f"one of {', '.join(CHIPS)}")
    return CHIPS[known]


def _chip_key(name: str | int) -> str:
    asked = str(name).lower()
    return f"sm_{asked}" if asked.isdecimal() else asked


def runs_on(sm: int, chip: int) -> bool:
    """Whether code compiled for compute capability `sm` runs on a chip of `chip`, if its shared memory suffices."""
    return sm == chip or chip in _LATER.get(sm, ())


def lacks(sm: int, shared: int, chip: int) -> str:
    """Why code compiled for compute capability `sm` does not run on a chip of `chip`, or "".

    shared: bytes of shared memory that its blocks take.
    """
    if not runs_on(sm, chip):
        return f"needs compute capability {capability(sm)}"
    return f"needs {shared} bytes of shared memory a block" if shared > SHARED[chip] else ""


def target_of(name: str) -> str | None:
    """The target that a name means: its own, or that of a chip such as "h100"; None where there is none."""
    known = _chip_key(name)
    return known if known in TARGETS else target_for(CHIPS[known].sm) if known in CHIPS else None


def target_for(chip: int) -> str | None:
    """The target whose code is for a chip of compute capability `chip`; None where llmc has none."""
    return next((target for target, sm in SM.items() if runs_on(sm, chip)), None)


def capability(sm: int) -> str:
    """Compute capability as NVIDIA writes it: 90 is 9.0."""
    return f"{sm // 10}.{sm % 10}"
