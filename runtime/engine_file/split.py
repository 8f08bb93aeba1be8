"""How a model is split over ranks: tensor parallel inside a pipeline stage, pipeline parallel over stages."""

from __future__ import annotations

import re
from dataclasses import dataclass

MAX_DEGREE = 256
_RANK = ".rank-"
_TEXT = re.compile(r"(?:tp([1-9][0-9]{0,2}))?(?:(?:^|(?<=[0-9])-)pp([1-9][0-9]{0,2}))?")


@dataclass(frozen=True, order=True)
class Split:
    """`tp` shards of each of `pp` stages; rank = stage * tp + shard.

    Raises:
        ValueError: a degree is not from 1 to MAX_DEGREE.
    """

    tp: int = 1
    pp: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.tp <= MAX_DEGREE or not 1 <= self.pp <= MAX_DEGREE:
            raise ValueError(f"degrees {self.tp} and {self.pp}: each is from 1 to {MAX_DEGREE}")

    @staticmethod
    def parse(text: str) -> Split:
        """The inverse of `name`; "tp1" is one rank.

        Raises:
            ValueError: it is no split.
        """
        found = _TEXT.fullmatch(text)
        if not text or found is None:
            raise ValueError(f"{text!r}: a split is tpN, ppM or tpN-ppM, such as tp4-pp2")
        return Split(*(int(degree or 1) for degree in found.groups()))

    @property
    def ranks(self) -> int:
        return self.tp * self.pp

    @property
    def name(self) -> str:
        """Degrees of 1 are left out, but that of one rank: "tp1"."""
        degrees = [f"{key}{degree}" for key, degree in (("tp", self.tp), ("pp", self.pp)) if degree > 1]
        return "-".join(degrees) or "tp1"

    def profile(self, target: str) -> str:
        """The name of the profile of this split for a target."""
        return target if self.ranks == 1 else f"{target}-{self.name}"

    def labels(self, target: str) -> tuple[str, ...]:
        """What a build calls the graphs of its profile: the profile's name, or one label per rank."""
        profile = self.profile(target)
        return (profile,) if self.ranks == 1 else tuple(label_of(profile, rank) for rank in range(self.ranks))

    def rank(self, stage: int, shard: int) -> int:
        return stage * self.tp + shard

    def stage(self, rank: int) -> int:
        return rank // self.tp

    def shard(self, rank: int) -> int:
        """Its place in its tensor-parallel group, which holds the ranks of its stage."""
        return rank % self.tp


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
