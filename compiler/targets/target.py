"""What a target is: passes that make a graph legal on a kind of machine, and what it writes into the engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from ...passes.graph.graph import Graph
from ...passes.rewrite.manager import Phase
from ...runtime.engine_file.bind import Expr
from ...runtime.progress import Progress


class Tactics(Protocol):
    """Measured choices of a target's kernels, such as tile sizes: part of an engine's input, so they have a digest."""

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
        """Digest of the kernels' sources they were measured with."""
        ...

    @property
    def tiles(self) -> Mapping[Any, Any]: ...


@dataclass(frozen=True)
class ProfileConfig:
    """The largest steps a profile is made for, and the checkpoint's own dtype ("bfloat16", "float16", "float32").

    tactics: measured tiles of the profile's chip, where there are some.
    """

    max_context: int
    max_batch: int
    dtype: str
    kv: str = "none"
    tactics: Tactics | None = None


@dataclass(frozen=True)
class CompiledProfile:
    """A profile's sections by file name, the weights they bind, and what a machine must have."""

    sections: Mapping[str, bytes]
    main: str
    weights: Mapping[str, Expr]
    needs: Mapping[str, Any]
    tolerance: float
    """Largest max|a-b|/max|b| of the probe's logits against the fp32 oracle of the same quantized graph."""
    notes: tuple[str, ...] = ()
    """What the user should know of this profile."""


@dataclass(frozen=True)
class Precision:
    """Numbers between the weights: of activations in large products and of the KV cache; "none" is the target's own."""

    activations: str = "none"
    kv: str = "none"


Emit = Callable[[Graph, ProfileConfig, Progress], CompiledProfile]


@dataclass(frozen=True)
class Target:
    """A kind of machine: its passes and its emitter."""

    name: str
    summary: str
    legalize: Callable[[Precision], Phase]
    """Targets that compute more exactly than asked may do so."""
    emit: Emit
    tools: Callable[[], Mapping[str, str]] = dict
    """Versions, by name, of what else decides the bytes that `emit` gives."""
    tactics: Callable[[], Tactics | None] = lambda: None
    """The measured choices that come with llmc for this target."""
    merge_gated: bool = True
    """Whether gate and up become one linear (`passes/merge_linears.py`)."""
