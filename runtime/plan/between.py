"""The exchanges of a plan with other ranks: what is moved, with whom, and how much of it passes the link."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol

from ..dtypes import KERNEL_DTYPES
from ..engine_file.split import MAX_DEGREE, Split, parts_of, split_name
from ..errors import EngineError, nearest
from .formula import value

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
    """The rank of a job that a plan is for, and the shape of its split (`engine_file/split.py`)."""

    number: int
    tp: int
    """The shards of each stage, those of experts included."""
    pp: int

    @staticmethod
    def of(label: str) -> RankOf:
        """The rank of a label, such as "sm_90-tp2.rank-1"; of the name of a profile without ranks, the only one."""
        profile, rank = parts_of(label)
        split = Split.parse(split_name(profile))
        return RankOf(rank or 0, split.shards, split.pp)

    @property
    def split(self) -> Split:
        return Split(self.tp, self.pp)

    @property
    def stage(self) -> int:
        return self.split.stage(self.number)

    @property
    def shard(self) -> int:
        return self.split.shard(self.number)

    @property
    def is_last(self) -> bool:
        """True if its stage computes the logits."""
        return self.stage == self.pp - 1


ALONE = RankOf(0, 1, 1)
"""The rank of a plan without others."""


class Buffer(Protocol):
    """A tensor of the plan (`plan.Tensor`)."""

    @property
    def dtype(self) -> str: ...
    def dims(self, sizes: Mapping[str, int]) -> tuple[int, ...]: ...
    def bytes(self, sizes: Mapping[str, int]) -> int: ...


def check_rank(rank: RankOf, what: str) -> None:
    """Check the degrees and the number of a plan's rank."""
    if not (1 <= rank.tp <= MAX_DEGREE and 1 <= rank.pp <= MAX_DEGREE and rank.number < rank.tp * rank.pp):
        raise EngineError(f"expected a rank of a split in {what}", found=f"{rank.number} of {rank.tp} * {rank.pp}")


def check_collective(
    one: Collective, rank: RankOf, buffers: Mapping[str, Buffer], limits: Mapping[str, int], where: str
) -> None:
    """Check the operator, the peer, and that what is moved lies inside the tensors."""
    if one.collective not in OPS:
        found = f"{one.collective[:80]!r}{nearest(one.collective, OPS)}"
        raise EngineError(f"expected an operator between ranks in {where}", found=found)
    if OPS[one.collective] != (one.sends is not None, one.receives is not None):
        raise EngineError(f"expected the tensors of a {one.collective} in {where}", found=", ".join(one.tensors)[:200])
    paired = False in OPS[one.collective]
    ranks = rank.tp * rank.pp
    if (one.peer is not None) != paired or (one.peer is not None and (one.peer >= ranks or one.peer == rank.number)):
        wanted = f"another rank of {ranks} as the peer" if paired else "no peer"
        raise EngineError(f"expected {wanted} in {where}", found=str(one.peer))
    count = value(one.count, limits)
    for formula in (one.bytes, one.link_bytes):
        value(formula, limits)
    times = {"all_gather": (1, rank.tp), "reduce_scatter": (rank.tp, 1)}.get(one.collective, (1, 1))
    dtypes = set()
    for name, parts in zip((one.sends, one.receives), times, strict=True):
        if name is None:
            continue
        tensor = buffers.get(name)
        if tensor is None:
            raise EngineError(f"expected a buffer in {where}", found=f"{name[:80]!r}{nearest(name, buffers)}")
        dtypes.add(tensor.dtype)
        if count * parts * KERNEL_DTYPES[tensor.dtype].bytes > tensor.bytes(limits):
            found = f"{count * parts} of {math.prod(tensor.dims(limits))} numbers"
            raise EngineError(f"expected numbers inside buffer {name!r} in {where}", found=found)
    if len(dtypes) > 1:
        raise EngineError(f"expected one dtype in {where}", found=", ".join(sorted(dtypes)))
