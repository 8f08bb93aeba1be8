"""Writes a graph as a text file and reads it back: ONNX text, and in comments below it what that text leaves out.

ONNX text leaves out the block and module of each node, the weight expressions and the canonical tensors. The file
has no numbers, since no pass reads one: values that the compiler computed (rope tables) come back as zeros.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from ...runtime.engine_file.bind import from_json, to_json
from ...runtime.errors import EngineError, RecipeError
from ...runtime.files.records import read
from ...runtime.files.safetensors import open_regular, read_at
from ...runtime.files.strict_json import loads
from ...runtime.numbers import RAW_DTYPE
from .graph import BLOCK, IR_VERSION, MODULE, OPSETS, ROLE, Canonical, Computed, Copied, Graph, Quantized
from .verify import verify

MARK = "# What the text above leaves out; llmc passes --from reads this file.\n"
_MAX_BYTES, _MAX_DEPTH = 1 << 28, 64
_FIX = "a file that --dump has written"


@dataclass(frozen=True)
class _Tensor:
    """A canonical tensor; exactly one of its three origins is not None."""

    dtype: str
    shape: tuple[int, ...]
    group: str
    copied: str | None = None
    quantized: Quantized | None = None
    computed: str | None = None


@dataclass(frozen=True)
class _Saved:
    """What ONNX text leaves out of a graph."""

    names: int
    nodes: Mapping[str, Mapping[str, str]]
    weights: Mapping[str, Any]
    tensors: Mapping[str, _Tensor]


def metadata_comments(graph: Graph) -> str:
    """What ONNX text leaves out of `graph`, as comments."""
    saved = {
        "names": graph.serial,
        "nodes": {str(node.name): dict(node.metadata_props) for node in graph.nodes},
        "weights": {name: to_json(expr) for name, expr in graph.weights.items()},
        "tensors": {name: _described(tensor) for name, tensor in graph.canonical.items()},
    }
    return "".join(f"# {line}\n" for line in _lines(saved))


def saved_text(text: str, at: Mapping[str, Any], rest: str) -> str:
    """The content of a graph file: ONNX text, its place in the pipeline, a digest, and `rest` (`metadata_comments`)."""
    return f"{text}{MARK}# {json.dumps({**at, 'digest': _digest(text, at, rest)})}\n{rest}"


def _digest(text: str, at: Mapping[str, Any], rest: str) -> str:
    return hashlib.sha256(f"{text}{MARK}{json.dumps(at, sort_keys=True)}\n{rest}".encode()).hexdigest()


def restore(path: Path) -> tuple[Graph, Mapping[str, Any], bool]:
    """The graph of a file, its place in the pipeline, and True if both are as they were saved.

    Raises:
        RecipeError: the file cannot be read, or is not one of `saved_text`.
    """
    what = str(path)
    with open_regular(path, error=RecipeError) as (fd, size):
        if size > _MAX_BYTES:
            raise RecipeError(f"expected a saved graph in {what}", found=f"{size} bytes", fix=_FIX)
        data = read_at(fd, 0, size, what=what, error=RecipeError)
    try:
        shown, mark, rest = data.decode().partition(MARK)
        if not mark:
            raise ValueError("no line that begins what ONNX text leaves out")
        at, _, rest = rest.partition("\n")
        lines = "".join(line.removeprefix("# ") for line in rest.splitlines())
        place, tables = (
            loads(one, what=what, error=EngineError, max_bytes=_MAX_BYTES) for one in (at.removeprefix("# "), lines)
        )
        digest = place.pop("digest", "") if isinstance(place, dict) else ""
        return _graph(shown, read(_Saved, tables, what)), place, digest == _digest(shown, place, rest)
    except Exception as error:  # of the parser, of onnx_ir or of ours: the file is not what it should be
        said = error.args[0] if error.args else ""  # the parser's is bytes
        reason = said.decode(errors="replace") if isinstance(said, bytes) else str(error)
        if isinstance(error, EngineError):
            reason = f"{error.asked}: {error.found}"
        raise RecipeError(f"expected a saved graph in {what}", found=reason.strip()[:300], fix=_FIX) from error


def _graph(text: str, saved: _Saved) -> Graph:
    _refuse_deep(text)
    model = onnx.ModelProto(ir_version=IR_VERSION, producer_name="llmc", graph=onnx.parser.parse_graph(text))
    model.opset_import.extend(onnx.helper.make_opsetid(domain, version) for domain, version in OPSETS.items())
    graph = Graph(ir.from_proto(model), serial=saved.names)
    for node in graph.nodes:
        labels = saved.nodes.get(node.name or "")
        if labels is None or not {BLOCK} <= labels.keys() <= {BLOCK, MODULE, ROLE}:
            raise ValueError(f"labels of node {node.name!r}: {labels}")
        node.metadata_props.update({name: str(label) for name, label in labels.items()})
    graph.weights = {name: from_json(expr) for name, expr in saved.weights.items()}
    graph.canonical = {name: _tensor(name, tensor) for name, tensor in saved.tensors.items()}
    verify(graph, {(node.domain, node.op_type) for node in graph.nodes})
    return graph


def _refuse_deep(text: str) -> None:
    """Refuse deep nesting: the parser of onnx recurses without a limit."""
    depth = 0
    for bracket in re.findall(r"[({<\[\])}>]", re.sub(r'"(?:[^"\\]|\\.)*"|=>', "", text)):
        depth += 1 if bracket in "({<[" else -1
        if depth > _MAX_DEPTH:
            raise ValueError(f"brackets more than {_MAX_DEPTH} deep")


def _described(tensor: Canonical) -> dict[str, Any]:
    origin = tensor.origin
    match origin:
        case Copied():
            made: dict[str, Any] = {"copied": origin.tensor}
        case Quantized():
            made = {"quantized": vars(origin)}
        case Computed():
            made = {"computed": origin.how}
    return {"dtype": tensor.dtype, "shape": tensor.shape, "group": tensor.group, **made}


def _tensor(name: str, saved: _Tensor) -> Canonical:
    if saved.dtype not in RAW_DTYPE or [saved.copied, saved.quantized, saved.computed].count(None) != 2:
        raise ValueError(f"dtype and origin of tensor {name!r}")
    if saved.copied is not None:
        origin = Copied(saved.copied)
    else:
        zeros = np.broadcast_to(np.zeros((), RAW_DTYPE[saved.dtype]), saved.shape)
        origin = saved.quantized or Computed(zeros, saved.computed or "")
    return Canonical(name, saved.dtype, saved.shape, origin, saved.group)


def _lines(value: Mapping[str, Any]) -> Iterator[str]:
    """A JSON object with one line per key of the first two levels."""
    yield "{"
    for index, (key, inner) in enumerate(value.items()):
        comma = "," if index < len(value) - 1 else ""
        if not isinstance(inner, Mapping) or not inner:
            yield f"{json.dumps(key)}: {json.dumps(inner)}{comma}"
            continue
        yield f"{json.dumps(key)}: {{"
        parts = [f" {json.dumps(name)}: {json.dumps(one)}" for name, one in inner.items()]
        yield from (f"{part}," for part in parts[:-1])
        yield parts[-1]
        yield "}" + comma
    yield "}"
