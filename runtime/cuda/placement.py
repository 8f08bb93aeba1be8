"""Lays out a plan's weights in their one allocation, and says which bytes of the engine's file each of them is."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from ..engine_file.bind import Concat, Expr, Reshape, Slice, Stored, Times, from_json, stored
from ..engine_file.file import EngineFile
from ..errors import EngineError
from ..numbers import RAW_DTYPE
from ..plan.budget import aligned
from ..plan.plan import Plan


@dataclass(frozen=True)
class Segment:
    """Bytes [start, stop) of a stored tensor, and their offset in the weights' allocation."""

    tensor: str
    start: int
    stop: int
    offset: int


@dataclass(frozen=True)
class Placement:
    """The layout of the weights in their one allocation; equal weight expressions are stored once."""

    offsets: Mapping[str, int]
    """By name of the weight."""
    segments: tuple[Segment, ...]
    """Parts that are copied from the file."""
    computed: Mapping[str, tuple[Expr, int]]
    """Weights that the host computes: their expression and offset."""
    whole: frozenset[str]
    """Names of the stored tensors that computed weights read whole."""
    bytes: int
    """Of the whole allocation."""


def place_weights(engine: EngineFile, profile: str, plan: Plan) -> Placement:
    """Lay out every weight of the plan.

    Raises:
        EngineError: a weight has no binding, or its binding has another size or reads tensors that do not exist.
    """
    bindings, tensors = engine.profile(profile).weights, engine.tensors
    known: dict[Expr, int] = {}
    offsets: dict[str, int] = {}
    segments: list[Segment] = []
    computed: dict[str, tuple[Expr, int]] = {}
    end = 0
    for name, tensor in plan.tensors.items():
        if tensor.kind != "weight":
            continue
        if name not in bindings:
            raise EngineError(
                f"cannot load weight {name!r} of {engine.path}", found="no binding", fix="build the engine again"
            )
        expr = from_json(bindings[name])
        nbytes = _bytes(expr)
        if nbytes != tensor.bytes({}):
            found = f"{nbytes} bytes, {expr.dtype} {list(expr.shape)}"
            wanted = f"weight {name!r} of {tensor.bytes({})} bytes"
            raise EngineError(f"expected {wanted} in {engine.path}", found=found, fix="build the engine again")
        for leaf in stored(expr):
            info = tensors.get(leaf.name)
            if info is None or (info.dtype, info.shape) != (leaf.dtype, leaf.shape):
                found = "no such tensor" if info is None else f"{info.dtype} {list(info.shape)}"
                wanted = f"tensor {leaf.name!r} as {leaf.dtype} {list(leaf.shape)} for weight {name!r}"
                raise EngineError(f"expected {wanted} in {engine.path}", found=found, fix="build the engine again")
        if expr not in known:
            known[expr] = end
            parts = file_segments(expr, end)
            if parts is None:
                computed[name] = expr, end
            segments += parts or ()
            end += aligned(nbytes)
        offsets[name] = known[expr]
    whole = {name for expr, _ in computed.values() for name in _whole(expr)}
    return Placement(offsets, tuple(segments), computed, frozenset(whole), end)


def _whole(expr: Expr) -> set[str]:
    """Names of the tensors that an expression reads outside slices."""
    match expr:
        case Stored(name=name):
            return {name}
        case Slice():
            return set()
        case Concat(parts=parts):
            return {name for part in parts for name in _whole(part)}
        case Times(of=of, by=by):
            return _whole(of) | _whole(by)
    return _whole(expr.of)


def file_segments(expr: Expr, offset: int) -> list[Segment] | None:
    """The parts of the file whose bytes in order are the expression's; None if bytes must be computed or reordered."""
    match expr:
        case Stored(name=name):
            return [Segment(name, 0, _bytes(expr), offset)]
        case Reshape(of=of):
            return file_segments(of, offset)
        case Slice(of=of, axis=axis, start=start, stop=stop) if math.prod(of.shape[:axis]) == 1:
            row = _bytes(of) // of.shape[axis] if of.shape[axis] else 0
            whole = file_segments(of, 0)
            return whole and [
                Segment(one.tensor, one.start + start * row, one.start + stop * row, offset) for one in whole
            ]
        case Concat(parts=parts, axis=axis) if math.prod(expr.shape[:axis]) == 1:
            joined: list[Segment] = []
            for part in parts:
                found = file_segments(part, offset)
                if found is None:
                    return None
                joined += found
                offset += _bytes(part)
            return joined
    return None


def _bytes(expr: Expr) -> int:
    return math.prod(expr.shape) * RAW_DTYPE[expr.dtype].itemsize
