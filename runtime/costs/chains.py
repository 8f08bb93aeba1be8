"""Small ONNX graphs that resemble what is priced: chains of one kernel, whose weights are too many for a cache."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..cpu.ort import onnxruntime as ort
from .onnx_bytes import F32, I32, U8, Op, Typed, model

_KINDS = {np.dtype(np.float32): F32, np.dtype(np.uint8): U8, np.dtype(np.int32): I32}
_MS = "com.microsoft"
_FILE = "weights"
HEADS, KV_HEADS, HEAD_DIM = 32, 8, 64
"""Of the attention that is measured: that of Llama-3.2-1B."""
_EPSILON = 1e-5


@dataclass(frozen=True)
class Chain:
    """A session of equal nodes one after the other; `count` of them, with `weights` weights in all."""

    session: Any
    width: int
    """Of the input x ``f32 [1, S, width]``."""
    made: int
    """Of the result y ``f32 [1, S, made]``."""
    count: int
    weights: int = 0
    held: Sequence[Any] = field(default=(), repr=False)
    """Arrays that the session reads in place."""
    inputs: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """Weights that are inputs."""

    def call(self, rows: int, caches: Mapping[str, np.ndarray] | None = None) -> Any:
        """Bound to buffers of its own: returns a function without arguments that runs once."""
        x = np.random.default_rng(0).standard_normal((1, rows, self.width), np.float32)
        y = np.empty((1, rows, self.made), np.float32)
        binding = self.session.io_binding()
        given = {"x": x, **(caches or {})}
        for value in self.session.get_inputs():
            if value.name in self.inputs:
                binding.bind_ortvalue_input(value.name, self.inputs[value.name])
            else:
                _bind(binding.bind_input, value.name, given[value.name])
        made = {"y": y, **{f"new.{name}": array for name, array in given.items()}}
        for value in self.session.get_outputs():
            _bind(binding.bind_output, value.name, made[value.name])
        kept = (x, y, caches)
        return lambda: (kept, self.session.run_with_iobinding(binding))


def products(bits: int, block: int, rows: int, columns: int, count: int, threads: int) -> Chain:
    """Products that go to `rows` numbers and back to `columns`, in pairs; block 0: float32 weights."""
    shapes = [(rows, columns), (columns, rows)] * (count // 2)
    ops, arrays, name = [], {}, "x"
    for at, (n, k) in enumerate(shapes):
        made = "y" if at == count - 1 else f"x{at}"
        if block:
            arrays |= {f"w{at}": _codes((n, k // block, block * bits // 8)), f"s{at}": _scales(n, k, block, bits)}
            layout = {"N": n, "K": k, "bits": bits, "block_size": block, "accuracy_level": 4}
            ops.append(Op(_MS, "MatMulNBits", [name, f"w{at}", f"s{at}"], [made], layout))
        else:
            arrays[f"w{at}"] = _dense(n, k)
            ops.append(Op(_MS, "FusedMatMul", [name, f"w{at}"], [made], {"transA": 0, "transB": 1}))
        name = made
    weights = rows * columns * count
    return _chain(ops, columns, count, threads, arrays, weights=weights, as_inputs=not block)


def elements(kind: str, width: int, count: int, threads: int) -> Chain:
    """Nodes without weights: kind "norm", "activation" or "other", as `nodes.Elements` has them."""
    ops, name = [], "x"
    for at in range(count):
        made = "y" if at == count - 1 else f"x{at}"
        ops.append(
            {
                "norm": Op(_MS, "SkipSimplifiedLayerNormalization", [name, "x", "g"], [made], {"epsilon": _EPSILON}),
                "activation": Op(_MS, "QuickGelu", [name], [made], {"alpha": 1.0}),
                "other": Op("", "Mul", [name, "x"], [made]),
            }[kind]
        )
        name = made
    return _chain(ops, width, count, threads, {"g": np.ones(width, np.float32)} if kind == "norm" else {})


def attention(capacity: int, count: int, threads: int) -> tuple[Chain, dict[str, np.ndarray]]:
    """Attention of `count` layers, each with a cache of `capacity` positions of its own, and the caches with lengths.

    The lengths `before` and `total` ``i32`` say how many positions are full: they are written before a call.
    """
    packed = (HEADS + 2 * KV_HEADS) * HEAD_DIM
    cache: Sequence[int | str] = (1, KV_HEADS, capacity, HEAD_DIM)
    angles = np.outer(np.arange(capacity), np.ones(HEAD_DIM // 2)).astype(np.float32)
    arrays = {"cos": np.cos(angles), "sin": np.sin(angles)}
    caches = {name: np.zeros(cache, np.float32) for at in range(count) for name in (f"k{at}", f"v{at}")}
    attributes = {"num_heads": HEADS, "kv_num_heads": KV_HEADS, "scale": HEAD_DIM**-0.5, "do_rotary": 1}
    ops = []
    for at in range(count):
        given = ["x", "", "", f"k{at}", f"v{at}", "before", "total", "cos", "sin"]
        made = "y" if at == count - 1 else f"x{at}"
        ops.append(Op(_MS, "GroupQueryAttention", given, [made, f"new.k{at}", f"new.v{at}"], attributes))
    sizes = [Typed("before", I32, [1]), Typed("total", I32, [])]
    inputs = [Typed("x", F32, [1, "S", packed]), *sizes, *(Typed(name, F32, cache) for name in caches)]
    inputs += [Typed(name, F32, array.shape) for name, array in arrays.items()]
    outputs = [Typed("y", F32, [1, "S", HEADS * HEAD_DIM]), *(Typed(f"new.{name}", F32, cache) for name in caches)]
    session = _session(model(ops, inputs, outputs), {}, threads)
    lengths = {"before": np.zeros(1, np.int32), "total": np.zeros((), np.int32)}
    return Chain(session, packed, HEADS * HEAD_DIM, count), caches | arrays | lengths


def _chain(
    ops: Sequence[Op],
    width: int,
    count: int,
    threads: int,
    arrays: Mapping[str, np.ndarray],
    *,
    weights: int = 0,
    as_inputs: bool = False,
) -> Chain:
    typed = [Typed(name, _KINDS[array.dtype], array.shape) for name, array in arrays.items()]
    values = {name: ort.OrtValue.ortvalue_from_numpy(array) for name, array in arrays.items()}
    shape = [1, "S", width]
    inputs = [Typed("x", F32, shape), *(typed if as_inputs else [])]
    data = model(ops, inputs, [Typed("y", F32, shape)], [] if as_inputs else typed, _FILE)
    session = _session(data, {} if as_inputs else values, threads)
    return Chain(session, width, width, count, weights, list(arrays.values()), values if as_inputs else {})


def _session(data: bytes, constants: Mapping[str, Any], threads: int) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    options.add_external_initializers(list(constants), list(constants.values()))
    return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def _codes(shape: tuple[int, ...]) -> np.ndarray:
    return np.resize(np.random.default_rng(0).integers(0, 256, 1 << 16, np.uint8), shape)


def _scales(n: int, k: int, block: int, bits: int) -> np.ndarray:
    return np.full((n, k // block), 2.0 ** -(bits + 3), np.float32)


def _dense(n: int, k: int) -> np.ndarray:
    block = np.random.default_rng(0).standard_normal(1 << 16, np.float32) * np.float32(0.02)
    return np.resize(block, (n, k))


def _bind(bind: Any, name: str, array: np.ndarray) -> None:
    bind(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
