"""What each rank of a split profile has and takes, read without loading it: for `inspect`, `doctor` and `bench`."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..cpu.slots import sequence_bytes
from ..cpu.weights import private_bytes
from ..engine_file.bind import from_json
from ..engine_file.file import EngineFile
from ..engine_file.manifest import LayerCache
from ..engine_file.ranks import caches_of, split_of
from ..engine_file.split import label_of
from ..numbers import RAW_DTYPE


@dataclass(frozen=True)
class RankFacts:
    """One rank; sizes are bytes."""

    rank: int
    stage: int
    shard: int
    section: str
    """The section with its profile."""
    layers: tuple[int, ...]
    caches: tuple[LayerCache, ...]
    """One for each of its layers."""
    segments: int
    """Its graphs between collectives; 0 of a launch plan."""
    weights: int
    """Its part of the weights."""
    private: int
    """On the CPU, those that it copies or packs, so that each process takes memory for its own."""
    step: int
    """Weights that a step reads."""
    cache: int
    """On the CPU, keys and values of one sequence of the whole context."""


def facts_of_ranks(engine: EngineFile, profile: str) -> tuple[RankFacts, ...]:
    """The facts of every rank of a profile; none of a profile that is not split."""
    whole = engine.profile(profile)
    return tuple(_facts(engine, profile, rank, section) for rank, section in enumerate(whole.ranks or ()))


def _facts(engine: EngineFile, profile: str, rank: int, section: str) -> RankFacts:
    own = engine.profile(label_of(profile, rank))
    split = split_of(own, str(engine.path))
    caches = caches_of(own, engine.manifest.model)
    weights = {name: from_json(data) for name, data in own.weights.items()}
    cpu = own.target == "cpu"
    return RankFacts(
        rank,
        split.stage(rank),
        split.shard(rank),
        section,
        tuple(sorted(caches)),
        tuple(caches[layer] for layer in sorted(caches)),
        sum(name.endswith(".onnx") for name in own.files or ()),
        sum(math.prod(expr.shape) * RAW_DTYPE[expr.dtype].itemsize for expr in weights.values()),
        private_bytes(engine, weights, own.needs) if cpu else 0,
        int(own.needs.get("step_bytes", 0)),
        sequence_bytes(caches.values(), own.max_context) if cpu else 0,
    )
