"""The pipeline: which passes run, in which order. Model passes run once, profile passes once per profile."""

from __future__ import annotations

from collections.abc import Callable

from .fuse_add_norm import FuseAddNorm
from .fuse_gated import FuseGated, FuseMergedGated
from .graph.verify import LOGICAL
from .merge_linears import MergeLinears
from .quantize_weights import QuantizeWeights
from .rewrite.dump import PassReport
from .rewrite.manager import Phase, run_phase
from .rewrite.rule import Pass
from .select_rows import SelectRowsEarly
from .simplify import Simplify

__all__ = ["Pass", "PassReport", "Phase", "model_passes", "profile_passes", "run_phase"]


def model_passes(format_of: Callable[[str], str]) -> Phase:
    """Once per build: tidy up, compute only wanted rows, choose weight formats."""
    return Phase("model", (Simplify(), SelectRowsEarly(), QuantizeWeights(format_of)), LOGICAL)


def profile_passes(*, merge_gated: bool = True) -> Phase:
    """Per profile, before the target's legalization: merge and fuse."""
    return Phase(
        "profile",
        (MergeLinears(merge_gated), FuseAddNorm(), FuseMergedGated(), FuseGated(), Simplify()),
        LOGICAL,
    )
