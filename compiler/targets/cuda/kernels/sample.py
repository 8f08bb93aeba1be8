"""One token per row of logits, on the device: the order, thresholds and random numbers of `runtime/sampling.py`.

Cuts are thresholds, found by their bits from the highest down, four at a time: sixteen candidates are counted (top-k)
or summed (top-p) in one pass over the row. Greedy rows read only what the first kernel left of each tile. A sampled
token can differ from numpy's only where the random number lies within rounding of a boundary: sums are float32 here.
"""
# Triton's library is typed as if constants were no Python values and reductions might be tuples.
# pyright: reportOperatorIssue=false, reportArgumentType=false, reportAttributeAccessIssue=false

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
import triton
import triton.language as tl

from .....runtime.philox import uniform
from .....runtime.sampling import SamplingParams, draw
from ..kernel import Call, Case, Kernel, Operand, Suite, next_power, product, total

STATS_TILE = 4096
TILE = 2048


@triton.jit
def stats_kernel(logits, highest, best, broken, VOCAB: tl.constexpr, TILES: tl.constexpr, TILE: tl.constexpr):
    """logits f32 [rows, VOCAB] -> per tile [rows, TILES]: the largest, its id (the lowest of equals), how many are NaN
    or infinite."""
    row = tl.program_id(0)
    tile = tl.program_id(1)
    index = tile * TILE + tl.arange(0, TILE)
    inside = index < VOCAB
    number = tl.load(logits + row.to(tl.int64) * VOCAB + index, inside, 0.0)
    wrong = tl.sum((number - number != 0.0).to(tl.int32), axis=0)
    number = tl.where(inside & (number - number == 0.0), number, float("-inf"))
    at = row * TILES + tile
    tl.store(highest + at, tl.max(number, axis=0))
    tl.store(best + at, tile * TILE + tl.argmax(number, axis=0, tie_break_left=True))
    tl.store(broken + at, wrong)


@triton.jit
def ordered(number):
    """float32 as u32 of the same order; -0 is 0."""
    bits = (number + 0.0).to(tl.int32, bitcast=True)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.uint32, bitcast=True) ^ 0x80000000


@triton.jit
def threshold(row, maximum, sharpness, least, wanted, SUM: tl.constexpr, VOCAB: tl.constexpr, TILE: tl.constexpr):
    """The largest bits t (u32) such that `wanted` is reached by the logits of at least t, counted, or (SUM) by the
    weights of at least t, summed, of logits whose order is at least `least`."""
    candidate = tl.arange(0, 16)
    found = tl.full([], 0, tl.uint32)
    for step in range(8):
        levels = found | (candidate.to(tl.uint32) << (28 - 4 * step))
        reached = tl.zeros([16, TILE], tl.float32)
        for start in range(0, VOCAB, TILE):
            index = start + tl.arange(0, TILE)
            number = tl.load(row + index, index < VOCAB, float("-inf"))
            if SUM:
                weight = tl.exp((number - maximum) * sharpness)
                weight = tl.where(ordered(number) >= least, weight, 0.0)
                above = weight.to(tl.uint32, bitcast=True)[None, :] >= levels[:, None]
                reached += tl.where(above, weight[None, :], 0.0)
            else:
                above = (ordered(number)[None, :] >= levels[:, None]) & (index[None, :] < VOCAB)
                reached += above.to(tl.float32)
        enough = tl.sum(reached, axis=1) >= wanted
        level = tl.max(tl.where(enough, candidate, 0), axis=0)
        found = found | (level.to(tl.uint32) << (28 - 4 * step))
    return found


@triton.jit
def kept_weights(row, start, maximum, sharpness, least, cut, VOCAB: tl.constexpr, TILE: tl.constexpr):
    """exp((logit - maximum) * sharpness) of a tile, 0 where a threshold cuts it."""
    index = start + tl.arange(0, TILE)
    number = tl.load(row + index, index < VOCAB, float("-inf"))
    weight = tl.exp((number - maximum) * sharpness)
    return tl.where((ordered(number) >= least) & (weight >= cut) & (index < VOCAB), weight, 0.0)


