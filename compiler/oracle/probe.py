"""Computes the golden probe at build: the oracle runs the quantized graph over the weights just written."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ...passes.graph.graph import Graph
from ...runtime.errors import CheckpointError
from ...runtime.probe import POSITIONS, Probe, probe_ids, probe_of
from ..families.spec import DecoderSpec
from .oracle import Oracle, Read


def inputs_for(spec: DecoderSpec, ids: Sequence[int], *, rows: int) -> dict[str, np.ndarray]:
    """Graph inputs of a whole prompt with empty caches; the graph computes logits at the last `rows` positions."""
    count = len(ids)
    shapes = [(1, layer.mixer.kv_heads, count, layer.mixer.head_dim) for layer in spec.layers]
    return {
        "input_ids": np.array([ids], np.int64),
        "past_lengths": np.zeros(1, np.int32),
        "logits_indices": np.arange(count - rows, count, dtype=np.int64),
        **{
            f"past.{index}.{part}": np.zeros(shape, np.float32)
            for index, shape in enumerate(shapes)
            for part in ("key", "value")
        },
    }


def measure_probe(
    graph: Graph, spec: DecoderSpec, read: Read, *, context: int, advance: Callable[[int], None] = lambda _: None
) -> Probe:
    """The fixed ids, teacher-forced, and the oracle's top logits at the last positions.

    `advance` receives 1 after each block (`oracle.block_count`).

    Raises:
        CheckpointError: the logits are not finite, so the weights are not a working model.
    """
    ids = probe_ids(spec.vocab_size)[:context]
    inputs = inputs_for(spec, ids, rows=min(POSITIONS, len(ids)))
    logits = Oracle(read).run(graph, inputs, advance)["logits"]
    if not np.isfinite(logits).all():
        fix = "a checkpoint that works"
        raise CheckpointError("cannot compute the golden probe", found="logits with NaN or infinity", fix=fix)
    return probe_of(ids, logits)
