"""Scans an ONNX model before ONNX Runtime loads it: an engine is inert only if its graph has known operators.

Field numbers are from onnx.proto (IR version 10 and later). Fields not listed here are refused, so a field of a newer
ONNX that ONNX Runtime acts on cannot pass unread.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from ..errors import EngineError, nearest

_NAMES = {
    "": "Add Mul Sub Div Gather Reshape Transpose Split Concat Shape Cast Constant Sigmoid Swish Gelu MatMul Gemm "
    "RMSNormalization SimplifiedLayerNormalization ReduceMax Unsqueeze Squeeze Slice Identity Softmax Tanh "
    "Relu Range RotaryEmbedding TensorScatter Attention Less GreaterOrEqual And LayerNormalization Softplus Exp Min "
    "Greater Where TopK GatherElements ScatterElements ReduceSum Equal Expand Max Abs",
    "com.microsoft": "GroupQueryAttention MatMulNBits SkipSimplifiedLayerNormalization FusedMatMul "
    "GatherBlockQuantized QuickGelu QMoE",
}
CPU_OPERATORS = frozenset((domain, name) for domain, names in _NAMES.items() for name in names.split())
"""(domain, operator) pairs that a cpu profile's graph may use; they only compute."""
_MAX_BYTES = (1 << 31) - 1
"""Protobuf's own limit."""
_VARINT, _BYTES = 0, 2
_FIXED = {1: 8, 5: 4}
"""Bytes of the other wire types."""


def scan(
    data: bytes, *, what: str, external: str | None, operators: Collection[tuple[str, str]] = CPU_OPERATORS
) -> None:
    """Check that a serialized ModelProto, called `what` in errors, is a flat graph of `operators`.

    Raises:
        EngineError: another operator (names its node), a subgraph, model-local function, training information, sparse
            tensor, unknown field, damaged protobuf, or a tensor whose data are outside the model and not in the file
            called `external` (None: no file).
    """
    if len(data) > _MAX_BYTES:
        raise EngineError(f"expected a graph of less than 2 GiB in {what}", found=f"{len(data)} bytes")
    walk = Walk(what, external, frozenset(operators))
    for graph in walk.read(MODEL, memoryview(data))[7]:
        fields = walk.read(GRAPH, graph)
        for node in fields[1]:
            walk.node(node)
        for tensor in fields[5]:
            walk.tensor(tensor)


@dataclass(frozen=True)
class Message:
    """The allowed fields of a protobuf message."""

    label: str
    of_bytes: Collection[int]
    """Numbers of the fields that hold bytes."""
    of_numbers: Collection[int] = ()
    """Numbers of the fields that hold numbers."""
    refused: Mapping[int, str] = field(default_factory=dict)
    """Names of some refused fields, for errors."""


MODEL = Message("model", {2, 3, 4, 6, 7, 8, 14}, {1, 5}, {20: "training information", 25: "a model local function"})
GRAPH = Message("graph", {1, 2, 5, 10, 11, 12, 13, 14, 16}, refused={15: "a sparse initializer"})
NODE = Message("node", {1, 2, 3, 4, 5, 6, 7, 9}, refused={8: "an overload of a function"})
ATTRIBUTE = Message(
    "attribute",
    {1, 4, 5, 9, 10, 13},
    {2, 3, 7, 8, 20},
    {
        6: "a subgraph",
        11: "a list of subgraphs",
        21: "a reference to a function",
        22: "a sparse tensor",
        23: "a list of sparse tensors",
    },
)
TENSOR = Message("tensor", {6, 8, 9, 12, 13, 16}, {1, 2, 4, 5, 7, 10, 11, 14}, {3: "a segment"})
_ENTRY = Message("external data", {1, 2})
VALUE = Message("value", {1, 2, 3, 4})
TYPE = Message("type", {1, 6})
TENSOR_TYPE = Message("tensor type", {2}, {1})
SHAPE = Message("shape", {1})
DIM = Message("dimension", {2, 3}, {1})


