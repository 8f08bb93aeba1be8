"""Shared by the linears: sums over K for every weight format, the epilogue, the sum over parts of K."""

# Triton's type stubs reject plain numbers as constexprs, and its loops.
# pyright: reportArgumentType=false, reportGeneralTypeIssues=false

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import triton
import triton.language as tl

from ...call import Argument, Constant, Kernel, KernelCall, Operand, product, total
from .dequantize import (
    GROUP,
    PER_WORD,
    decode,
    epilogue_factor,
    fragment_rows,
    natural_rows,
    permute_activations,
    scale_pairs,
)
from .tiles import Tile, default_tile


@triton.jit
def dot(a, b, acc, EMULATE: tl.constexpr):
    """acc + a @ b in f32; the operands are cast for the interpreter, which has no bf16 arithmetic."""
    if EMULATE:
        acc += tl.dot(a.to(tl.float32), b.to(tl.float32), input_precision="ieee")
    else:
        acc = tl.dot(a, b, acc)
    return acc


@triton.jit
def load_words(w, rows, first, K: tl.constexpr, PER_WORD: tl.constexpr, EVEN: tl.constexpr):
    """16 words of each of `rows` (i64) of packed weights u8 [N, K * 4 / PER_WORD], from weight `first` of the row on.

    Words past the row's end are 0. If a row is not a whole number of words, its words are assembled from bytes.
    """
    word = first // PER_WORD + tl.arange(0, 16)
    if K % PER_WORD == 0:
        address = w.to(tl.pointer_type(tl.int32)) + rows[:, None] * (K // PER_WORD) + word[None, :]
        words = tl.load(address) if EVEN else tl.load(address, word[None, :] < K // PER_WORD, 0)
    else:
        tl.static_assert(PER_WORD == 4)
        words = tl.zeros([rows.shape[0], 16], tl.int32)
        for byte in tl.static_range(4):
            column = word[None, :] * 4 + byte
            words |= tl.load(w + rows[:, None] * K + column, column < K, 0).to(tl.int32) << (8 * byte)
    return words


@triton.jit
def load_activations(x, token, first, K: tl.constexpr, COLUMNS: tl.constexpr, EVEN: tl.constexpr):
    """Rows `token` (i64) of x [tokens, K], COLUMNS columns from `first` on; 0 past the row's end."""
    column = first + tl.arange(0, COLUMNS)
    address = x + token[:, None] * K + column[None, :]
    return tl.load(address) if EVEN else tl.load(address, column[None, :] < K, 0.0)


@triton.jit
def load_scales(scale, row, first, K: tl.constexpr, PER_WORD: tl.constexpr, GROUP: tl.constexpr, EVEN: tl.constexpr):
    """The stored scales of a chunk: one per word [rows, 16], or one per row [rows] if a group is a chunk or more.

    There is a pointer per word so that each thread loads the scales it needs; the compiler merges equal loads. 8-bit
    scales are read two at a time: this halves the loads, and a load of bytes would make the compiler lay out fragments
    of mma.sync for 8-bit operands.
    """
    local = tl.arange(0, 16) * PER_WORD // GROUP
    if GROUP >= 16 * PER_WORD:
        raw = tl.load(scale + row * (K // GROUP) + tl.minimum(first // GROUP, K // GROUP - 1))
    elif scale.dtype.element_ty == tl.uint8 and K % (2 * GROUP) == 0:
        ROW: tl.constexpr = K // (2 * GROUP)
        index = first // (2 * GROUP) + local // 2
        if not EVEN:
            index = tl.minimum(index, ROW - 1)
        both = tl.load(scale.to(tl.pointer_type(tl.int16)) + row[:, None] * ROW + index[None, :]).to(tl.int32)
        raw = (both >> (local % 2 * 8)[None, :]) & 0xFF
    else:
        group = first // GROUP + local
        if not EVEN:
            group = tl.minimum(group, K // GROUP - 1)
        raw = tl.load(scale + row[:, None] * (K // GROUP) + group[None, :])
    return raw


@triton.jit
def add_chunk(
    acc,
    words,
    tile,
    scale,
    row,
    first,
    K: tl.constexpr,
    FORMAT: tl.constexpr,
    PER_WORD: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    EVEN: tl.constexpr,
    WARPS: tl.constexpr,
    EMULATE: tl.constexpr,
):
    """acc [BLOCK_N, BLOCK_M], rows ordered as by `fragment_rows`, plus a chunk's words [BLOCK_N, 16] times its tile."""
    ACT: tl.constexpr = tile.dtype
    tile = tl.trans(permute_activations(tile, BLOCK_M, PER_WORD))
    if GROUP == 0:
        acc = dot(decode(words, words, FORMAT, False, ACT, BLOCK_N, WARPS, EMULATE), tile, acc, EMULATE)
    elif GROUP < 16 * PER_WORD:
        pairs = scale_pairs(load_scales(scale, row, first, K, PER_WORD, GROUP, EVEN), FORMAT, ACT)
        acc = dot(decode(words, pairs, FORMAT, True, ACT, BLOCK_N, WARPS, EMULATE), tile, acc, EMULATE)
    else:
        factor = load_scales(scale, row, first, K, PER_WORD, GROUP, EVEN).to(tl.float32)
        factor = fragment_rows(factor[:, None], BLOCK_N, WARPS, 1)
        part = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
        acc += dot(decode(words, words, FORMAT, False, ACT, BLOCK_N, WARPS, EMULATE), tile, part, EMULATE) * factor
    return acc


@triton.jit
def quantized_sum(
    x,
    w,
    scale,
    row,
    token,
    start,
    stop,
    K: tl.constexpr,
    FORMAT: tl.constexpr,
    PER_WORD: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    EVEN: tl.constexpr,
    WARPS: tl.constexpr,
    STAGES: tl.constexpr,
    EMULATE: tl.constexpr,
):
    """Weight rows `row` i64 [BLOCK_N] times tokens `token` i64 [BLOCK_M], columns start:stop -> f32 [BLOCK_N, BLOCK_M].

    The sum still lacks `epilogue_factor` and the scales of rows and tensors. BLOCK_K is a multiple of the chunk,
    start < stop, and start is a multiple of BLOCK_K; with EVEN stop is too. row and token are inside their tensors.
    With STAGES 1 the next chunk is read into registers while this one is decoded; with more, chunks wait in shared
    memory, which costs about a fifth more instructions and keeps more bytes in flight.
    """
    CHUNK: tl.constexpr = 16 * PER_WORD
    acc = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    if STAGES == 1:
        last = start + (stop - 1 - start) // CHUNK * CHUNK
        words = load_words(w, row, start, K, PER_WORD, EVEN)
        tile = load_activations(x, token, start, K, CHUNK, EVEN)
        for k in tl.range(start, stop, CHUNK, num_stages=1):
            following = tl.minimum(k + CHUNK, last)
            next_words = load_words(w, row, following, K, PER_WORD, EVEN)
            next_tile = load_activations(x, token, following, K, CHUNK, EVEN)
            acc = add_chunk(
                acc, words, tile, scale, row, k, K, FORMAT, PER_WORD, GROUP, BLOCK_N, BLOCK_M, EVEN, WARPS, EMULATE
            )
            words = next_words
            tile = next_tile
    else:
        for k in tl.range(start, stop, BLOCK_K, num_stages=STAGES):
            for c in tl.static_range(BLOCK_K // CHUNK):
                at = k + c * CHUNK
                words = load_words(w, row, at, K, PER_WORD, EVEN)
                tile = load_activations(x, token, at, K, CHUNK, EVEN)
                acc = add_chunk(
                    acc, words, tile, scale, row, at, K, FORMAT, PER_WORD, GROUP, BLOCK_N, BLOCK_M, EVEN, WARPS, EMULATE
                )
    return natural_rows(acc, BLOCK_N, WARPS, BLOCK_M)


@triton.jit
def dense_sum(
    x,
    w,
    row,
    token,
    start,
    stop,
    K: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    EVEN: tl.constexpr,
    STAGES: tl.constexpr,
    EMULATE: tl.constexpr,
):
    """`quantized_sum` for weights bf16, f16 or f32 [N, K]; f32 weights are multiplied as TF32."""
    ACT: tl.constexpr = x.dtype.element_ty
    acc = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    for k in tl.range(start, stop, BLOCK_K, num_stages=STAGES):
        column = k + tl.arange(0, BLOCK_K)
        if EVEN:
            weights = tl.load(w + row[:, None] * K + column[None, :])
            tile = tl.load(x + token[None, :] * K + column[:, None])
        else:
            weights = tl.load(w + row[:, None] * K + column[None, :], column[None, :] < K, 0.0)
            tile = tl.load(x + token[None, :] * K + column[:, None], column[:, None] < K, 0.0)
        if weights.dtype == tl.float32:
            acc = dot(weights, tile.to(tl.float32), acc, EMULATE)
        else:
            acc = dot(weights.to(ACT), tile, acc, EMULATE)
    return acc


@triton.jit
def scale_sum(acc, scale, tensor_scale, row, FORMAT: tl.constexpr, FACTOR: tl.constexpr):
    """Multiply a `quantized_sum` by FACTOR and by the scales of rows or of the tensor."""
    if FORMAT == "fp8":
        acc *= (tl.load(scale + row) * FACTOR)[:, None]
    elif FORMAT == "nvfp4":
        acc *= tl.load(tensor_scale) * FACTOR
    elif FACTOR != 1.0:
        acc *= FACTOR
    return acc


@triton.jit
def add_bias(acc, row, bias, N: tl.constexpr):
    """The sum [rows, tokens] plus bias [N] if there is one."""
    if bias is not None:
        acc += tl.load(bias + row, row < N, 0.0).to(tl.float32)[:, None]
    return acc


@triton.jit
def finish(acc, row, token, inside, bias, residual, y, N: tl.constexpr):
    """Add bias [N] and residual [tokens, N] to the sum [rows, tokens], and store into y [tokens, N] where `inside`."""
    address = token[None, :].to(tl.int64) * N + row[:, None]
    acc = add_bias(acc, row, bias, N)
    if residual is not None:
        acc += tl.load(residual + address, inside, 0.0).to(tl.float32)
    tl.store(y + address, acc.to(y.dtype.element_ty), inside)


@triton.jit
def comes_last(counter, PARTS: tl.constexpr):
    """Ticket counter (acquire-release): True in the last of PARTS programs, when all partial sums are visible.

    counter i32 is 0 between launches.
    """
    tl.debug_barrier()
    last = tl.atomic_add(counter, 1, sem="acq_rel", scope="gpu") == PARTS - 1
    if last:
        tl.store(counter, 0)
    return last


@triton.jit
def gather_parts(
    acc, row, token, inside, workspace, counters, block, part, tokens, N: tl.constexpr, SPLITS: tl.constexpr
):
    """Store this part's sum in workspace f32 [SPLITS, tokens, N]; the last program gets (sum of all parts, True).

    counters i32 [blocks] are 0 between launches.
    """
    address = token[None, :].to(tl.int64) * N + row[:, None]
    size = tokens.to(tl.int64) * N
    tl.store(workspace + part * size + address, acc, inside)
    last = comes_last(counters + block, SPLITS)
    if last:
        acc = tl.zeros_like(acc)
        for other in range(SPLITS):
            acc += tl.load(workspace + other * size + address, inside, 0.0, cache_modifier=".cg")
    return acc, last


def rows_of(y: Operand, activation: str | None) -> int:
    """N of the weight behind y [tokens, N], or [tokens, N / 2] with an activation: rows of gate and of up."""
    n = y.shape[-1]
    assert isinstance(n, int)
    return 2 * n if activation else n


def tile_for(kind: str, weights: tuple[Operand, ...], n: int, k: int, format: str, max_tokens: int, sm: int) -> Tile:
    """The tile of a linear without a measured one: `default_tile`, smaller for 32-bit weights."""
    tile = default_tile(kind, n, k, format, max_tokens, sm)
    if weights[0].dtype != "f32":
        return tile
    return replace(tile, block_k=tile.block_k // 2, block_m=128 if kind == "large" else tile.block_m)


def named(weights: tuple[Operand, ...]) -> dict[str, Operand | None]:
    """The tensors of a format by parameter; None if it has no such tensor."""
    return dict(zip(("w", "scale", "tensor_scale"), (*weights, None, None), strict=False))


def constants_of(x: Operand, format: str, n: int, activation: str | None = None) -> dict[str, Constant]:
    """The constants of a linear [n, K] that follow from the weight format and the activation."""
    return {
        "N": n,
        "K": x.shape[-1],
        "FORMAT": format,
        "PER_WORD": PER_WORD.get(format, 0),
        "GROUP": GROUP.get(format, 0),
        "FACTOR": epilogue_factor(format, x.dtype),
        "ACTIVATION": activation,
    }


def linear_call(
    kernel: Kernel,
    tile: Tile,
    operands: Mapping[str, Operand | None],
    constants: Mapping[str, Constant],
    grid: tuple[int | str, ...],
    *,
    tokens: int | str,
    bytes: str | None = None,
    operations: str | None = None,
) -> KernelCall:
    """The call of a linear [N, K]: `constants`, with the fields of the tile that the kernel takes.

    operands: by parameter, None for absent ones; workspace and counters are dropped if the tile has one part of K.
    bytes and operations default to every other operand once, and a product for every token.

    Raises:
        ValueError: parts of K without a workspace and counters, or a residual with an activation.
    """
    if constants.get("ACTIVATION") and operands.get("residual"):
        raise ValueError("a residual is added to what an activation was applied to")
    room, split = ("workspace", "counters"), tile.splits > 1
    if split and None in map(operands.get, room):
        raise ValueError(f"{kernel.name}: {tile.splits} parts of K need a workspace and counters")
    given = {name: one for name, one in operands.items() if one is not None and (split or name not in room)}
    n, k = constants["N"], constants["K"]
    assert isinstance(n, int) and isinstance(k, int)
    fixed = {
        **dict.fromkeys(operands),
        **constants,
        "BLOCK_N": tile.block_n,
        "BLOCK_M": tile.block_m,
        "BLOCK_K": tile.block_k,
        "SPLITS": tile.splits,
        "SPAN": tile.span(k),
        "WARPS": tile.warps,
        "STAGES": tile.stages,
    }
    sized: dict[str, Argument] = {"tokens": str(tokens)} if "tokens" in kernel.parameters else {}
    return KernelCall(
        kernel,
        {**given, **sized},
        {name: fixed[name] for name in kernel.parameters if name in fixed and name not in given},
        grid,
        writes=("y", *room) if split else ("y",),
        bytes=bytes or total(*(one.bytes for name, one in given.items() if name not in room)),
        operations=operations or product(tokens, 2 * n * k),
        warps=tile.warps,
        stages=tile.stages,
    )
