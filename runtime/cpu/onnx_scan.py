"""Looks through an ONNX model before ONNX Runtime sees it: an engine is inert only if its graph holds known operators.

Field numbers are those of onnx.proto (IR version 10 and later). A field that is not listed here is refused, so nothing
that a newer ONNX adds, and ONNX Runtime acts on, passes unread.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from ..errors import EngineError, nearest


def _operators(domain: str, names: str) -> frozenset[tuple[str, str]]:
    return frozenset((domain, name) for name in names.split())


CPU_OPERATORS: frozenset[tuple[str, str]] = _operators(
    "",
    "Add Mul Sub Div Gather Reshape Transpose Split Concat Shape Cast Constant Sigmoid Swish Gelu MatMul Gemm "
    "RMSNormalization SimplifiedLayerNormalization ReduceMax Unsqueeze Squeeze Slice Identity Softmax Tanh "
    "Relu Range RotaryEmbedding TensorScatter Attention Less GreaterOrEqual And",
) | _operators(
    "com.microsoft",
    "GroupQueryAttention MatMulNBits SkipSimplifiedLayerNormalization FusedMatMul GatherBlockQuantized QuickGelu",
)
"""(domain, operator) pairs a cpu profile's graph may use; they compute, and nothing else."""
_MAX_BYTES = (1 << 31) - 1  # protobuf's own limit
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def scan(
    data: bytes, *, what: str, external: str | None, operators: Collection[tuple[str, str]] = CPU_OPERATORS
) -> None:
    """Refuses a serialized ModelProto that is more than a flat graph of `operators`; EngineError names the node.

    Refused: other operators, subgraphs, model-local functions, training, sparse tensors, tensors whose data lie
    anywhere but in the file called `external` (None: anywhere outside), fields unknown here, damaged protobuf.
    """
    if len(data) > _MAX_BYTES:
        raise EngineError(f"{what}: a graph of less than 2 GiB", found=f"{len(data)} bytes")
    walk = _Walk(what, external, frozenset(operators))
    for number, value in _fields(memoryview(data), what, _MODEL, "model"):
        if number == 7:
            walk.graph(value)


@dataclass(frozen=True)
class _Walk:
    """The messages that matter, each with a method; they nest to a fixed depth, as there are no subgraphs."""

    what: str
    external: str | None
    operators: frozenset[tuple[str, str]]

    def graph(self, data: memoryview) -> None:
        for number, value in _fields(data, self.what, _GRAPH, "graph"):
            if number == 1:
                self.node(value)
            elif number == 5:
                self.tensor(value)

    def node(self, data: memoryview) -> None:
        texts: dict[int, str] = {3: "", 4: "", 7: ""}
        seen: set[int] = set()
        for number, value in _fields(data, self.what, _NODE, "node"):
            if number in texts:
                if number in seen:  # readers disagree on which of two counts
                    raise EngineError(f"{self.what}: nodes with one name, operator and domain", found="two")
                seen.add(number)
                texts[number] = self.text(value)
            elif number == 5:
                self.attribute(value)
        name, operator, domain = texts[3], texts[4], texts[7]
        if ("" if domain == "ai.onnx" else domain, operator) not in self.operators:
            shown = f"{domain}.{operator}" if domain else operator
            close = nearest(operator, [known for _, known in self.operators])
            found = f"operator {shown[:200]!r} at node {name[:200]!r}{close}"
            raise EngineError(f"{self.what}: a graph of operators this llmc knows", found=found)

    def attribute(self, data: memoryview) -> None:
        for number, value in _fields(data, self.what, _ATTRIBUTE, "attribute"):
            if number in (5, 10):
                self.tensor(value)

    def tensor(self, data: memoryview) -> None:
        locations: list[str] = []
        outside, name = False, ""
        for number, value in _fields(data, self.what, _TENSOR, "tensor"):
            if number == 8:
                name = self.text(value)
            elif number == 13:
                outside = True
                locations += self.location(value)
            elif number == 14:
                outside = outside or bytes(value) != b"\0"
        if outside and (self.external is None or locations != [self.external]):
            expected = "no tensors outside" if self.external is None else f"tensors outside only in {self.external!r}"
            raise EngineError(f"{self.what}: {expected}", found=f"tensor {name[:200]!r} in {locations[:4]}"[:500])

    def location(self, data: memoryview) -> list[str]:
        """What one entry of a tensor's external data says of the place; entries are key and value."""
        texts = {1: "", 2: ""}
        for number, value in _fields(data, self.what, _ENTRY, "external data"):
            texts[number] = self.text(value)
        if texts[1] not in ("location", "offset", "length", "checksum"):
            raise EngineError(f"{self.what}: external data of known keys", found=f"{texts[1][:200]!r}")
        return [texts[2]] if texts[1] == "location" else []

    def text(self, data: memoryview) -> str:
        try:
            return str(data, "utf-8")
        except UnicodeDecodeError:
            raise EngineError(f"{self.what}: names in UTF-8", found=f"{bytes(data[:80])!r}") from None


