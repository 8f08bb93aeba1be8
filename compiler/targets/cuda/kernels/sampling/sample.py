"""Samples one token per row of logits on the device, by the rules and random numbers of `runtime/sampling/draw.py`.

Programs of `tile_stats.py` have read the row; one program chooses. Greedy rows need the tiles' best logits, rows
without cuts the tiles' sums and one tile. top-k, top-p and min-p are thresholds among the largest logits
(`candidates.py`), or, if that list does not reach far enough, of the whole row (`whole_row.py`), by the same rules.
Sums are f32 here, so a token can differ from numpy's only if the random number is within rounding of a boundary. Rows
with penalties or biases are sampled from `edited`; log-probabilities are always of the model's own logits.
"""
# Triton's type stubs reject Python values as constants, and type reductions as if they might be tuples.
# pyright: reportOperatorIssue=false, reportArgumentType=false, reportAttributeAccessIssue=false

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields

import triton
import triton.language as tl

from ......runtime.sampling.params import MAX_LOGPROBS
from ...call import Kernel, KernelCall, Operand, Suite, next_power, product, total
from .candidates import BISECTIONS, FEW_GROUPS, GROUP, best_listed, draw_listed, first_above
from .choose_cases import cases
from .operands import Chosen, SampledRows
from .tile_stats import TILE, TileStats, groups_of, listed_of, tiles_of
from .whole_row import STEP, best_whole, draw_whole


@triton.jit
def draw_tile(row, sums, maximum, sharpness, share, VOCAB: tl.constexpr, COUNT: tl.constexpr, TILE: tl.constexpr):
    """The token at `share` (f64, 0 to 1) of all weights of a row, whose tiles' sums are f64 [COUNT]."""
    tile = tl.arange(0, COUNT)
    target = share * tl.sum(sums, axis=0)
    at = tl.min(tl.where(tl.cumsum(sums, axis=0) > target, tile, COUNT), axis=0)
    at = tl.minimum(at, tl.max(tl.where(sums > 0.0, tile, 0), axis=0))
    rest = target - tl.sum(tl.where(tile < at, sums, 0.0), axis=0)
    index = at * TILE + tl.arange(0, TILE)
    number = tl.load(row + index, index < VOCAB, float("-inf"))
    return at * TILE + first_above(tl.exp((number - maximum) * sharpness), rest, TILE)


@triton.jit
def choose_kernel(
    logits,
    edited,
    penalty_slots,
    highest,
    best,
    broken,
    sums,
    peaks,
    raw_highest,
    raw_sums,
    raw_peaks,
    temperature,
    top_k,
    top_p,
    min_p,
    seed,
    sample_positions,
    logprobs,
    listed,
    sampled,
    status,
    top_ids,
    top_logits,
    summary,
    vocab,
    VOCAB: tl.constexpr,
    TILES: tl.constexpr,
    COUNT: tl.constexpr,
    TILE: tl.constexpr,
    GROUPS: tl.constexpr,
    SPACE: tl.constexpr,
    GROUP: tl.constexpr,
    LIST: tl.constexpr,
    SHORT: tl.constexpr,
    STEP: tl.constexpr,
    MOST: tl.constexpr,
):
    """logits and edited f32 [rows, VOCAB], statistics [rows, TILES] and [rows, GROUPS] (`TileStats`), parameters [rows]
    -> sampled i32 [rows], status i32 [rows]: 1 if a logit is not finite (the token is then 0), else 0.

    sample_positions: position of the token to sample. Rows whose penalty_slots is not negative are sampled from
    `edited`. logprobs i32 [rows]: how many of the best logits are stored in top_ids i32 and top_logits f32
    [rows, MOST]; summary f32 [rows, 3] then has the largest logit, the sum of exp(logit - largest) and the token's
    logit. listed i32 [rows, LIST] is working space.
    """
    at = tl.program_id(0)
    tile = tl.arange(0, COUNT)
    inside = tile < TILES
    wrong = tl.sum(tl.load(broken + at * TILES + tile, inside, 0), axis=0)
    tops = tl.load(highest + at * TILES + tile, inside, float("-inf"))
    maximum = tl.max(tops, axis=0)
    first = tl.argmax(tops, axis=0, tie_break_left=True)
    token = tl.load(best + at * TILES + first)
    heat = tl.load(temperature + at)
    if (wrong == 0) & (heat > 0.0):
        row = tl.where(tl.load(penalty_slots + at) >= 0, edited, logits) + at.to(tl.int64) * VOCAB
        sharpness = 1.0 / heat
        parts = tl.load(sums + at * TILES + tile, inside, 0.0) * tl.exp((tops - maximum) * sharpness)
        parts = parts.to(tl.float64)
        word, _, _, _ = tl.philox(tl.load(seed + at), tl.load(sample_positions + at).to(tl.uint32), 0, 0, 0)
        share = (word.to(tl.float64) + 0.5) * 2.3283064365386963e-10
        most = tl.load(top_k + at)
        most = tl.where(most < VOCAB, most, 0)
        nucleus = tl.load(top_p + at)
        cut = tl.load(min_p + at)
        if (most > 0) | (nucleus < 1.0) | (cut > 0.0):
            token = draw_listed(
                row,
                peaks + at * GROUPS,
                listed + at * LIST,
                maximum,
                sharpness,
                tl.sum(parts, axis=0),
                most,
                nucleus,
                cut,
                share,
                VOCAB,
                GROUPS,
                SPACE,
                LIST,
                GROUP,
            )
            if token < 0:
                token = draw_whole(row, maximum, sharpness, most, nucleus, cut, share, vocab, STEP)
        else:
            token = draw_tile(row, parts, maximum, sharpness, share, VOCAB, COUNT, TILE)
    tl.store(sampled + at, tl.where(wrong > 0, 0, token))
    tl.store(status + at, tl.where(wrong > 0, 1, 0))
    wanted = tl.load(logprobs + at)
    if (wrong == 0) & (wanted > 0):
        row = logits + at.to(tl.int64) * VOCAB
        tops = tl.load(raw_highest + at * TILES + tile, inside, float("-inf"))
        maximum = tl.max(tops, axis=0)
        whole = tl.sum(tl.load(raw_sums + at * TILES + tile, inside, 0.0) * tl.exp(tops - maximum), axis=0)
        tl.store(summary + at * 3, maximum)
        tl.store(summary + at * 3 + 1, whole)
        tl.store(summary + at * 3 + 2, tl.load(row + token))
        wanted = tl.minimum(wanted, VOCAB)
        ids = top_ids + at * MOST
        values = top_logits + at * MOST
        own = raw_peaks + at * GROUPS
        served = best_listed(
            row, own, listed + at * LIST, maximum, wanted, ids, values, VOCAB, GROUPS, SPACE, SHORT, GROUP
        )
        if not served:
            best_whole(row, wanted, ids, values, vocab, STEP)


