"""Writes small ONNX models without the onnx package, so that a machine that only runs engines can be measured too.

Field numbers are from onnx.proto, as in `runtime/cpu/onnx_scan.py`, which reads what stands here.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

F32, U8, I32, I64 = 1, 2, 6, 7
"""ONNX's element types."""
_FLOAT, _INT, _INTS = 1, 2, 7
"""ONNX's types of attributes."""
_OPSETS = (("", 21), ("com.microsoft", 1))
_IR_VERSION = 10


@dataclass(frozen=True)
class Op:
    """A node: its operator, the names of its inputs ("" is absent) and outputs, its attributes."""

    domain: str
    name: str
    inputs: Sequence[str]
    outputs: Sequence[str]
    attributes: Mapping[str, int | float | Sequence[int]] = field(default_factory=dict)


@dataclass(frozen=True)
class Typed:
    """An input or output: its name, element type and dimensions; a text is a size of run time."""

    name: str
    kind: int
    shape: Sequence[int | str]


def model(
    ops: Iterable[Op],
    inputs: Iterable[Typed],
    outputs: Iterable[Typed],
    outside: Iterable[Typed] = (),
    location: str = "",
) -> bytes:
    """A serialized ModelProto. Its initializers are `outside`, in a file called `location`: a session is given them."""
    graph = b"".join(
        [
            *(_bytes(1, _node(op)) for op in ops),
            _bytes(2, b"chain"),
            *(_bytes(5, _external(one, location)) for one in outside),
            *(_bytes(11, _value(one)) for one in inputs),
            *(_bytes(12, _value(one)) for one in outputs),
        ]
    )
    opsets = (_bytes(8, _bytes(1, domain.encode()) + _number(2, version)) for domain, version in _OPSETS)
    return _number(1, _IR_VERSION) + b"".join(opsets) + _bytes(7, graph)


def _node(op: Op) -> bytes:
    parts = [_bytes(1, name.encode()) for name in op.inputs] + [_bytes(2, name.encode()) for name in op.outputs]
    parts += [_bytes(4, op.name.encode()), _bytes(7, op.domain.encode())]
    return b"".join(parts + [_bytes(5, _attribute(name, value)) for name, value in op.attributes.items()])


def _attribute(name: str, value: float | Sequence[int]) -> bytes:
    head = _bytes(1, name.encode())
    if isinstance(value, int):
        return head + _number(3, value) + _number(20, _INT)
    if isinstance(value, float):
        return head + _key(2, 5) + struct.pack("<f", value) + _number(20, _FLOAT)
    return head + b"".join(_number(8, one) for one in value) + _number(20, _INTS)


def _value(one: Typed) -> bytes:
    dims = b"".join(
        _bytes(1, _number(1, dim) if isinstance(dim, int) else _bytes(2, dim.encode())) for dim in one.shape
    )
    return _bytes(1, one.name.encode()) + _bytes(2, _bytes(1, _number(1, one.kind) + _bytes(2, dims)))


def _external(one: Typed, location: str) -> bytes:
    dims = b"".join(_number(1, int(dim)) for dim in one.shape)
    entry = _bytes(1, b"location") + _bytes(2, location.encode())
    return dims + _number(2, one.kind) + _bytes(8, one.name.encode()) + _bytes(13, entry) + _number(14, 1)


def _bytes(number: int, data: bytes) -> bytes:
    return _key(number, 2) + _varint(len(data)) + data


def _number(number: int, value: int) -> bytes:
    return _key(number, 0) + _varint(value % (1 << 64))


def _key(number: int, wire: int) -> bytes:
    return _varint(number << 3 | wire)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])