@dataclass(frozen=True)
class _Message:
    """Field numbers of one message that may hold bytes or numbers, and what some of the refused ones would be."""

    of_bytes: frozenset[int]
    of_numbers: frozenset[int]
    refused: dict[int, str]


def _message(of_bytes: str, of_numbers: str, **refused: int) -> _Message:
    def numbers(text: str) -> frozenset[int]:
        return frozenset(map(int, text.split()))

    reasons = {number: reason.replace("_", " ") for reason, number in refused.items()}
    return _Message(numbers(of_bytes), numbers(of_numbers), reasons)


_MODEL = _message("2 3 4 6 7 8 14", "1 5", training_information=20, a_model_local_function=25)
_GRAPH = _message("1 2 5 10 11 12 13 14 16", "", a_sparse_initializer=15)
_NODE = _message("1 2 3 4 5 6 7 9", "", an_overload_of_a_function=8)
_ATTRIBUTE = _message(
    "1 4 5 9 10 13", "2 3 7 8 20", a_subgraph=6, a_list_of_subgraphs=11, a_reference_to_a_function=21,
    a_sparse_tensor=22, a_list_of_sparse_tensors=23,
)  # fmt: skip
_TENSOR = _message("6 8 9 12 13 16", "1 2 4 5 7 10 11 14", a_segment=3)
_ENTRY = _message("1 2", "")


def _fields(data: memoryview, what: str, message: _Message, label: str) -> Iterator[tuple[int, memoryview]]:
    """Number and raw bytes of each field of one protobuf message; numbers stay undecoded, as they may be packed."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at, what)
        number, wire = key >> 3, key & 7
        if number not in message.of_bytes and number not in message.of_numbers:
            found = f"{message.refused.get(number, f'field {number}')} in the {label}"
            raise EngineError(f"{what}: a flat graph of fields this llmc knows", found=found)
        if number in message.of_bytes and wire != _BYTES:
            raise EngineError(
                f"{what}: well-formed protobuf", found=f"field {number} of the {label} of wire type {wire}"
            )
        start = at
        if wire == _VARINT:
            _, at = _varint(data, at, what)
        elif wire == _BYTES:
            length, start = _varint(data, at, what)
            at = start + length
        elif wire in _FIXED:
            at += _FIXED[wire]
        else:
            raise EngineError(f"{what}: well-formed protobuf", found=f"wire type {wire} in the {label}")
        if at > len(data):
            found = f"the {label}, whose field {number} ends {at - len(data)} bytes behind it"
            raise EngineError(f"{what}: well-formed protobuf", found=found)
        yield number, data[start:at]


_FIXED = {_FIXED64: 8, _FIXED32: 4}


def _varint(data: memoryview, at: int, what: str) -> tuple[int, int]:
    """An unsigned number of at most 64 bits, and the position after it."""
    value = 0
    for index, byte in enumerate(data[at : at + 10]):
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            if value >= 1 << 64:
                break
            return value, at + index + 1
    raise EngineError(f"{what}: well-formed protobuf", found=f"a damaged or cut number at byte {at} of a message")
