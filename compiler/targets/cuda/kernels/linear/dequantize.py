"""Decodes quantized weights in registers, with one to two instructions per weight, into tensor-core fragments.

A thread of an `mma` fragment of a 16-bit A operand [rows, 16] holds columns 2t, 2t+1, 2t+8 and 2t+9 (t = lane % 4),
which are not neighbours. A product does not depend on the order of K, so the kernels permute K: a thread reads 16
consecutive bytes of a weight row, and treats the decoded weights as its own columns. The activations go through
registers into shared memory anyway and are put in the same order there (`permute_activations`), so no weight moves
between threads. Rows are relabelled for the same reason (`fragment_rows`, undone by `natural_rows`).

A 32-bit word holds P = 4 or 8 weights, and one register holds the pair of weights r and r + P/2 (`../assembly.py`).
Scales of groups smaller than a chunk are multiplied in as pairs.
"""

# Triton's type stubs reject plain numbers as constexprs, and its loops.
# pyright: reportArgumentType=false, reportGeneralTypeIssues=false, reportAssignmentType=false

from __future__ import annotations

import triton
import triton.language as tl

from ......quantize import FORMATS
from ..assembly import CODES, FACTOR, PTX

PER_WORD = {name: 4 * one.layouts[0].step for name, one in FORMATS.items()}
"""Weights in 32 bits, by format."""
GROUP = {name: one.block or 0 for name, one in FORMATS.items()}
"""Weights along K that share a scale; 0: a scale per row."""


def chunk(format: str) -> int:
    """Columns of K that four threads read as 16 bytes each; activations are permuted inside a chunk."""
    return 16 * PER_WORD[format]


def epilogue_factor(format: str, act: str) -> float:
    """The factor that the sum over K still lacks, apart from scales of rows and tensors."""
    return FACTOR.get((format, act), 1.0)


@triton.constexpr_function
def _assembly(format, act, scaled):
    return PTX[format, "bf16" if act == tl.bfloat16 else "f16", scaled][0]


@triton.constexpr_function
def _constraints(format, scaled):
    return PTX[format, "f16", scaled][1]


@triton.constexpr_function
def _two_nvfp4():
    return _TWO_NVFP4


@triton.constexpr_function
def _codes(format):
    return CODES[format]


@triton.constexpr_function
def _is_bf16(act):
    return act == tl.bfloat16


@triton.jit
def e4m3(bits):
    """E4M3 bits (u8 or wider) of a weight as f32. NaN is not handled: a build refuses weights that are not finite."""
    wide = bits.to(tl.int32)
    half = (((wide & 0x80) << 8) | ((wide & 0x7F) << 7)).to(tl.int16).to(tl.float16, bitcast=True)
    return half.to(tl.float32) * 256.0


@triton.jit
def e8m0(bits):
    """E8M0 bits (u8, not 255) as f32."""
    wide = bits.to(tl.int32)
    return tl.where(wide == 0, 0x00400000, wide << 23).to(tl.float32, bitcast=True)


@triton.jit
def scale_pairs(raw, FORMAT: tl.constexpr, ACT: tl.constexpr):
    """Stored scales of groups as the 16-bit factors of `decode`, twice in an i32."""
    if FORMAT == "mxfp4":
        e = raw.to(tl.int32)
        if _is_bf16(ACT):
            e = tl.minimum(e, 144)
            one = (e + 110) << 7
        else:
            one = tl.where(e < 103, 0, tl.minimum(e - 102, 30)) << 10
    elif FORMAT == "nvfp4":
        half = ((raw.to(tl.int32) & 0x7F) << 7).to(tl.int16).to(tl.float16, bitcast=True)
        if _is_bf16(ACT):
            # Exact in bf16, so its bits are a shift away; a conversion would be slower.
            one = (half.to(tl.float32) * 2.0**124).to(tl.int32, bitcast=True) >> 16
        else:
            one = (half * 16384.0).to(tl.float16).to(tl.int16, bitcast=True).to(tl.int32)
    else:
        one = raw.to(tl.float32).to(ACT).to(tl.int16, bitcast=True).to(tl.int32) & 0xFFFF
    return one | (one << 16)


@triton.constexpr_function
def scale_words(GROUP, PER_WORD, stored):
    """32-bit words of the scales of a chunk."""
    return 16 * PER_WORD // GROUP * (1 if stored == tl.uint8 else 2) // 4