KERNEL = Kernel("choose", choose_kernel)


def choose(
    logits: Operand, edited: Operand, stats: TileStats, rows: SampledRows, listed: Operand, chosen: Chosen
) -> KernelCall:
    """Sample a token per row of logits f32 [rows, V]; temperature 0 is greedy; top_k 0, top_p 1, min_p 0 keep all.

    `edited` f32 [rows, V] and `stats` are written by `tile_stats`; `listed` i32 [rows, listed_of(V)] is working space.
    The price is that of rows with top-k and top-p that the list serves, without log-probabilities. Such a row waits for
    one access after another, and no bytes or operations tell how long: see `benchmarks/sampling_price.py`.
    """
    vocab = logits.shape[-1]
    assert isinstance(vocab, int)
    written = {"listed": listed, **{field.name: getattr(chosen, field.name) for field in fields(chosen)}}
    read = {field.name: getattr(one, field.name) for one in (stats, rows) for field in fields(one)}
    tiles, groups, most = tiles_of(vocab), groups_of(vocab), listed_of(vocab)
    return KernelCall(
        KERNEL,
        {"logits": logits, "edited": edited, **read, **written, "vocab": vocab},
        {
            "VOCAB": vocab,
            "TILES": tiles,
            "COUNT": max(32, next_power(tiles)),
            "TILE": TILE,
            "GROUPS": groups,
            "SPACE": next_power(groups),
            "GROUP": GROUP,
            "LIST": most,
            "SHORT": FEW_GROUPS,
            "STEP": STEP,
            "MOST": MAX_LOGPROBS,
        },
        ("rows",),
        writes=tuple(written),
        bytes=total(
            *(one.bytes for one in (stats.highest, stats.best, stats.broken, stats.sums, stats.peaks)),
            *(one.bytes for one in (chosen.sampled, chosen.status)),
            product("rows", 4 * most * (GROUP + 2)),
        ),
        operations=product("rows", BISECTIONS * (2 * groups + 4 * most * GROUP)),
        warps=8,
    )


def _call(vocab: int) -> KernelCall:
    make = Operand.of
    logits, edited = (make(name, "f32", "rows", vocab) for name in ("logits", "edited"))
    listed = make("listed", "i32", "rows", listed_of(vocab))
    return choose(logits, edited, TileStats.of(make, vocab), SampledRows.of(make), listed, Chosen.of(make))


def _calls(sm: int) -> Iterator[KernelCall]:
    yield _call(128256)


SUITE = Suite((KERNEL,), lambda: cases(_call), _calls)
