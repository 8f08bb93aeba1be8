"""NVIDIA GPUs: Triton kernels compiled ahead of time, and a launch plan. Nothing here needs a GPU."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial

from ....passes.graph.graph import Graph
from ....passes.graph.verify import LOGICAL
from ....passes.rewrite.manager import Phase
from ....runtime.chips import CAPABILITIES
from ....runtime.errors import Unsupported
from ....runtime.progress import Progress
from ..target import CompiledProfile, Precision, ProfileConfig, Target
from .cubins.cache import KernelCache
from .fp4 import FP4_SM, RULES
from .legalize import LEGAL, PASSES
from .tuning.tactics import bundled

__all__ = ["TARGETS"]

_FP8_SM = 89
"""The first compute capability with FP8 tensor cores."""


def _legalize(sm: int, precision: Precision) -> Phase:
    """The passes that fuse rope, cache and attention into one operator, which the plan's launches compute.

    Raises:
        Unsupported: FP8 or FP4 activations or an FP8 cache for a chip without tensor cores for them.
    """
    for name, format in (("activations", precision.activations), ("kv", precision.kv)):
        kind, first = ("FP8", _FP8_SM) if format == "fp8" else ("FP4", FP4_SM)
        if format != "none" and sm < first:
            raise Unsupported(
                f"cannot use --{name} {format} on sm_{sm}",
                found=f"a chip without {kind}",
                fix=f"--{name} none, or a separate engine for this target",
            )
    more = () if precision.activations == "none" else (RULES[precision.activations],)
    return Phase("cuda", (*PASSES, *more), LEGAL, during=LOGICAL)


def _tools() -> dict[str, str]:
    return asdict(KernelCache.default().tools)


def _target(sm: int) -> Target:
    def emit(graph: Graph, config: ProfileConfig, progress: Progress) -> CompiledProfile:
        from .cubins.compile import need_compiler

        need_compiler()
        from .emit import emit  # imports Triton, which other targets do not need

        return emit(graph, config, sm, progress)

    summary = f"NVIDIA GPUs of compute capability {sm / 10:g}"
    return Target(f"sm_{sm}", summary, partial(_legalize, sm), emit, tools=_tools, tactics=partial(bundled, sm))


TARGETS = tuple(map(_target, CAPABILITIES))
