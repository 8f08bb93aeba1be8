"""How a model is split over ranks: tensor and expert parallel inside a stage, pipeline parallel over stages."""

from __future__ import annotations

import re
from dataclasses import dataclass

MAX_DEGREE = 256
_RANK = ".rank-"
_DEGREE = "(?:(?:^|(?<=[0-9])-){}([1-9][0-9]{{0,2}}))?"
_TEXT = re.compile("".join(_DEGREE.format(key) for key in ("tp", "ep", "pp")))


@dataclass(frozen=True, order=True)
class Split:
    """`pp` stages of `tp * ep` shards each; rank = stage * shards + shard.

    Experts are in `ep` groups of whole experts, each of `tp` shards that have a part of every expert of their group;
    shard = group * tp + its place in the group. All else is cut over all shards of a stage.

    Raises:
        ValueError: a degree, or the number of shards, is not from 1 to MAX_DEGREE.
    """

    tp: int = 1
    pp: int = 1
    ep: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.tp <= MAX_DEGREE or not 1 <= self.pp <= MAX_DEGREE or not 1 <= self.ep <= MAX_DEGREE:
            degrees = [str(self.tp), *([str(self.ep)] if self.ep != 1 else [])]
            raise ValueError(f"degrees {', '.join(degrees)} and {self.pp}: each is from 1 to {MAX_DEGREE}")
        if self.shards > MAX_DEGREE:
            raise ValueError(f"tp{self.tp}-ep{self.ep} of {self.shards} shards: a stage has at most {MAX_DEGREE}")

    @staticmethod
    def parse(text: str) -> Split:
        """The inverse of `name`; "tp1" is one rank.

        Raises:
            ValueError: it is no split.
        """
        found = _TEXT.fullmatch(text)
        if not text or found is None:
            raise ValueError(f"{text!r}: a split is tpN, epN, ppN, or some in this order, such as tp4-pp2 or tp2-ep4")
        tp, ep, pp = (int(degree or 1) for degree in found.groups())
        return Split(tp, pp, ep)

    @property
    def shards(self) -> int:
        """The ranks of a stage."""
        return self.tp * self.ep

    @property
    def ranks(self) -> int:
        return self.shards * self.pp

    @property
    def name(self) -> str:
        """Degrees of 1 are left out, but that of one rank: "tp1"."""
        degrees = (("tp", self.tp), ("ep", self.ep), ("pp", self.pp))
        return "-".join(f"{key}{degree}" for key, degree in degrees if degree > 1) or "tp1"

    def profile(self, target: str) -> str:
        """The name of the profile of this split for a target."""
        return target if self.ranks == 1 else f"{target}-{self.name}"

    def labels(self, target: str) -> tuple[str, ...]:
        """What a build calls the graphs of its profile: the profile's name, or one label per rank."""
        profile = self.profile(target)
        return (profile,) if self.ranks == 1 else tuple(label_of(profile, rank) for rank in range(self.ranks))

    def rank(self, stage: int, shard: int) -> int:
        return stage * self.shards + shard

    def stage(self, rank: int) -> int:
        return rank // self.shards

    def shard(self, rank: int) -> int:
        """Its place in the group of the ranks of its stage."""
        return rank % self.shards

    def group(self, shard: int) -> tuple[int, int]:
        """The group of experts of a shard, and its place in it."""
        return divmod(shard, self.tp)


def label_of(profile: str, rank: int) -> str:
    """The name of one rank's part of a profile: "cpu-tp2.rank-1"."""
    return f"{profile}{_RANK}{rank}"


def parts_of(label: str) -> tuple[str, int | None]:
    """The profile of a label, and its rank; None if the label is a profile's name."""
    profile, mark, rank = label.partition(_RANK)
    return profile, int(rank) if mark and rank.isdecimal() else None


def target_of(label: str) -> str:
    """The target of a profile or of one of its ranks."""
    return parts_of(label)[0].partition("-")[0]


def split_name(profile: str) -> str:
    """The name of a profile's split."""
    return profile.partition("-")[2] or "tp1"