@triton.jit
def choose_kernel(
    logits,
    highest,
    best,
    broken,
    temperature,
    top_k,
    top_p,
    min_p,
    seed,
    place,
    sampled,
    status,
    VOCAB: tl.constexpr,
    TILES: tl.constexpr,
    COUNT: tl.constexpr,
    TILE: tl.constexpr,
):
    """logits f32 [rows, VOCAB], tile statistics [rows, TILES], parameters [rows] -> sampled i32 [rows], status i32
    [rows]: 1 where a logit is not finite (the token is then 0), else 0. place: the position of the token to choose."""
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
        row = logits + at.to(tl.int64) * VOCAB
        sharpness = 1.0 / heat
        least = tl.full([], 0, tl.uint32)
        count = tl.load(top_k + at)
        if (count > 0) & (count < VOCAB):
            least = threshold(row, maximum, sharpness, least, count.to(tl.float32), False, VOCAB, TILE)
        cut = tl.load(min_p + at)
        nucleus = tl.load(top_p + at)
        if nucleus < 1.0:
            sums = tl.zeros([TILE], tl.float32)
            for start in range(0, VOCAB, TILE):
                sums += kept_weights(row, start, maximum, sharpness, least, 0.0, VOCAB, TILE)
            mass = tl.maximum(nucleus * tl.sum(sums, axis=0), 1e-30)  # top_p 0 keeps the best
            bits = threshold(row, maximum, sharpness, least, mass, True, VOCAB, TILE)
            cut = tl.maximum(cut, bits.to(tl.float32, bitcast=True))
        whole = tl.full([], 0.0, tl.float64)
        for start in range(0, VOCAB, TILE):
            whole += tl.sum(kept_weights(row, start, maximum, sharpness, least, cut, VOCAB, TILE), axis=0)
        where = tl.load(place + at).to(tl.uint32)
        key = tl.load(seed + at)
        word, _, _, _ = tl.philox(key, where, 0, 0, 0)
        target = (word.to(tl.float64) + 0.5) * 2.3283064365386963e-10 * whole
        before = tl.full([], 0.0, tl.float64)
        chosen = tl.full([], 0, tl.int32)
        rest = tl.full([], 0.0, tl.float64)
        done = tl.full([], 0, tl.int32)
        for start in range(0, VOCAB, TILE):
            part = tl.sum(kept_weights(row, start, maximum, sharpness, least, cut, VOCAB, TILE), axis=0)
            here = (done == 0) & (part > 0.0)
            chosen = tl.where(here, start, chosen)
            rest = tl.where(here, target - before, rest)
            before += part
            done = tl.where(before > target, 1, done)
        weight = kept_weights(row, chosen, maximum, sharpness, least, cut, VOCAB, TILE)
        index = tl.arange(0, TILE)
        passed = (tl.cumsum(weight, axis=0) > rest) & (weight > 0.0)
        inner = tl.min(tl.where(passed, index, TILE), axis=0)
        last = tl.max(tl.where(weight > 0.0, index, 0), axis=0)
        token = chosen + tl.minimum(inner, last)
    tl.store(sampled + at, tl.where(wrong > 0, 0, token))
    tl.store(status + at, tl.where(wrong > 0, 1, 0))


STATS = Kernel("tile_stats", stats_kernel)
CHOOSE = Kernel("choose", choose_kernel)


