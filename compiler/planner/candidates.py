"""Every legal split and format of a model on a machine: what it needs of memory, and what it does under a load."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial

from ...recipes.machines.link import Link
from ...recipes.machines.table import Machine
from ...recipes.recipe import Recipe
from ...runtime.engine_file.split import Split
from ...runtime.plan.budget import with_cache
from ...runtime.plan.copies import kept
from ...runtime.plan.plan import BLOCK_TOKENS
from ...runtime.plan.price import usable
from .pieces import Pieces
from .rates import Rates
from .serve import Served, Server, Workload
from .steps import Clock, Exchange


@dataclass(frozen=True)
class Needs:
    """Bytes of the GPU that is fullest with one request."""

    weights: int
    cache: int
    """Of one request at its full length."""
    workspace: int
    """Activations, inputs, state of the most sequences, scratch."""

    @property
    def total(self) -> int:
        return self.weights + self.cache + self.workspace


@dataclass(frozen=True)
class Candidate:
    """One way to run a model on a machine. A machine with more GPUs than ranks runs several copies of it."""

    machine: Machine
    recipe: Recipe
    """With one target and one split."""
    split: Split
    needs: Needs
    usable: int
    """Bytes of a GPU that a plan may use."""
    most: int
    """Requests at once, of full length, for which a copy has memory; 0: it does not fit."""
    bits: float
    """Stored bits per weight, scales included."""
    points: tuple[Served, ...]
    """Figures of one copy with more and more requests at once; empty if it does not fit."""
    batch: int | None = None
    """Requests at once on the machine, if a plan was asked for a number."""

    @property
    def profile(self) -> str:
        return self.split.profile(self.recipe.targets[0])

    @property
    def copies(self) -> int:
        return self.machine.gpus // self.split.ranks

    def requests(self, point: Served) -> int:
        """Requests at once on the machine. A number that was asked for may leave some copies with fewer than a point
        has, or with none."""
        every = point.sequences * self.copies
        return every if self.batch is None else min(every, self.batch)

    def figures(self, point: Served) -> Mapping[str, float]:
        """Figures of the machine by their names in goals (`recipes/goal.py`)."""
        priced = {} if self.machine.dollars is None else {"price": self.machine.dollars}
        busy = self.requests(point) / point.sequences
        return {
            "tpot": point.tpot,
            "ttft": point.ttft,
            "decode": point.decode * busy,
            "prefill": point.prefill * busy,
            "bits": self.bits,
            "bytes": self.needs.weights + self.needs.workspace + self.needs.cache * point.sequences,
            "gpus": self.machine.gpus,
            **priced,
        }


Timed = Callable[[Link, str, int, int], float]
"""The seconds of a collective over a link: its name, bytes and ranks."""


class Pricer:
    """Prices the splits of one recipe and one number of shards."""

    def __init__(
        self, pieces: Pieces, recipe: Recipe, load: Workload, rates: Rates, timed: Timed = Link.seconds
    ) -> None:
        """`timed` is how an engine's collectives take their time: llmc's are NCCL's."""
        self._pieces, self._recipe, self._load, self._rates, self._timed = pieces, recipe, load, rates, timed
        self._clocks: dict[tuple[str, bool], Clock] = {}
        self._known: dict[Hashable, Candidate] = {}

    def candidate(self, machine: Machine, pp: int, batch: int | None) -> Candidate:
        """A split with `pp` stages on a machine; `batch` requests at once on the machine, or as many as fit.

        A copy inside a host is the same in all machines with its chip and link, so it is priced once.
        """
        ranks = self._pieces.shards * pp
        hosts = 1 if ranks <= machine.gpus_per_host else (machine.gpus_per_host, machine.network)
        each = None if batch is None else -(-batch // (machine.gpus // ranks))
        key = machine.chip.name, machine.link, hosts, pp, each
        if key not in self._known:
            self._known[key] = self._candidate(machine, pp, batch)
        return replace(self._known[key], machine=machine)

    def _candidate(self, machine: Machine, pp: int, batch: int | None) -> Candidate:
        split = self._pieces.split(pp)
        pieces, needs, most = self.memory(machine, pp)
        recipe = replace(self._recipe, parallel=(split.name,))
        made = Candidate(
            machine,
            recipe,
            split,
            needs,
            usable(machine.chip.memory, split.ranks),
            most,
            self._pieces.skeleton.bits_per_weight,
            (),
            batch,
        )
        wanted = most if batch is None else -(-batch // made.copies)
        if not most or wanted > most:
            return made
        server = self._server(pieces, machine, pp)
        counts = _powers(most) if batch is None else (wanted,)
        return replace(made, points=tuple(server.served(self._load, count) for count in counts))

    def server(self, machine: Machine, pp: int) -> Server:
        """What prices a load on a copy with `pp` stages."""
        return self._server(self.memory(machine, pp)[0], machine, pp)

    def _server(self, pieces: Pieces, machine: Machine, pp: int) -> Server:
        key = machine.chip.name, pieces is self._pieces
        if key not in self._clocks:
            self._clocks[key] = Clock(pieces, machine.chip, self._rates)
        clock = self._clocks[key]
        moved = exchanges(machine, self._pieces.split(pp), self._rates, self._timed)
        return Server(pieces, pieces.skeleton.model_stages(pp), clock, moved, self._rates)

    def memory(self, machine: Machine, pp: int) -> tuple[Pieces, Needs, int]:
        """The pieces with or without copies of weights, as the runtime chooses; what the fullest rank with `pp` stages
        needs, which is without them; and the requests at once for which all ranks have memory."""
        needs, most = self._memory(self._pieces, machine, pp)
        if not self._pieces.copies:
            return self._pieces, needs, most
        lean, fits = self._memory(self._pieces.in_steps, machine, pp)
        keeps = kept({"": most} if most else None, {"": fits} if fits else None)
        return (self._pieces, lean, most) if keeps else (self._pieces.in_steps, lean, fits)

    def _memory(self, pieces: Pieces, machine: Machine, pp: int) -> tuple[Needs, int]:
        stages = pieces.skeleton.model_stages(pp)
        free = usable(machine.chip.memory, pieces.shards * pp)
        length = self._load.input + self._load.output
        needs, most = [], self._recipe.max_batch
        for stage in {*stages}:
            parts = pieces.parts(stage, self._recipe.max_batch)
            full = {kind.size: min(kind.blocks, -(-length // BLOCK_TOKENS)) for kind in pieces.caches(stage)}
            needed = replace(parts, blocks=full)
            needs.append(Needs(parts.weights, needed.cache, needed.fixed - parts.weights))
            divided = with_cache(parts, full, self._recipe.max_batch, free)
            fitting = [] if divided is None else [divided.blocks[size] // count for size, count in full.items()]
            most = min([most, *fitting]) if fitting else 0
        return max(needs, key=lambda one: one.total), most


def exchanges(machine: Machine, split: Split, rates: Rates, timed: Timed = Link.seconds) -> list[Exchange]:
    """The times of the collectives of each stage's first shard, by the links that its ranks have."""
    group = machine.link_of(split.shards) if split.shards > machine.gpus_per_host else machine.link

    def exchange(next_stage: Link, collective: str, exchanged: int) -> float:
        if collective == "recv":  # the sender's time
            return 0.0
        if collective == "send":
            return timed(next_stage, collective, exchanged, 2) / rates.link
        return timed(group, collective, exchanged, split.shards) / rates.link

    inside = partial(exchange, machine.link)
    outside = inside if machine.network is None else partial(exchange, machine.network)
    hosts = [split.rank(stage, 0) // machine.gpus_per_host for stage in range(split.pp)]
    return [inside if at == after else outside for at, after in zip(hosts, [*hosts[1:], hosts[-1]], strict=True)]


def _powers(most: int) -> Iterator[int]:
    """1, 2, 4 ... and the largest."""
    count = 1
    while count < most:
        yield count
        count *= 2
    yield most