@dataclass(frozen=True)
class Walk:
    """A method per kind of message; they nest to a fixed depth, since subgraphs are refused."""

    what: str
    external: str | None
    operators: frozenset[tuple[str, str]]

    def node(self, data: memoryview) -> None:
        fields = self.read(NODE, data)
        for attribute in fields[5]:
            values = self.read(ATTRIBUTE, attribute)
            for tensor in values[5] + values[10]:
                self.tensor(tensor)
        texts = fields[3], fields[4], fields[7]
        if max(map(len, texts)) > 1:  # readers disagree on which of two is used
            raise EngineError(f"expected nodes with one name, operator and domain in {self.what}", found="two")
        name, operator, domain = map(self.text, texts)
        if ("" if domain == "ai.onnx" else domain, operator) not in self.operators:
            shown = f"{domain}.{operator}" if domain else operator
            close = nearest(operator, [known for _, known in self.operators])
            found = f"operator {shown[:200]!r} at node {name[:200]!r}{close}"
            raise EngineError(f"expected a graph of operators this llmc knows in {self.what}", found=found)

    def tensor(self, data: memoryview) -> None:
        fields = self.read(TENSOR, data)
        locations = [place for entry in fields[13] for place in self.location(entry)]
        outside = fields[13] or any(bytes(value) != b"\0" for value in fields[14])
        if outside and (self.external is None or locations != [self.external]):
            only = "" if self.external is None else f" except in {self.external!r}"
            found = f"tensor {self.text(fields[8])[:200]!r} in {locations[:4]}"[:500]
            raise EngineError(f"expected no tensors outside {self.what}{only}", found=found)

    def location(self, data: memoryview) -> list[str]:
        """The location in one entry of a tensor's external data, a key and a value; [] if the entry has another key."""
        fields = self.read(_ENTRY, data)
        key, value = self.text(fields[1]), self.text(fields[2])
        if key not in ("location", "offset", "length", "checksum"):
            raise EngineError(f"expected external data of known keys in {self.what}", found=f"{key[:200]!r}")
        return [value] if key == "location" else []

    def text(self, data: Sequence[memoryview]) -> str:
        """The text of a field, "" if absent; protobuf uses the last of several."""
        try:
            return str(data[-1], "utf-8") if data else ""
        except UnicodeDecodeError:
            raise EngineError(f"expected names in UTF-8 in {self.what}", found=f"{bytes(data[-1][:80])!r}") from None

    def read(self, message: Message, data: memoryview) -> defaultdict[int, list[memoryview]]:
        """The raw bytes of all fields of a message, by number; numbers are not decoded, since they may be packed."""
        fields: defaultdict[int, list[memoryview]] = defaultdict(list)
        at, label = 0, message.label
        while at < len(data):
            key, at = self.varint(data, at)
            number, wire = key >> 3, key & 7
            if number not in message.of_bytes and number not in message.of_numbers:
                found = f"{message.refused.get(number, f'field {number}')} in the {label}"
                raise EngineError(f"expected a flat graph of fields this llmc knows in {self.what}", found=found)
            if number in message.of_bytes and wire != _BYTES:
                raise self.damaged(f"field {number} of the {label} of wire type {wire}")
            start = at
            if wire == _VARINT:
                _, at = self.varint(data, at)
            elif wire == _BYTES:
                length, start = self.varint(data, at)
                at = start + length
            elif wire in _FIXED:
                at += _FIXED[wire]
            else:
                raise self.damaged(f"wire type {wire} in the {label}")
            if at > len(data):
                raise self.damaged(f"the {label}, whose field {number} ends {at - len(data)} bytes behind it")
            fields[number].append(data[start:at])
        return fields

    def varint(self, data: memoryview, at: int) -> tuple[int, int]:
        """An unsigned number of at most 64 bits, and the position after it."""
        value = 0
        for index, byte in enumerate(data[at : at + 10]):
            value |= (byte & 0x7F) << (7 * index)
            if byte < 0x80 and value < 1 << 64:
                return value, at + index + 1
        raise self.damaged(f"a damaged or cut number at byte {at} of a message")

    def damaged(self, found: str) -> EngineError:
        return EngineError(f"expected well-formed protobuf in {self.what}", found=found)