def tiles_of(vocab: int) -> int:
    """Tiles that `tile_stats` leaves a number of each."""
    return -(-vocab // STATS_TILE)


def tile_stats(logits: Operand, highest: Operand, best: Operand, broken: Operand) -> Call:
    """What `choose` must know of every tile of every row."""
    rows, vocab = logits.shape
    assert isinstance(vocab, int)
    return Call(
        STATS,
        {"logits": logits, "highest": highest, "best": best, "broken": broken},
        {"VOCAB": vocab, "TILES": tiles_of(vocab), "TILE": STATS_TILE},
        (rows, tiles_of(vocab)),
        writes=("highest", "best", "broken"),
        bytes=logits.bytes,
        operations=product(rows, 2 * vocab),
        warps=8,
    )


def choose(
    logits: Operand,
    highest: Operand,
    best: Operand,
    broken: Operand,
    temperature: Operand,
    top_k: Operand,
    top_p: Operand,
    min_p: Operand,
    seed: Operand,
    place: Operand,
    sampled: Operand,
    status: Operand,
) -> Call:
    """A token per row; temperature 0: the best; top_k 0, top_p 1 and min_p 0 cut nothing. Priced as greedy."""
    rows, vocab = logits.shape
    assert isinstance(vocab, int)
    arguments = {"logits": logits, "highest": highest, "best": best, "broken": broken, "temperature": temperature}
    arguments |= {"top_k": top_k, "top_p": top_p, "min_p": min_p, "seed": seed, "place": place}
    return Call(
        CHOOSE,
        {**arguments, "sampled": sampled, "status": status},
        {"VOCAB": vocab, "TILES": tiles_of(vocab), "COUNT": next_power(tiles_of(vocab)), "TILE": TILE},
        (rows,),
        writes=("sampled", "status"),
        bytes=total(highest.bytes, best.bytes, broken.bytes, sampled.bytes, status.bytes),
        operations=0,
        warps=16,
    )


_PARAMETERS = (("temperature", "f32"), ("top_k", "i32"), ("top_p", "f32"), ("min_p", "f32"))


def _operands(vocab: int) -> tuple[Operand, ...]:
    rows, tiles = ("rows",), ("rows", tiles_of(vocab))
    return (
        Operand("logits", "f32", ("rows", vocab)),
        Operand("highest", "f32", tiles),
        Operand("best", "i32", tiles),
        Operand("broken", "i32", tiles),
        *(Operand(name, dtype, rows) for name, dtype in _PARAMETERS),
        Operand("seed", "i64", rows),
        Operand("place", "i32", rows),
        Operand("sampled", "i32", rows),
        Operand("status", "i32", rows),
    )


def _cases() -> Iterator[Case]:
    for vocab in (97, 4099):
        params = [
            SamplingParams(),
            SamplingParams(temperature=1.0, seed=3),
            SamplingParams(temperature=0.7, top_k=5, seed=4),
            SamplingParams(temperature=1.5, top_p=0.8, seed=2**63 + 5),
            SamplingParams(temperature=1.0, min_p=0.05, seed=6),
            SamplingParams(temperature=0.9, top_k=40, top_p=0.9, min_p=0.01, seed=7),
            SamplingParams(temperature=2.0, top_k=1, seed=8),
            SamplingParams(temperature=1.0, top_p=0.0, seed=9),
            SamplingParams(),
        ]
        logits = np.random.default_rng(vocab).standard_normal((len(params), vocab), np.float32) * 3
        logits[0, [5, 60]] = 50.0
        expected = [
            int(row.argmax()) if p.seed is None else draw(row, p, uniform(p.seed, 11 + at))
            for at, (row, p) in enumerate(zip(logits, params, strict=True))
        ]
        logits[-1, vocab - 1] = np.nan
        expected[-1] = 0
        tiles = [logits[:, start : start + STATS_TILE] for start in range(0, vocab, STATS_TILE)]
        finite = [np.where(np.isfinite(tile), tile, -np.inf) for tile in tiles]
        highest = np.stack([tile.max(1) for tile in finite], 1)
        best = np.stack([start * STATS_TILE + tile.argmax(1) for start, tile in enumerate(finite)], 1)
        broken = np.stack([(~np.isfinite(tile)).sum(1) for tile in tiles], 1)
        operands, sizes = _operands(vocab), {"rows": len(params)}
        stats = {
            "highest": torch.from_numpy(highest),
            "best": torch.from_numpy(best).int(),
            "broken": torch.from_numpy(broken).int(),
        }
        rows = torch.from_numpy(logits)
        yield Case(f"stats-{vocab}", tile_stats(*operands[:4]), {"logits": rows}, sizes, stats, 0.0)
        given = {
            name: torch.tensor(
                [getattr(p, name) for p in params], dtype={"f32": torch.float32, "i32": torch.int32}[kind]
            )
            for name, kind in _PARAMETERS
        }
        seeds = np.array([p.seed or 0 for p in params], np.uint64).astype(np.int64)
        given |= {"seed": torch.from_numpy(seeds), "place": torch.arange(len(params), dtype=torch.int32) + 11}
        status = torch.tensor([0] * (len(params) - 1) + [1])
        yield Case(
            f"choose-{vocab}",
            choose(*operands),
            {"logits": rows, **stats, **given},
            sizes,
            {"sampled": torch.tensor(expected), "status": status},
            0.0,
        )


def _calls(sm: int) -> Iterator[Call]:
    operands = _operands(128256)
    yield tile_stats(*operands[:4])
    yield choose(*operands)


SUITE = Suite((STATS, CHOOSE), _cases, _calls)
