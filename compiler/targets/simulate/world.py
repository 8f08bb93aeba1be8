"""All ranks of a job in one process, in turn: each is interpreted up to an exchange, which happens once all are there.

One thread suffices, and the interpreter, which keeps its state in globals, allows no more. Sums are made in the order
of the shards, in the dtype of the tensors.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch

from ....runtime.errors import LlmcError
from ....runtime.plan.between import Collective, RankOf


@dataclass(frozen=True)
class Exchange:
    """A collective that a rank has come to, and the rank's tensors."""

    collective: Collective
    count: int
    sends: torch.Tensor | None
    receives: torch.Tensor | None


Steps = Generator[Exchange, None, dict[str, np.ndarray]]
"""A program that is being interpreted; returns the buffers that were wanted."""


@dataclass(eq=False)
class Run:
    """A program that a rank was given."""

    steps: Steps
    results: dict[str, np.ndarray] | None = None
    """None until its end."""


@dataclass(eq=False)
class _Stream:
    runs: deque[Run] = field(default_factory=deque)
    at: Exchange | None = None
    """Where the first run waits; None if it was not begun, or may go on."""


class World:
    """The streams of all ranks of a job."""

    def __init__(self) -> None:
        self._streams: dict[int, _Stream] = {}

    def start(self, rank: RankOf, steps: Steps) -> Run:
        """Put a program behind the earlier ones of a rank; of a rank without others, it is interpreted now."""
        run, self._rank = Run(steps), rank
        self._streams.setdefault(rank.number, _Stream()).runs.append(run)
        if rank.tp * rank.pp == 1:
            self.finish(run)
        return run

    def finish(self, run: Run) -> Mapping[str, np.ndarray]:
        """Interpret all ranks until a program has ended; returns its wanted buffers.

        Raises:
            LlmcError: a rank waits for one that was given no such program.
        """
        while run.results is None:
            moved = [self._advance(stream) for _, stream in sorted(self._streams.items())]
            if not any(moved) and not self._meet():
                waiting = {number: stream.at.collective.label for number, stream in self._streams.items() if stream.at}
                raise LlmcError("cannot go on: no rank meets another", found=f"rank: collective {waiting}"[:300])
        return run.results

    def _advance(self, stream: _Stream) -> bool:
        """Interpret a rank up to its next exchange, or through all it was given; True if it did anything."""
        if stream.at is not None or not stream.runs:
            return False
        run = stream.runs[0]
        try:
            stream.at = next(run.steps)
        except StopIteration as end:
            run.results = end.value
            stream.runs.popleft()
        return True

    def _meet(self) -> bool:
        """Do every exchange whose ranks are all there; True if there was any."""
        split, met = self._rank.split, False
        for number, stream in sorted(self._streams.items()):
            if stream.at is None:
                continue
            op, peer = stream.at.collective.collective, stream.at.collective.peer
            if op == "recv":
                continue  # done with its send
            if peer is None:
                group = [split.rank(split.stage(number), shard) for shard in range(split.shards)]
            else:
                group = [number, peer]
            there = [at for one in group if (found := self._streams.get(one)) and (at := found.at) is not None]
            wanted = [op] * len(group) if peer is None else ["send", "recv"]
            if [one.collective.collective for one in there] != wanted or (
                peer is not None and there[1].collective.peer != number
            ):
                continue
            _exchange(op, there)
            for one in group:
                self._streams[one].at = None
            met = True
        return met


def _exchange(op: str, ranks: list[Exchange]) -> None:
    counts = {one.count for one in ranks}
    if len(counts) > 1:
        raise LlmcError(f"expected one count of all ranks in {ranks[0].collective.label}", found=f"{sorted(counts)}")
    (count,) = counts
    if op == "send":
        _flat(ranks[1].receives)[:count] = _flat(ranks[0].sends)[:count]
        return
    given = [_flat(one.sends).clone() for one in ranks]
    for index, one in enumerate(ranks):
        into = _flat(one.receives)
        if op == "all_reduce":
            into[:count] = _sum([part[:count] for part in given])
        elif op == "all_gather":
            for shard, part in enumerate(given):
                into[shard * count : (shard + 1) * count] = part[:count]
        else:
            into[:count] = _sum([part[index * count : (index + 1) * count] for part in given])


def _sum(parts: list[torch.Tensor]) -> torch.Tensor:
    total = parts[0].clone()
    for part in parts[1:]:
        total += part
    return total


def _flat(tensor: torch.Tensor | None) -> torch.Tensor:
    assert tensor is not None
    return tensor.view(-1)
