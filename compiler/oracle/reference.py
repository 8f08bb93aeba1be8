"""Logits of the checkpoint itself, as a baseline for eval and tests: the fp32 oracle runs the unoptimized graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np

from ...passes.graph.graph import Computed, Graph
from ..checkpoint.checkpoint import Checkpoint
from ..decoder.decoder import Decoder, build
from .oracle import Oracle, Read
from .probe import inputs_for

Logits = Callable[[Sequence[int]], np.ndarray]
"""Token ids to logits ``f32 [T, V]``."""


def reference_logits(checkpoint: Checkpoint) -> Logits:
    """A function from token ids to logits ``f32 [T, V]``; each call reads the weights from the checkpoint.

    Each length has its own graph, for a context of its size. Two graphs are kept.
    """

    @lru_cache(maxsize=2)  # one for whole windows, one for the rest of the text, whose length varies
    def prepared(length: int) -> tuple[Decoder, Oracle]:
        decoder = build(checkpoint, length)
        return decoder, Oracle(_reader(decoder.graph, checkpoint))

    def logits(ids: Sequence[int]) -> np.ndarray:
        decoder, oracle = prepared(len(ids))
        inputs = inputs_for(checkpoint.config.decoder, ids, rows=len(ids), ropes=decoder.ropes)
        return oracle.run(decoder.graph, inputs)["logits"]

    return logits


def _reader(graph: Graph, checkpoint: Checkpoint) -> Read:
    def read(name: str, start: int, stop: int) -> np.ndarray:
        tensor = graph.canonical[name]
        last = tensor.shape[0] if stop < 0 else stop
        if isinstance(tensor.origin, Computed):
            return tensor.origin.data[start:last]
        return checkpoint.source.rows(name, start, last)

    return read
