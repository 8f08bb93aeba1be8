"""Sums over K of a tile of weight rows and tokens, for every weight format."""

# Triton's type stubs reject plain numbers as constexprs, and its loops.
# pyright: reportArgumentType=false, reportGeneralTypeIssues=false

from __future__ import annotations

import triton
import triton.language as tl

from ..dequantize import (
    decode,
    fragment_rows,
    natural_rows,
    permute_activations,
    scale_pairs,
    scale_words,
    unpacked_pairs,
)
from .common import dot


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
def load_scale_words(scale, row, first, K: tl.constexpr, PER_WORD: tl.constexpr, GROUP: tl.constexpr):
    """The stored scales of a whole chunk as words i32 [rows, 1 or 2]: copied asynchronously, as weights are."""
    WORDS: tl.constexpr = scale_words(GROUP, PER_WORD, scale.dtype.element_ty)
    word = first // (16 * PER_WORD) * WORDS + tl.arange(0, WORDS)
    return tl.load(scale.to(tl.pointer_type(tl.int32)) + row[:, None] * (K // (16 * PER_WORD) * WORDS) + word[None, :])


@triton.jit
def pairs_of_chunk(
    scale,
    row,
    first,
    K: tl.constexpr,
    FORMAT: tl.constexpr,
    PER_WORD: tl.constexpr,
    GROUP: tl.constexpr,
    EVEN: tl.constexpr,
    ACT: tl.constexpr,
    ROWS: tl.constexpr,
    EMULATE: tl.constexpr,
):
    """The factors of `decode` for each word of a chunk, i32 [ROWS, 16], where a group is less than a chunk."""
    if EVEN and K % (16 * PER_WORD) == 0:
        words = load_scale_words(scale, row, first, K, PER_WORD, GROUP)
        pairs = unpacked_pairs(words, FORMAT, PER_WORD, GROUP, scale.dtype.element_ty, ACT, ROWS, EMULATE)
    else:
        pairs = scale_pairs(load_scales(scale, row, first, K, PER_WORD, GROUP, EVEN), FORMAT, ACT)
    return pairs


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
    ORDERED: tl.constexpr,
    EVEN: tl.constexpr,
    WARPS: tl.constexpr,
    EMULATE: tl.constexpr,
):
    """acc [BLOCK_N, BLOCK_M], rows ordered as by `fragment_rows`, plus a chunk's words [BLOCK_N, 16] times its tile."""
    ACT: tl.constexpr = tile.dtype
    tile = tl.trans(tile if ORDERED else permute_activations(tile, BLOCK_M, PER_WORD))
    if GROUP == 0:
        acc = dot(decode(words, words, FORMAT, False, ACT, BLOCK_N, WARPS, EMULATE), tile, acc, EMULATE)
    elif GROUP < 16 * PER_WORD:
        pairs = pairs_of_chunk(scale, row, first, K, FORMAT, PER_WORD, GROUP, EVEN, ACT, BLOCK_N, EMULATE)
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
    ORDERED: tl.constexpr,
    EVEN: tl.constexpr,
    WARPS: tl.constexpr,
    STAGES: tl.constexpr,
    EMULATE: tl.constexpr,
):
    """Weight rows `row` i64 [BLOCK_N] times tokens `token` i64 [BLOCK_M], columns start:stop -> f32 [BLOCK_N, BLOCK_M].

    The sum still lacks `epilogue_factor` and the scales of rows and tensors. BLOCK_K is a multiple of the chunk,
    start < stop, and start is a multiple of BLOCK_K; with EVEN stop is too. row and token are inside their tensors.
    With ORDERED the columns of x lie in the order of `stored_column`.
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
                *(acc, words, tile, scale, row, k, K, FORMAT, PER_WORD, GROUP),
                *(BLOCK_N, BLOCK_M, ORDERED, EVEN, WARPS, EMULATE),
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
                    *(acc, words, tile, scale, row, at, K, FORMAT, PER_WORD, GROUP),
                    *(BLOCK_N, BLOCK_M, ORDERED, EVEN, WARPS, EMULATE),
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
