"""The frontier of a machine: the deployments of which no other gives both a request and the machine more tokens/s."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from ...recipes.machines.table import Machine
from ..planner.candidates import Candidate
from ..planner.serve import Served


@dataclass(frozen=True)
class Place:
    """A candidate with a number of requests at once."""

    candidate: Candidate
    point: Served
    """Of one copy."""

    @property
    def user(self) -> float:
        """Tokens/s that one request gets after its first token."""
        return 1 / self.point.tpot

    @property
    def machine(self) -> float:
        """Tokens/s that the whole machine generates."""
        return self.candidate.figures(self.point)["decode"]

    @property
    def requests(self) -> int:
        """Requests at once of the whole machine."""
        return self.candidate.requests(self.point)


def places(candidates: Iterable[Candidate], machine: Machine) -> Iterator[Place]:
    """All candidates of a machine with all their numbers of requests at once."""
    return (Place(one, point) for one in candidates if one.machine == machine for point in one.points)


def frontier(found: Iterable[Place]) -> tuple[Place, ...]:
    """The places that no other beats or equals in both speeds; that of the fastest request first. Of equal ones the
    first stays."""
    kept: list[Place] = []
    for one in sorted(found, key=lambda place: (-place.user, -place.machine)):
        if not kept or one.machine > kept[-1].machine:
            kept.append(one)
    return tuple(kept)
