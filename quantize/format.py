"""A weight format as a value: its stored tensors, quantize, dequantize, and the ONNX text that defines it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch

from ..runtime.engine_file.bind import Stored
from ..runtime.errors import CheckpointError, Unsupported
from ..runtime.numbers import RAW_DTYPE
from .chunks import each_chunk, result

SMALLEST_SCALE = 2.0**-100
"""The smallest magnitude of a stored scale. So no scale is zero, products of scales are normal float32 numbers, and a
block of zeros needs no special case; weights of about this size and below are stored as zero."""


@dataclass(frozen=True)
class Layout:
    """The type and shape of one stored tensor of a weight [N, K]."""

    suffix: str
    dtype: str
    axes: str
    """The axes that it follows: "nk", "n", or "" (one number for the whole weight)."""
    step: int = 1
    """Weights along K per stored element."""

    def shape(self, n: int, k: int) -> tuple[int, ...]:
        return {"nk": (n, k // self.step), "n": (n,), "": ()}[self.axes]


UNPACK_PAIRS = """
four = Constant <value = uint8 {4}> ()
fifteen = Constant <value = uint8 {15}> ()
last_axis = Constant <value = int64[1] {-1}> ()
rows_by_rest = Constant <value = int64[2] {0, -1}> ()
low = BitwiseAnd (weight, fifteen)
high = BitShift <direction = "RIGHT"> (weight, four)
low_column = Unsqueeze (low, last_axis)
high_column = Unsqueeze (high, last_axis)
pairs = Concat <axis = -1> (low_column, high_column)
codes = Reshape (pairs, rows_by_rest)
"""
"""ONNX text: `weight` u8 [N, K/2], two codes a byte, low nibble first -> `codes` u8 [N, K]."""


def scaled_blocks(block: int, scale: str) -> str:
    """ONNX text: `numbers` f32 [N, K] times the scales of this name, f32 [N, K/block] -> `dense` f32 [N, K]."""
    return f"""
