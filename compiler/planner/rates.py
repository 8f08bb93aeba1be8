"""What share of a chip's and a link's data sheet a well-tuned stack reaches: the constants of the cost model.

All but one are fitted by `benchmarks/planner.py --fit` to TensorRT-LLM 1.0's published throughput of Llama 3 8B, 70B
and 405B on H100, and to nothing else; `docs/planner.md` shows them against all other figures. llmc's own kernels have
not been measured on a GPU.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Rates:
    """Shares of data-sheet figures from 0 to 1, and times that no data sheet has."""

    memory: float
    """Of bandwidth, by launches; not fitted: AIConfigurator takes 0.8 for all GPUs."""
    cache: float
    """Of bandwidth, by attention's reads of cached positions."""
    product: float
    """Of the FLOP/s of the numbers it multiplies, by a product of many rows."""
    attention: float
    """Of 16-bit FLOP/s, by attention and all other launches that are no products."""
    link: float
    """Of the speed of a collective measured alone (`recipes/machines/links/`), by those of a step."""
    launch: float
    """Seconds from the end of a launch to the start of the next."""
    step: float
    """Seconds of the host for each step, in which the GPU waits: next to none, as the host works ahead."""
    sequence: float
    """Seconds of the host for each sequence of a step."""


FITTED = Rates(
    memory=0.8,
    cache=0.95,
    product=0.637,
    attention=0.498,
    link=0.88,
    launch=4.54e-6,
    step=1.36e-6,
    sequence=1.17e-6,
)
