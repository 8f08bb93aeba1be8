"""What each rank of a split has, as a value that `partition.py` reads: layers, and rows and columns of weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise

from ..runtime.engine_file.split import Split

ROWS, COLUMNS = 0, 1
Span = tuple[int, int]
"""From and to, in rows or columns of a weight."""


@dataclass(frozen=True)
class Cut:
    """How the weight [rows, columns] of a linear is cut: along an axis, one span per shard."""

    axis: int
    spans: tuple[Span, ...]


@dataclass(frozen=True)
class ExpertsCut:
    """What each shard has of a mixture's experts: which ones, and which of their inner elements."""

    experts: tuple[Span, ...]
    inner: tuple[Span, ...]
    """Columns of down; rows of gate, and the same rows of up."""


@dataclass(frozen=True)
class Placement:
    """What each rank has of a model."""

    split: Split
    stages: tuple[Span, ...]
    """The layers of each stage, from and to."""
    cuts: Mapping[str, Cut]
    """By module; all shards have the whole weights of other linears."""
    vocabulary: tuple[Span, ...]
    """Rows of the embedding and of the head, per shard."""
    mixtures: Mapping[str, ExpertsCut] = field(default_factory=dict)
    """By module of the experts."""

    def __post_init__(self) -> None:
        """Check the spans, which may come from a saved graph.

        Raises:
            ValueError: a span is missing or empty, or one of `stages` or `vocabulary` does not begin at the last's end.
        """
        rows = {f"the cut of {module}": cut.spans for module, cut in self.cuts.items()}
        rows |= {f"experts of {module}": cut.experts for module, cut in self.mixtures.items()}
        rows |= {f"inner elements of {module}": cut.inner for module, cut in self.mixtures.items()}
        rows |= {"the vocabulary": self.vocabulary, "the stages": self.stages}
        for what, parts in rows.items():
            count = self.split.pp if what == "the stages" else self.split.shards
            if len(parts) != count or any(len(part) != 2 or part[0] >= part[1] for part in parts):
                raise ValueError(f"{what} {parts}: expected {count} spans")
        for parts in (self.stages, self.vocabulary):
            if [0, *(stop for _, stop in parts[:-1])] != [start for start, _ in parts]:
                raise ValueError(f"spans {parts}, of which one does not begin where the last ends")

    def stage_of(self, block: str) -> int:
        """The stage that computes a block of the graph."""
        kind, _, layer = block.partition(".")
        if kind != "layer":
            return 0 if kind == "embed" else self.split.pp - 1
        found = [stage for stage, (start, stop) in enumerate(self.stages) if start <= int(layer) < stop]
        if not found:
            raise ValueError(f"{block} is in none of the stages {self.stages}")
        return found[0]

    def cut_of(self, block: str, module: str) -> Cut | None:
        """How the weight of a linear is cut; None if all shards have all of it."""
        return Cut(ROWS, self.vocabulary) if block == "head" else self.cuts.get(module)


def spans(size: int, count: int) -> tuple[Span, ...]:
    """Cuts `size` into `count` parts as equal as possible, the larger ones first."""
    each, extra = divmod(size, count)
    ends = [each * index + min(index, extra) for index in range(count + 1)]
    return tuple(pairwise(ends))
