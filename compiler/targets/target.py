"""A target: the passes that make a graph legal on a kind of machine, and the emitter of its engine sections."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from ...passes.graph.graph import Graph
from ...passes.rewrite.manager import Phase
from ...runtime.engine_file.bind import Expr
from ...runtime.plan.between import ALONE, RankOf
from ...runtime.progress import Progress


class Tactics(Protocol):
    """Measured choices for a target's kernels, such as tile sizes: an input of the build, so they have a digest."""

    @property
    def name(self) -> str: ...
    @property
    def target(self) -> str: ...
    @property
    def gpu(self) -> str:
        """The device they were measured on."""
        ...

    @property
    def digest(self) -> str: ...
    @property
    def kernels(self) -> str:
        """Digest of the kernel sources that were measured."""
        ...

    @property
    def tiles(self) -> Mapping[Any, Any]: ...


@dataclass(frozen=True)
class ProfileConfig:
    """The configuration of a profile: its largest steps and its precision."""

    max_context: int
    max_batch: int
    dtype: str
    """The checkpoint's dtype: "bfloat16", "float16" or "float32"."""
    kv: str = "none"
    """Format of the KV cache; "none" is the target's own."""
    tactics: Tactics | None = None
    """Measured tiles of the profile's chip, if there are any."""
    rank: RankOf = ALONE
    """The rank that the profile is for."""


@dataclass(frozen=True)
class CompiledProfile:
    """A profile's sections, weights and requirements."""

    sections: Mapping[str, bytes]
    """By file name."""
    main: str
    """File name of the graph or the plan."""
    weights: Mapping[str, Expr]
    """The expression of each weight that the sections read."""
    needs: Mapping[str, Any]
    """Requirements on the machine."""
    tolerance: float
    """Bound of max|a-b|/max|b| between the probe's logits and the fp32 oracle of the same quantized graph."""
    notes: tuple[str, ...] = ()
    """Messages for the user about this profile."""
    listing: Callable[[], Mapping[str, str]] = dict
    """What --dump shows of it, by file name: launches, the sources of kernels, what they take."""


@dataclass(frozen=True)
class Precision:
    """Formats of activations in large products and of the KV cache; "none" is the target's own."""

    activations: str = "none"
    kv: str = "none"


Emit = Callable[[Graph, ProfileConfig, Progress], CompiledProfile]


@dataclass(frozen=True)
class Target:
    """A kind of machine: its passes and its emitter."""

    name: str
    summary: str
    legalize: Callable[[Precision], Phase]
    """The passes for a requested precision; a target may compute more exactly."""
    emit: Emit
    tools: Callable[[], Mapping[str, str]] = dict
    """Versions, by name, of tools that influence the output of `emit`."""
    tactics: Callable[[], Tactics | None] = lambda: None
    """The measured choices for this target that are part of llmc."""
    merge_gated: bool = True
    """True if gate and up become one linear (`passes/merge_linears.py`)."""