by_block = Constant <value = int64[3] {{0, -1, {block}}}> ()
blocks = Reshape (numbers, by_block)
scale_column = Unsqueeze ({scale}, last_axis)
scaled = Mul (blocks, scale_column)
dense = Reshape (scaled, rows_by_rest)
"""


Parts = Mapping[str, np.ndarray]
"""Raw arrays (numbers.RAW_DTYPE) by suffix, of a whole weight or of some of its rows."""


@dataclass(frozen=True)
class Format:
    """A way to store a weight [N, K] in few bits."""

    name: str
    summary: str
    block: int | None
    """Weights along K that share one scale; None if a whole row does."""
    layouts: tuple[Layout, ...]
    """The stored tensors, codes first."""
    error_bound: float
    """Bound of |w - dequantized| / max|w| over a block, or over a row if `block` is None."""
    body: str
    """Lines of an ONNX function (opset 24) that compute `dense` f32 [N, K] from inputs named by the suffixes. Codes,
    E4M3 and E8M0 are given as u8 bits, BF16 scales as f32."""
    encode: Callable[[torch.Tensor, float], dict[str, np.ndarray]]
    """The raw arrays of rows of a weight, given the largest magnitude of its merge group (see `quantize`)."""
    decode: Callable[[Parts], np.ndarray]
    """The inverse of `encode`, up to the rounding."""
    shares_scale: bool = False
    """True if the tensor has one global scale; linears that may be merged then share it."""

    def components(self, n: int, k: int) -> tuple[Stored, ...]:
        """The stored tensors of a weight [n, k], named by their suffixes."""
        return tuple(Stored(part.suffix, part.dtype, part.shape(n, k)) for part in self.layouts)

    def bits_per_weight(self, n: int, k: int) -> float:
        """Stored bits, scales included, per weight of an [n, k] weight."""
        parts = self.components(n, k)
        return sum(8 * RAW_DTYPE[part.dtype].itemsize * int(np.prod(part.shape)) for part in parts) / (n * k)

    def check(self, n: int, k: int) -> str:
        """Why a weight [n, k] cannot have this format, or ""."""
        if n < 1 or k < 1:
            return f"a weight [{n}, {k}] is empty"
        if self.block and k % self.block:
            return f"K = {k} is not a multiple of the block of {self.block}"
        return ""

    def quantize(self, w: torch.Tensor, amax: float | None = None) -> dict[str, np.ndarray]:
        """Raw arrays of the rows `w`, bf16, fp16 or f32 [rows, K], which may be any rows of the weight.

        For a format that `shares_scale`, `amax` is the largest magnitude of the whole merge group (default: of `w`).
        The bytes of a row depend on this row and on `amax` alone.

        Raises:
            Unsupported: the format cannot store this shape or type.
            CheckpointError: a weight is NaN or infinite.
        """
        if w.ndim != 2 or w.dtype not in bit_types():
            found = f"{w.dtype} {list(w.shape)}"
            raise Unsupported(f"cannot quantize to {self.name}", found=found, fix="a bf16, fp16 or fp32 weight [N, K]")
        if reason := self.check(*w.shape):
            raise Unsupported(
                f"cannot quantize to {self.name}", found=reason, fix="another format for this weight, or none"
            )
        if amax is None:
            amax = require_finite(w, "weight") if self.shares_scale else 0.0
        return self.encode(w.detach().contiguous(), amax)

    def dequantize(self, parts: Parts) -> np.ndarray:
        """The weights f32 [rows, K] of raw arrays, which may hold any rows of the tensor."""
        return self.decode(parts)

    def slice(self, parts: Parts, axis: int, start: int, stop: int) -> dict[str, np.ndarray]:
        """The parts of the weight's rows (axis 0) or columns (axis 1) start:stop, as views.

        Raises:
            Unsupported: the slice is out of range or would split a block.
        """
        first = self.layouts[0]
        length = parts[first.suffix].shape[axis] * (first.step if axis else 1)
        unit = (self.block or 1) if axis else 1
        if not 0 <= start <= stop <= length or start % unit or stop % unit:
            asked = f"cannot slice {'columns' if axis else 'rows'} {start}:{stop} of a {self.name} weight"
            raise Unsupported(asked, found=f"{length} in units of {unit}", fix=f"multiples of {unit} up to {length}")
        cut = {}
        for part in self.layouts:
            raw = parts[part.suffix]
            if axis == 0 and "n" in part.axes:
                raw = raw[start:stop]
            elif axis == 1 and "k" in part.axes:
                raw = raw[:, start // part.step : stop // part.step]
            cut[part.suffix] = raw
        return cut


@cache
def bit_types() -> dict[torch.dtype, torch.dtype]:
    """The integer type with the bits of each weight type. A function, because kernels are compiled without torch."""
    return {torch.bfloat16: torch.int16, torch.float16: torch.int16, torch.float32: torch.int32}


def non_finite(name: str) -> CheckpointError:
    """The error for a weight that holds NaN or infinity."""
    return CheckpointError(
        f"expected finite numbers in {name}", found="NaN or infinity", fix="a checkpoint whose weights are all finite"
    )


def require_finite(w: torch.Tensor, name: str) -> float:
    """The largest magnitude of `w` (any shape; bf16, fp16, fp32).

    Raises:
        CheckpointError: `w` holds NaN or infinity; the message says `name`.
    """
    flat = w.detach().contiguous().view(-1, 1)
    found = [0.0]

    def worker(slices: Iterator[slice], most: int) -> None:
        bits = torch.empty(1, most, dtype=bit_types()[flat.dtype])
        for part in slices:
            x = flat[part].view(1, -1)
            found.append(float(largest(x, bits[:, : x.numel()], name)))

    each_chunk(len(flat), 1, worker)
    return max(found)


def largest(x: torch.Tensor, bits: torch.Tensor, name: str = "weight") -> torch.Tensor:
    """The largest magnitude f32 [m] of each row of x [m, width]; `bits` [m, width], of a `bit_types` type, becomes |x|.

    Compares the bits as integers: they have the order of the magnitudes, with infinity and NaN on top, and an integer
    maximum is several times faster than one of bf16.

    Raises:
        CheckpointError: `x` holds NaN or infinity; the message says `name`.
    """
    torch.bitwise_and(x.view(bits.dtype), torch.iinfo(bits.dtype).max, out=bits)
    amax = bits.amax(1).view(x.dtype).float()
    if not float(amax.amax()) < float("inf"):
        raise non_finite(name)
    return amax


def pack_pairs(codes: torch.Tensor, scratch: torch.Tensor, out: torch.Tensor) -> None:
    """Two 4-bit codes a byte, the even one in the low nibble: i8 [2*m] -> u8 [m]; `scratch` is i16 [m]."""
    pairs = codes.view(torch.int16)
    torch.bitwise_right_shift(pairs, 4, out=scratch).bitwise_or_(pairs)
    out.copy_(scratch)


def nibble_pairs(values: np.ndarray) -> np.ndarray:
    """A table of each byte's two values out of 16: f64 [256], of which each entry holds two f32, low nibble first."""
    byte = np.arange(256)
    return np.stack([values[byte & 15], values[byte >> 4]], 1).astype(np.float32).view(np.float64)[:, 0]


def decode_blocks(codes: np.ndarray, scales: np.ndarray, table: np.ndarray) -> np.ndarray:
    """table[codes] * scales: codes u8 [rows, K/step], scales f32 [rows, K/block] -> f32 [rows, K].

    `table` is f32 [256] for one code a byte, or f64 [256] for two (see `nibble_pairs`).
    """
    per_byte = table.itemsize // 4
    entries = torch.from_numpy(table)
    array, dense = result((codes.shape[0], codes.shape[1] * per_byte), np.float32)
    flat_codes = np.ascontiguousarray(codes).reshape(-1)
    flat_scales = torch.tensor(scales.reshape(-1))  # a copy, for torch warns about arrays it may not write
    block = dense.numel() // len(flat_scales)
    blocks = dense.view(-1, block)

    def worker(slices: Iterator[slice], most: int) -> None:
        index = torch.empty(most * block // per_byte, dtype=torch.int32)
        for part in slices:
            out = blocks[part]
            used = index[: out.numel() // per_byte]
            np.copyto(used.numpy(), flat_codes[part.start * block // per_byte : part.stop * block // per_byte])
            torch.index_select(entries, 0, used, out=out.view(-1).view(entries.dtype))
            out.mul_(flat_scales[part].view(-1, 1))

    each_chunk(len(blocks), block, worker)
    return array
