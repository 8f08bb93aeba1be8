"""What the GPUs can do: the figures that choose tile sizes, refuse kernels too large for a chip, and price a plan.

Sources: NVIDIA's data sheets of A100 80 GB SXM, L4, L40S, H100 SXM, H200 and HGX B200; the whitepapers of Ada (RTX
4090, L2) and RTX Blackwell (RTX 5090), for matrix products accumulated in float32; shared memory and what else blocks
share: the CUDA programming guide's table of technical specifications per compute capability; processors and L2 of
B200: published reports of what its driver says. FLOP/s are dense, without sparsity.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from .errors import RecipeError, nearest

_KIB, _MIB, _GB, _TFLOPS = 1 << 10, 1 << 20, 10**9, 1e12


@dataclass(frozen=True)
class Chip:
    """A GPU, or under the name "sm_90" what kernels of a compute capability are chosen for.

    sm: compute capability, 90 for 9.0. bandwidth: bytes/s on paper; copy: bytes/s a copy kernel was measured at, None
    where we measured none. bf16, fp8: FLOP/s, None without such tensor cores. shared: bytes a block may opt in to.
    """

    name: str
    sm: int
    processors: int
    bandwidth: float
    l2: int
    memory: int
    bf16: float
    fp8: float | None
    shared: int
    copy: float | None = None

    @property
    def reachable_bandwidth(self) -> float:
        """Bytes/s a perfect kernel reaches: the measured copy, else 90 % of the figure on paper, as on H200."""
        return self.copy or 0.9 * self.bandwidth


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
        return min(self.threads // (warps * 32), self.blocks, fitting // warps, self.shared // (shared + _KIB))


MULTIPROCESSORS = {
    80: Multiprocessor(2048, 32, 164 * _KIB),
    89: Multiprocessor(1536, 24, 100 * _KIB),
    90: Multiprocessor(2048, 32, 228 * _KIB),
    100: Multiprocessor(2048, 32, 228 * _KIB),
    120: Multiprocessor(1536, 24, 100 * _KIB),
}
"""By compute capability."""
_GPUS = (
    Chip("a100", 80, 108, 2.039e12, 40 * _MIB, 80 * _GB, 312 * _TFLOPS, None, 163 * _KIB),
    Chip("l4", 89, 58, 300e9, 48 * _MIB, 24 * _GB, 121 * _TFLOPS, 242.5 * _TFLOPS, 99 * _KIB),
    Chip("l40s", 89, 142, 864e9, 96 * _MIB, 48 * _GB, 362.05 * _TFLOPS, 733 * _TFLOPS, 99 * _KIB),
    Chip("rtx4090", 89, 128, 1.008e12, 72 * _MIB, 24 * _GB, 165.2 * _TFLOPS, 330.3 * _TFLOPS, 99 * _KIB),
    Chip("h100", 90, 132, 3.35e12, 50 * _MIB, 80 * _GB, 989 * _TFLOPS, 1979 * _TFLOPS, 227 * _KIB),
    Chip("h200", 90, 132, 4.8e12, 50 * _MIB, 141 * _GB, 989 * _TFLOPS, 1979 * _TFLOPS, 227 * _KIB, copy=4.3e12),
    Chip("b200", 100, 148, 7.7e12, 132644864, 180 * _GB, 2250 * _TFLOPS, 4500 * _TFLOPS, 227 * _KIB),
    Chip("rtx5090", 120, 170, 1.792e12, 96 * _MIB, 32 * _GB, 209.5 * _TFLOPS, 419 * _TFLOPS, 99 * _KIB),
)
_REFERENCE = {80: "a100", 89: "l40s", 90: "h200", 100: "b200", 120: "rtx5090"}
"""The GPU whose figures a compute capability has when no GPU is named."""

CAPABILITIES = tuple(_REFERENCE)
"""The compute capabilities kernels are compiled for."""
SM = {f"sm_{sm}": sm for sm in reversed(CAPABILITIES)}
"""Targets that are NVIDIA GPUs, and their compute capability times ten; best first."""
_WITHIN_MAJOR = (80, 89)
"""Their cubins also run on later chips of the same major; those of newer ones are specific to their chip."""
CHIPS = {gpu.name: gpu for gpu in _GPUS}
CHIPS |= {f"sm_{sm}": replace(CHIPS[name], name=f"sm_{sm}") for sm, name in _REFERENCE.items()}


def chip(name: str | int) -> Chip:
    """The chip called "h200" or "sm_90", or of compute capability 90.

    Raises:
        RecipeError: there is none; names the nearest.
    """
    asked = str(name).lower()
    known = f"sm_{asked}" if asked.isdecimal() else asked
    if known not in CHIPS:
        raise RecipeError(f"no chip {str(name)!r}{nearest(known, CHIPS)}", fix=f"one of {', '.join(CHIPS)}")
    return CHIPS[known]


def runs_on(sm: int, chip: int) -> bool:
    """Whether code compiled for compute capability `sm` runs on a chip of `chip`."""
    later = sm in _WITHIN_MAJOR and sm // 10 == chip // 10 and sm % 10 <= chip % 10
    return sm == chip or later


def capability(sm: int) -> str:
    """Compute capability as NVIDIA writes it: 90 is 9.0."""
    return f"{sm // 10}.{sm % 10}"
