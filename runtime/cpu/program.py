"""The program of one rank on the CPU: segments of its graph, and what ranks exchange between them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from ..engine_file.split import Split
from ..errors import EngineError
from ..files.records import read
from ..files.strict_json import loads

RUN = "Run"
_COLLECTIVES = {"AllReduce": (1, 1), "AllGather": (1, 1), "ReduceScatter": (1, 1), "Send": (1, 0), "Recv": (0, 1)}
"""Inputs and outputs of each."""
_SYMBOLS = ("B", "S", "R")
_MAX_SIZE = 1 << 31
"""Numbers of a value for one token."""


@dataclass(frozen=True)
class Step:
    """A segment to run, or a collective on named values (`passes/graph/collectives.py`)."""

    op: str
    segment: str = ""
    """File name of the ONNX graph to run; its inputs and outputs are values, inputs of the whole graph, or caches."""
    weights: tuple[str, ...] = ()
    """The segment's initializers."""
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    axis: int = 0
    sizes: tuple[int, ...] = ()
    peer: int = 0


@dataclass(frozen=True)
class Program:
    """What a rank runs in each call."""

    values: Mapping[str, tuple[str, ...]]
    """Shapes of the float32 values between steps: numbers, and B sequences, S new tokens of each, R rows of logits."""
    steps: tuple[Step, ...]

    def shape(self, name: str, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """The shape of a value, given the sizes B, S and R."""
        return tuple(sizes[dim] if dim in sizes else int(dim) for dim in self.values[name])


def read_program(data: bytes, split: Split, rank: int, files: Mapping[str, str], what: str) -> Program:
    """A checked program of a rank; `files` are its sections by file name.

    Raises:
        EngineError: it is none of ours; names `what`.
    """
    program: Program = read(Program, loads(data, what=what, error=EngineError), what)
    for name, shape in program.values.items():
        numbers = [dim for dim in shape if dim not in _SYMBOLS]
        if not shape or not all(map(_is_size, numbers)) or math.prod(map(int, numbers)) > _MAX_SIZE:
            raise _wrong(f"a shape for value {name!r}", what, ", ".join(shape))
    for number, step in enumerate(program.steps):
        demand = partial(_demand, f"step {number} ({step.op})", what)
        for name in (*step.inputs, *step.outputs):
            demand(name in program.values, f"no value {name!r}")
        if step.op == RUN:
            demand(step.segment in files, f"no file {step.segment!r}")
            continue
        demand(step.op in _COLLECTIVES, "an unknown operator")
        counts = len(step.inputs), len(step.outputs)
        demand(counts == _COLLECTIVES[step.op], f"{counts[0]} inputs and {counts[1]} outputs")
        if step.op in ("Send", "Recv"):
            far = step.peer < split.ranks and split.stage(step.peer) != split.stage(rank)
            demand(far, f"peer {step.peer} of rank {rank} in {split.name}")
        else:
            _check_group(program, step, split.shard(rank), split.shards, demand)
    return program


def _is_size(dim: str) -> bool:
    return dim.isdecimal() and len(dim) <= len(str(_MAX_SIZE)) and int(dim) > 0


def _check_group(program: Program, step: Step, shard: int, tp: int, demand: Callable[[bool, str], None]) -> None:
    (x,), (y,) = ([program.values[name] for name in names] for names in (step.inputs, step.outputs))
    if step.op == "AllReduce":
        demand(x == y, f"a sum {list(y)} of {list(x)}")
        return
    demand(len(step.sizes) == tp, f"sizes {list(step.sizes)} of {tp} shards")
    whole, part = (y, x) if step.op == "AllGather" else (x, y)
    fits = step.axis < len(whole) == len(part) and whole[step.axis] == str(sum(step.sizes))
    demand(fits and part[step.axis] == str(step.sizes[shard]), f"{list(y)} of {list(x)}")
    rest = [dim for at, dim in enumerate(whole) if at != step.axis]
    demand(rest == [dim for at, dim in enumerate(part) if at != step.axis], f"{list(y)} of {list(x)}")


def _demand(step: str, what: str, condition: bool, found: str) -> None:
    if not condition:
        raise _wrong(step, what, found)


def _wrong(expected: str, what: str, found: str) -> EngineError:
    return EngineError(f"expected {expected} in {what}", found=found[:200], fix="build the engine again")
