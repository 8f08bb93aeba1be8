"""The pipeline: which passes run, in which order. The front half runs once, the back half once per profile."""

from __future__ import annotations

from collections.abc import Callable

from .fuse_add_norm import FuseAddNorm
from .fuse_gated import FuseGated, FuseMergedGated
from .graph.verify import LOGICAL
from .merge_linears import MergeLinears
from .quantize_weights import QuantizeWeights
from .rewrite.manager import PassReport, Phase, run_phase
from .rewrite.rule import Pass
from .select_rows import SelectRowsEarly
from .simplify import Simplify

__all__ = ["Pass", "PassReport", "Phase", "back", "front", "run_phase"]


def front(format_of: Callable[[str], str]) -> Phase:
    """Once per build: tidy up, compute only wanted rows, choose weight formats."""
    return Phase("front", (Simplify(), SelectRowsEarly(), QuantizeWeights(format_of)), LOGICAL)


def back(*, merge_gated: bool = True) -> Phase:
    """Per profile, before the target's legalization: merge and fuse."""
    return Phase(
        "back", (MergeLinears(merge_gated), FuseAddNorm(), FuseMergedGated(), FuseGated(), Simplify()), LOGICAL
    )
