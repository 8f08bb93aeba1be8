"""Finds which stage computes each node of a logical graph, and which values later stages read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir

from .graph.graph import BLOCK
from .placement import Placement
from .sums import Sums


@dataclass(frozen=True)
class Crossing:
    """A value that a later stage reads. `summand`: the input of its Add that is a sum over shards, if there is one."""

    value: ir.Value
    source: int
    reader: int
    summand: int | None
    number: int


def stage_of(node: ir.Node, placement: Placement) -> int | None:
    """The stage of a node, by its block; None if it makes integers only, which every stage that reads them computes."""
    if all(value.dtype in (ir.DataType.INT64, ir.DataType.INT32) for value in node.outputs) or not node.inputs:
        return None
    return placement.stage_of(node.metadata_props[BLOCK])


def crossings(where: Mapping[ir.Node, int | None], sums: Sums) -> list[Crossing]:
    found = []
    for node, source in where.items():
        for value in node.outputs if source is not None else ():
            readers = {stage for user, _ in value.uses() if (stage := where[user]) is not None}
            summand = None if source in readers or sums.placement.split.shards == 1 else _summand(node, sums)
            for reader in sorted(readers - {source}):
                found.append(Crossing(value, int(source or 0), reader, summand, len(found)))
    return found


def _summand(add: ir.Node, sums: Sums) -> int | None:
    """Which input of an Add is a sum over shards that nothing else reads; None if none is."""
    for index, value in enumerate(add.inputs if add.op_type == "Add" else ()):
        made = value.producer() if value is not None else None
        if value is not None and made is not None and len(value.uses()) == 1 and sums.adds_up(made):
            return index
    return None
