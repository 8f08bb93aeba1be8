"""The checkpoint itself as a baseline: logits by the fp32 oracle of the unoptimized graph, for eval and tests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np

from ...passes.graph.graph import Computed, Graph
from ..checkpoint.checkpoint import Checkpoint
from ..decoder.decoder import build
from .oracle import Oracle, Read
from .probe import inputs_for

Logits = Callable[[Sequence[int]], np.ndarray]


def reference(checkpoint: Checkpoint) -> Logits:
    """A function from token ids to logits float32 `[T, V]`; weights are read from the checkpoint at every call.

    Each length has its own graph, as rope types that depend on the context are fixed by it; two are kept.
    """

    @lru_cache(maxsize=2)  # that of whole windows, and that of a text's rest: there may be any number of those
    def prepared(length: int) -> tuple[Graph, Oracle]:
        graph = build(checkpoint, length).graph
        return graph, Oracle(_reader(graph, checkpoint))

    def logits(ids: Sequence[int]) -> np.ndarray:
        graph, oracle = prepared(len(ids))
        return oracle.run(graph, inputs_for(checkpoint.config.decoder, ids, rows=len(ids)))["logits"]

    return logits


def _reader(graph: Graph, checkpoint: Checkpoint) -> Read:
    def read(name: str, start: int, stop: int) -> np.ndarray:
        tensor = graph.canonical[name]
        last = tensor.shape[0] if stop < 0 else stop
        if isinstance(tensor.origin, Computed):
            return tensor.origin.data[start:last]
        return checkpoint.source.rows(name, start, last)

    return read
