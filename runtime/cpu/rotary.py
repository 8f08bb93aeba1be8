"""The rotary tables of one cpu call, for models whose tables depend on a sequence's length: a row per token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..engine_file.rope import POSITIONS, LengthRope, table_inputs
from ..engine_file.rope_tables import fill_tables
from ..errors import EngineError
from ..scheduling.executor import ScheduledSequence


class CallTables:
    """Inputs of a call of `batch` sequences with `tokens` tokens each; none if the model has no such rope."""

    def __init__(self, ropes: Sequence[LengthRope], batch: int, tokens: int) -> None:
        rows = batch * tokens
        self._ropes, self._shape = ropes, (batch, tokens)
        self._arrays = [
            (np.zeros((rows, len(rope.short)), np.float32), np.zeros((rows, len(rope.short)), np.float32))
            for rope in ropes
        ]
        self.inputs: dict[str, np.ndarray] = {}
        """By the graph's names."""
        if ropes:
            self.inputs[POSITIONS] = np.arange(rows, dtype=np.int64).reshape(self._shape)
        for number, pair in enumerate(self._arrays):
            self.inputs.update(zip(table_inputs(number), pair, strict=True))

    def fill(self, slots: Sequence[int], step: Sequence[ScheduledSequence]) -> None:
        """Write the tables of these sequences, which have these slots of the call."""
        if not self._ropes:
            return
        tables, positions = np.zeros(self._shape, np.int64), np.zeros(self._shape, np.int64)
        for slot, scheduled in zip(slots, step, strict=True):
            tables[slot] = scheduled.table
            positions[slot] = np.arange(scheduled.start, scheduled.end)
        fill_tables(self._ropes, self._arrays, tables.ravel(), positions.ravel())


def check_tables(declared: Mapping[str, Any], ropes: Sequence[LengthRope], path: str, *, some: bool = False) -> None:
    """Check that a graph, whose inputs are `declared` with their shapes, takes the tables of these ropes, or `some`.

    Raises:
        EngineError: it takes others.
    """
    wanted = {name: len(rope.short) for number, rope in enumerate(ropes) for name in table_inputs(number)}
    found = {name: shape[-1] for name, shape in declared.items() if len(shape) == 2 and name in wanted}
    positions = POSITIONS in declared
    if not (found.items() <= wanted.items() if some else found == wanted) or positions != bool(
        found if some else ropes
    ):
        raise EngineError(
            f"expected a graph with rotary tables {wanted} in {path}", found=f"{found}", fix="build the engine again"
        )
