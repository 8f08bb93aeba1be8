"""All ranks of a split profile in one process, as only substitutes of devices run; one executor to its callers."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from ..engine_file.file import EngineFile
from ..engine_file.ranks import split_of
from ..engine_file.split import label_of
from ..errors import LlmcError
from ..scheduling.executor import CacheKind, Output, Pool, ScheduledSequence
from .between import RankOf
from .executor import MakeDevice, PagedExecutor, pool_of


def open_together(engine: EngineFile, profile: str, make_device: MakeDevice, max_batch: int | None) -> RanksTogether:
    """Load all ranks of a split profile; the executor then owns `engine`."""
    split = split_of(engine.manifest.profiles[profile], str(engine.path))
    labels = [label_of(profile, rank) for rank in range(split.ranks)]
    with ExitStack() as cleanup:
        ranks = []
        for label in labels:
            ranks.append(PagedExecutor(engine, label, make_device, max_batch=max_batch))
            cleanup.callback(ranks[-1].close)
        cleanup.pop_all()
    return RanksTogether(ranks, labels)


def caches_of_ranks(ranks: Sequence[Sequence[CacheKind]]) -> tuple[CacheKind, ...]:
    """The kinds of cache that any rank has, the one without a window first, with the blocks that all ranks have."""
    found: dict[int, CacheKind] = {}
    for kind in (kind for kinds in ranks for kind in kinds):
        known = found.get(kind.window or 0, kind)
        found[kind.window or 0] = replace(kind, blocks=min(kind.blocks, known.blocks))
    return tuple(found[window] for window in sorted(found))


def part_of_step(
    step: Sequence[ScheduledSequence], kinds: Sequence[CacheKind], own: Sequence[CacheKind]
) -> tuple[ScheduledSequence, ...]:
    """A step with blocks of `kinds`, for a rank that has the kinds of cache `own`."""
    windows = [kind.window for kind in kinds]
    places = [windows.index(kind.window) for kind in own]
    return tuple(replace(one, blocks=tuple(one.blocks[place] for place in places)) for one in step)


class RanksTogether:
    """The executors of all ranks (`executor.Executor`), which it owns."""

    mixed = True

    def __init__(self, ranks: Sequence[PagedExecutor], labels: Sequence[str]) -> None:
        first, self._ranks = ranks[0], ranks
        places = [RankOf.of(label) for label in labels]
        self._last = [index for index, place in enumerate(places) if place.is_last]
        self.depth = 1 if places[0].pp == 1 else 0
        self.block_tokens, self.vocab = first.block_tokens, first.vocab
        self.sequences, self.max_context = first.sequences, first.max_context
        self.max_prefill, self.max_rows = first.max_prefill, first.max_rows
        self.notes = tuple(dict.fromkeys(note for one in ranks for note in one.notes))
        self.caches = caches_of_ranks([one.caches for one in ranks])

    def table_of(self, length: int) -> int:
        return self._ranks[0].table_of(length)

    def pool(self) -> Pool:
        return pool_of(self.caches)

    def submit(self, step: tuple[ScheduledSequence, ...]) -> list[Any]:
        return [one.submit(part_of_step(step, self.caches, one.caches)) for one in self._ranks]

    def collect(self, ticket: list[Any]) -> tuple[Output, ...]:
        """Wait for all ranks; those of the last stage must have the same tokens.

        Raises:
            LlmcError: they have not.
        """
        outputs = [one.collect(given) for one, given in zip(self._ranks, ticket, strict=True)]
        first, *others = [outputs[index] for index in self._last]
        tokens = [[one.sampled and one.sampled.token for one in found] for found in (first, *others)]
        if any(found != tokens[0] for found in tokens):
            raise LlmcError("expected the same tokens of all ranks of the last stage", found=f"{tokens}"[:200])
        return first

    def release(self, sequence: int) -> None:
        for one in self._ranks:
            one.release(sequence)

    def close(self) -> None:
        for one in self._ranks:
            one.close()