_TWO_NVFP4 = (
    "{ .reg .b32 a, b; prmt.b32 a, $2, 0, $3; shl.b32 a, a, 4; mov.b32 b, 0x80008000; .reg .b32 c, d; "
    "mov.b32 c, 0x7F007F00; mov.b32 d, 0x76007600; fma.rn.bf16x2 a, a, c, b; fma.rn.bf16x2 a, a, d, b; "
    "prmt.b32 $0, a, a, 0x1010; prmt.b32 $1, a, a, 0x3232; }"
)
"""Two E4M3 scales, picked of a word by a selector, as pairs of bf16: s * 2^-120 by a shift, times 2^127 and 2^109."""


@triton.jit
def unpacked_pairs(
    words,
    FORMAT: tl.constexpr,
    PER_WORD: tl.constexpr,
    GROUP: tl.constexpr,
    DTYPE: tl.constexpr,
    ACT: tl.constexpr,
    ROWS: tl.constexpr,
    EMULATE: tl.constexpr,
):
    """`scale_pairs` of `load_scale_words`, repeated for each word of weights: i32 [ROWS, 16]."""
    WORDS: tl.constexpr = scale_words(GROUP, PER_WORD, DTYPE)
    GROUPS: tl.constexpr = 16 * PER_WORD // GROUP
    BITS: tl.constexpr = 32 * WORDS // GROUPS
    MASK: tl.constexpr = 0xFFFF if BITS == 16 else 0xFF
    if FORMAT == "nvfp4" and _is_bf16(ACT) and not EMULATE:
        half = tl.reshape(tl.broadcast_to(words[:, :, None], [ROWS, WORDS, 2]), [ROWS, 2 * WORDS])
        select = 0x4140 + (tl.arange(0, 2 * WORDS) % 2 * 0x0202)[None, :]
        first, second = tl.inline_asm_elementwise(
            _two_nvfp4(), "=r,=r,r,r", [half, tl.broadcast_to(select, half.shape)], (tl.int32, tl.int32), True, 1
        )
        pairs = tl.reshape(tl.join(first, second), [ROWS, GROUPS])
    else:
        EACH: tl.constexpr = GROUPS // WORDS
        raw = tl.reshape(tl.broadcast_to(words[:, :, None], [ROWS, WORDS, EACH]), [ROWS, GROUPS])
        raw = (raw >> (tl.arange(0, GROUPS) % EACH * BITS)[None, :]) & MASK
        if BITS == 16:
            raw = raw.to(tl.int16).to(DTYPE, bitcast=True)
        pairs = scale_pairs(raw, FORMAT, ACT)
    return tl.reshape(tl.broadcast_to(pairs[:, :, None], [ROWS, GROUPS, 16 // GROUPS]), [ROWS, 16])


@triton.jit
def _pair_value(pairs, ACT: tl.constexpr):
    return pairs.to(tl.int16).to(ACT, bitcast=True).to(tl.float32)


@triton.jit
def _one(words, pairs, Q: tl.constexpr, FORMAT: tl.constexpr, SCALED: tl.constexpr, ACT: tl.constexpr):
    """Weight Q of every word without inline PTX, with the same bits as the PTX gives."""
    if _codes(FORMAT) == "fp8":
        number = e4m3((words >> (8 * Q)) & 255)
        if not _is_bf16(ACT):
            number *= 2.0**-8
    elif _codes(FORMAT) == "int8":
        number = (((words >> (8 * Q)) & 255) - 128).to(tl.float32)
    elif _codes(FORMAT) == "int4":
        number = (((words >> (4 * Q)) & 15) - 8).to(tl.float32)
    else:
        code = (words >> (4 * Q)) & 15
        bits = ((code & 8) << 12) | ((code & 7) << 9)
        number = bits.to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)
        if _is_bf16(ACT):
            number *= 2.0**-112
    if SCALED:
        number *= _pair_value(pairs, ACT)
    return number.to(ACT).to(tl.int16, bitcast=True)


@triton.jit
def decode(
    words,
    pairs,
    FORMAT: tl.constexpr,
    SCALED: tl.constexpr,
    ACT: tl.constexpr,
    ROWS: tl.constexpr,
    WARPS: tl.constexpr,
    EMULATE: tl.constexpr,
):
    """words i32 [ROWS, 16], pairs i32 [ROWS, 16] (of `scale_pairs`; read if SCALED) -> ACT [ROWS, chunk], permuted.

    Rows are in the order of `fragment_rows`, columns in that of `permute_activations`.
    """
    TEXT: tl.constexpr = _assembly(FORMAT, ACT, SCALED)
    OPERANDS: tl.constexpr = _constraints(FORMAT, SCALED)
    words = fragment_rows(words, ROWS, WARPS, 16)
    if SCALED:
        pairs = fragment_rows(pairs, ROWS, WARPS, 16)
    if _codes(FORMAT) == "fp8" or _codes(FORMAT) == "int8":
        if EMULATE:
            a = _one(words, pairs, 0, FORMAT, SCALED, ACT)
            b = _one(words, pairs, 1, FORMAT, SCALED, ACT)
            c = _one(words, pairs, 2, FORMAT, SCALED, ACT)
            d = _one(words, pairs, 3, FORMAT, SCALED, ACT)
        elif SCALED:
            a, c, b, d = tl.inline_asm_elementwise(
                TEXT, OPERANDS, [words, pairs], (tl.int16, tl.int16, tl.int16, tl.int16), True, 1
            )
        else:
            a, c, b, d = tl.inline_asm_elementwise(
                TEXT, OPERANDS, [words], (tl.int16, tl.int16, tl.int16, tl.int16), True, 1
            )
        both = tl.join(tl.join(a, c), tl.join(b, d))
        both = tl.permute(tl.reshape(both, [ROWS, 4, 4, 2, 2]), [0, 2, 4, 1, 3])
        result = tl.reshape(both, [ROWS, 64])
    else:
        if EMULATE:
            a = _one(words, pairs, 0, FORMAT, SCALED, ACT)
            b = _one(words, pairs, 1, FORMAT, SCALED, ACT)
            c = _one(words, pairs, 2, FORMAT, SCALED, ACT)
            d = _one(words, pairs, 3, FORMAT, SCALED, ACT)
            e = _one(words, pairs, 4, FORMAT, SCALED, ACT)
            f = _one(words, pairs, 5, FORMAT, SCALED, ACT)
            g = _one(words, pairs, 6, FORMAT, SCALED, ACT)
            h = _one(words, pairs, 7, FORMAT, SCALED, ACT)
        elif SCALED:
            a, e, b, f, c, g, d, h = tl.inline_asm_elementwise(
                TEXT,
                OPERANDS,
                [words, pairs],
                (tl.int16, tl.int16, tl.int16, tl.int16, tl.int16, tl.int16, tl.int16, tl.int16),
                True,
                1,
            )
        else:
            a, e, b, f, c, g, d, h = tl.inline_asm_elementwise(
                TEXT,
                OPERANDS,
                [words],
                (tl.int16, tl.int16, tl.int16, tl.int16, tl.int16, tl.int16, tl.int16, tl.int16),
                True,
                1,
            )
        even = tl.join(tl.join(a, e), tl.join(c, g))
        odd = tl.join(tl.join(b, f), tl.join(d, h))
        both = tl.permute(tl.reshape(tl.join(even, odd), [ROWS, 4, 4, 2, 4]), [0, 2, 4, 1, 3])
        result = tl.reshape(both, [ROWS, 128])
    return result.to(ACT, bitcast=True)


@triton.jit
def fragment_rows(tile, ROWS: tl.constexpr, WARPS: tl.constexpr, COLUMNS: tl.constexpr):
    """Relabel rows so that each warp loads the rows of its fragment: [2, WARPS, 8] to [WARPS, 2, 8]."""
    if ROWS >= 16 * WARPS:
        tile = tl.reshape(tile, [ROWS // (16 * WARPS), 2, WARPS, 8, COLUMNS])
        tile = tl.reshape(tl.permute(tile, [0, 2, 1, 3, 4]), [ROWS, COLUMNS])
    return tile


@triton.jit
def natural_rows(tile, ROWS: tl.constexpr, WARPS: tl.constexpr, COLUMNS: tl.constexpr):
    """Undo `fragment_rows`."""
    if ROWS >= 16 * WARPS:
        tile = tl.reshape(tile, [ROWS // (16 * WARPS), WARPS, 2, 8, COLUMNS])
        tile = tl.reshape(tl.permute(tile, [0, 2, 1, 3, 4]), [ROWS, COLUMNS])
    return tile


@triton.jit
def stored_column(column, ORDER: tl.constexpr):
    """Where `permute_activations` puts a column, ORDER weights in a word; ORDER 0: where it is."""
    if ORDER == 0:
        place = column
    else:
        R: tl.constexpr = ORDER // 2
        inner = column % (16 * ORDER)
        r, i, word, t = inner % R, inner // R % 2, inner // ORDER % 4, inner // (4 * ORDER)
        place = column - inner + ((word * R + r) * 4 + t) * 2 + i
    return place


@triton.jit
def permute_activations(tile, ROWS: tl.constexpr, PER_WORD: tl.constexpr):
    """Put consecutive columns [ROWS, chunk] in the order of `decode`: (t, word, i, r) to (word, r, t, i)."""
    tile = tl.reshape(tile, [ROWS, 4, 4, 2, PER_WORD // 2])
    return tl.reshape(tl.permute(tile, [0, 2, 4, 1, 3]), [ROWS, 16 * PER_WORD])
