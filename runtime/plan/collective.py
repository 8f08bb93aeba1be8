"""The exchanges of a plan with other ranks: what is moved, with whom, and how much of it passes the link."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from ..engine_file.split import Split, parts_of, split_name

OPS: Mapping[str, tuple[bool, bool]] = {
    "all_reduce": (True, True),
    "all_gather": (True, True),
    "reduce_scatter": (True, True),
    "send": (True, False),
    "recv": (False, True),
}
"""Collectives: whether they send and whether they receive."""


@dataclass(frozen=True)
class Collective:
    """One exchange of a rank with others, in the place of a launch. Its numbers have the dtype of its tensors."""

    collective: str
    """One of OPS."""
    sends: str | None
    """Name of a tensor; None of a recv."""
    receives: str | None
    """Name of a tensor, which may be the one that is sent; None of a send."""
    count: str
    """Formula of the numbers that this rank gives to the sum, gathers, keeps of a sum, sends or receives."""
    peer: int | None
    """Number of the rank that a send or recv is with; the others are with all shards of the stage, in their order."""
    bytes: str
    """Formula of the bytes of its tensors."""
    link_bytes: str
    """Formula of the bytes that pass this rank's link in the direction with more of them, if ranks form a ring."""
    label: str
    """The operator of the graph that it computes."""
    operations: ClassVar[str] = "0"

    @property
    def tensors(self) -> tuple[str, ...]:
        """Names of the tensors that it uses."""
        return tuple(name for name in (self.sends, self.receives) if name is not None)


@dataclass(frozen=True)
class RankOf:
    """The rank of a job that a plan is for, and the degrees of its split (`engine_file/split.py`)."""

    number: int
    tp: int
    pp: int

    @staticmethod
    def of(label: str) -> RankOf:
        """The rank of a label, such as "sm_90-tp2.rank-1"; of the name of a profile without ranks, the only one."""
        profile, rank = parts_of(label)
        split = Split.parse(split_name(profile))
        return RankOf(rank or 0, split.tp, split.pp)

    @property
    def stage(self) -> int:
        return Split(self.tp, self.pp).stage(self.number)

    @property
    def shard(self) -> int:
        return Split(self.tp, self.pp).shard(self.number)

    @property
    def is_last(self) -> bool:
        """True if its stage computes the logits."""
        return self.stage == self.pp - 1


ALONE = RankOf(0, 1, 1)
"""The rank of a plan without others."""
