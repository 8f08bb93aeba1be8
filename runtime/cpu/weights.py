"""The weights of a cpu profile: judged, checked against free memory, and bound to the mapped file."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..dtypes import DTYPES
from ..engine_file.bind import Expr, evaluate_weight, from_json, is_view
from ..engine_file.file import EngineFile
from ..errors import EngineError, ResourceError
from ..machine import system_memory
from ..numbers import RAW_DTYPE

_AGAIN = "build the engine again"


def bindings(path: Path, weights: Mapping[str, Any]) -> dict[str, Expr]:
    """The profile's weight expressions, checked to have dtypes that ONNX Runtime accepts."""
    exprs = {name: from_json(data) for name, data in weights.items()}
    for name, expr in exprs.items():
        if not DTYPES[expr.dtype].onnx:
            raise EngineError(f"cannot bind weight {name!r} of {path}", found=expr.dtype, fix=_AGAIN)
    return exprs


def check_memory(
    engine: EngineFile, weights: Mapping[str, Expr], needs: Mapping[str, Any], neighbours: int = 1
) -> None:
    """Check, before allocating, that copied and packed weights fit into memory; the pool checks each request's part.

    So many `neighbours` load as much on this machine at the same time, this process included.
    """
    needed, free = private_bytes(engine, weights, needs) * neighbours, system_memory().available
    if needed > free:
        raise ResourceError(
            f"cannot load {engine.path} on this CPU: it needs {needed / 1e9:.1f} GB of memory",
            found=f"{free / 1e9:.1f} GB free",
            fix="an engine built with --quantize int8 or int4",
        )


def private_bytes(engine: EngineFile, weights: Mapping[str, Expr], needs: Mapping[str, Any]) -> int:
    """Bytes of copied and packed weights."""
    tensors = engine.tensors
    private = [expr for expr in weights.values() if not is_view(expr, tensors)]
    converted = sum(math.prod(expr.shape) * RAW_DTYPE[expr.dtype].itemsize for expr in private)
    packed = needs.get("packed_bytes", 0)
    if type(packed) is not int:
        found = repr(packed)[:80]
        raise EngineError(f"expected packed_bytes as a whole number in {engine.path}", found=found, fix=_AGAIN)
    return converted + packed


def weights_as_inputs(path: Path, weights: Mapping[str, Expr], needs: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of the weights that are graph inputs: ONNX Runtime reads them in place, but copies initializers."""
    names = needs.get("weights_as_inputs", [])
    if not isinstance(names, list) or any(name not in weights for name in names if isinstance(name, str)):
        found = repr(names)[:80]
        raise EngineError(f"expected weights_as_inputs as a list of weights in {path}", found=found, fix=_AGAIN)
    return tuple(dict.fromkeys(str(name) for name in names))


def weight_values(engine: EngineFile, weights: Mapping[str, Expr]) -> dict[str, Any]:
    """Every weight as an OrtValue; each keeps its buffer alive, which is ours or part of the mapped file."""
    from .ort import onnxruntime as ort

    return {
        name: ort.OrtValue.ortvalue_from_numpy_with_onnx_type(
            np.ascontiguousarray(evaluate_weight(expr, engine.tensor, initializer=name)), DTYPES[expr.dtype].onnx
        )
        for name, expr in weights.items()
    }
