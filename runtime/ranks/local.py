"""One rank's part of a split profile, and what its target decides about the steps of all ranks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..engine_file.file import EngineFile
from ..engine_file.ranks import split_of
from ..engine_file.split import Split
from ..scheduling.executor import CacheKind, Executor, Pool
from .messages import Step

if TYPE_CHECKING:
    from ..cuda.trust import Judge
    from ..parallel.job import Job


@dataclass(frozen=True)
class Part:
    """What each rank loads its part of."""

    engine: EngineFile
    profile: str
    threads: int | None
    max_batch: int | None
    judge: Judge | None = None
    """On rank 0, sees the machine code of all ranks before a device does."""

    @property
    def split(self) -> Split:
        return split_of(self.engine.profile(self.profile), str(self.engine.path))


def same(step: Step) -> Step:
    return step


@dataclass(frozen=True)
class Local:
    """A loaded part."""

    executor: Executor
    caches: tuple[CacheKind, ...]
    """Those of all ranks: a step has blocks of each."""
    pool: Callable[[], Pool]
    """On rank 0, a new account of the blocks of all ranks."""
    samples_everywhere: bool
    """Every rank with logits chooses each token, so all are told how."""
    arrange: Callable[[Step], Step] = same
    """On rank 0, orders a step so that it can be cut anywhere."""
    own: Callable[[Step], Step] = same
    """The step with the blocks that this rank has."""
    messages: Mapping[str, Callable[[Mapping[str, Any]], object]] = field(default_factory=dict)
    """On ranks above 0, what is done for the messages of rank 0's pool, by kind."""


@dataclass(frozen=True)
class Target:
    """How the ranks of a target load."""

    check: Callable[[Part, Split], None]
    """On rank 0, before anything is loaded: the parts of all ranks fit together."""
    load: Callable[[Job, Part], Local]
    """Loads this rank's part; returns when all ranks have theirs."""
