"""Computes the golden probe at build: the oracle runs the quantized graph over the weights just written."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ...runtime.engine_file.rope import POSITIONS, LengthRope, table_inputs, table_of
from ...runtime.engine_file.rope_tables import rows_of
from ...runtime.errors import CheckpointError
from ...runtime.probe import POSITIONS as PROBED
from ...runtime.probe import Probe, probe_ids, probe_of
from ..decoder.decoder import Decoder
from ..families.spec import DecoderSpec, cache_of
from .oracle import Oracle, Read


def inputs_for(
    spec: DecoderSpec, ids: Sequence[int], *, rows: int, ropes: Sequence[LengthRope] = ()
) -> dict[str, np.ndarray]:
    """Graph inputs of a whole prompt with empty caches; the graph computes logits at the last `rows` positions.

    `ropes` are those of the graph whose tables are inputs.
    """
    count = len(ids)
    positions = np.arange(count)
    tables = {
        name: values
        for number, rope in enumerate(ropes)
        for name, values in zip(table_inputs(number), rows_of(rope, table_of(ropes, count), positions), strict=True)
    }
    mixers = {index: layer.mixer for index, layer in enumerate(spec.layers) if layer.mixer.source is None}
    return {
        "input_ids": np.array([ids], np.int64),
        "past_lengths": np.zeros(1, np.int32),
        "logits_indices": np.arange(count - rows, count, dtype=np.int64),
        **({POSITIONS: positions[None]} | tables if ropes else {}),
        **{
            f"past.{index}.{part}": np.zeros((1, mixer.kv_heads, count, mixer.head_dim), np.float32)
            for index, mixer in mixers.items()
            for part in cache_of(mixer).parts
        },
    }


def measure_probe(
    decoder: Decoder, read: Read, *, context: int, advance: Callable[[int], None] = lambda _: None
) -> Probe:
    """The fixed ids, teacher-forced, and the oracle's top logits at the last positions.

    `decoder` holds the graph after the model passes. `advance` receives 1 after each block (`oracle.block_count`).

    Raises:
        CheckpointError: the logits are not finite, so the weights are not a working model.
    """
    ids = probe_ids(decoder.spec.vocab_size)[:context]
    inputs = inputs_for(decoder.spec, ids, rows=min(PROBED, len(ids)), ropes=decoder.ropes)
    logits = Oracle(read).run(decoder.graph, inputs, advance)["logits"]
    if not np.isfinite(logits).all():
        fix = "a checkpoint that works"
        raise CheckpointError("cannot compute the golden probe", found="logits with NaN or infinity", fix=fix)
    return probe_of(ids, logits)
