"""Samples one token per row of logits on the device, by the rules and random numbers of `runtime/sampling/draw.py`.

top-k and top-p are thresholds. Their bits are found from the highest down, four at a time: one pass over the row counts
(top-k) or sums (top-p) for sixteen candidates. Greedy rows read only the tile statistics. Sums are f32 here, so a token
can differ from numpy's only if the random number is within rounding of a boundary. Rows with penalties or biases are
sampled from `edited`; log-probabilities are always of the model's own logits.
"""
# Triton's type stubs reject Python values as constants, and type reductions as if they might be tuples.
# pyright: reportOperatorIssue=false, reportArgumentType=false, reportAttributeAccessIssue=false

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields

import numpy as np
import torch
import triton
import triton.language as tl

from ......runtime.sampling.draw import draw
from ......runtime.sampling.params import MAX_LOGPROBS, SamplingParams
from ......runtime.sampling.philox import uniform
from ...call import Case, Kernel, KernelCall, Operand, Suite, next_power, total
from .tile_stats import TileMaxima, maxima, tiles_of

TILE = 2048


@triton.jit
def ordered(number):
    """f32 as u32 of the same order; -0 equals 0."""
    bits = (number + 0.0).to(tl.int32, bitcast=True)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.uint32, bitcast=True) ^ 0x80000000


@triton.jit
def threshold(row, maximum, sharpness, least, wanted, SUM: tl.constexpr, vocab, TILE: tl.constexpr):
    """The largest bits t (u32) for which the number of logits of at least t reaches `wanted`, or (SUM) the sum of the
    weights of at least t, over logits whose order is at least `least`."""
    candidate = tl.arange(0, 16)
    found = tl.full([], 0, tl.uint32)
    for step in range(8):
        levels = found | (candidate.to(tl.uint32) << (28 - 4 * step))
        reached = tl.zeros([16, TILE], tl.float32)
        for start in range(0, vocab, TILE):
            index = start + tl.arange(0, TILE)
            number = tl.load(row + index, index < vocab, float("-inf"))
            if SUM:
                weight = tl.exp((number - maximum) * sharpness)
                weight = tl.where(ordered(number) >= least, weight, 0.0)
                above = weight.to(tl.uint32, bitcast=True)[None, :] >= levels[:, None]
                reached += tl.where(above, weight[None, :], 0.0)
            else:
                above = (ordered(number)[None, :] >= levels[:, None]) & (index[None, :] < vocab)
                reached += above.to(tl.float32)
        enough = tl.sum(reached, axis=1) >= wanted
        level = tl.max(tl.where(enough, candidate, 0), axis=0)
        found = found | (level.to(tl.uint32) << (28 - 4 * step))
    return found


@triton.jit
def kept_weights(row, start, maximum, sharpness, least, cut, vocab, TILE: tl.constexpr):
    """exp((logit - maximum) * sharpness) of a tile; 0 below a threshold."""
    index = start + tl.arange(0, TILE)
    number = tl.load(row + index, index < vocab, float("-inf"))
    weight = tl.exp((number - maximum) * sharpness)
    return tl.where((ordered(number) >= least) & (weight >= cut) & (index < vocab), weight, 0.0)


@triton.jit
def leave_logprobs(row, wanted, ids, values, summary, token, vocab, TILE: tl.constexpr):
    """Store the `wanted` largest of a row of finite logits in ids and values, unordered (of equals the lower ids), and
    the row's largest logit, the sum of exp(logit - largest) and the logit of `token` in summary."""
    tops = tl.full([TILE], float("-inf"), tl.float32)
    for start in range(0, vocab, TILE):
        index = start + tl.arange(0, TILE)
        tops = tl.maximum(tops, tl.load(row + index, index < vocab, float("-inf")))
    maximum = tl.max(tops, axis=0)
    wanted = tl.minimum(wanted, vocab)
    none = tl.full([], 0, tl.uint32)
    least = threshold(row, maximum, 1.0, none, wanted.to(tl.float32), False, vocab, TILE)
    whole = tl.full([], 0.0, tl.float64)
    place = tl.full([], 0, tl.int32)
    for start in range(0, vocab, TILE):
        index = start + tl.arange(0, TILE)
        number = tl.load(row + index, index < vocab, float("-inf"))
        whole += tl.sum(tl.exp(number - maximum), axis=0)
        hit = ((ordered(number) > least) & (index < vocab)).to(tl.int32)
        slot = place + tl.cumsum(hit, axis=0) - 1
        tl.store(ids + slot, index, hit > 0)
        tl.store(values + slot, number, hit > 0)
        place += tl.sum(hit, axis=0)
    for start in range(0, vocab, TILE):
        index = start + tl.arange(0, TILE)
        number = tl.load(row + index, index < vocab, float("-inf"))
        hit = ((ordered(number) == least) & (index < vocab)).to(tl.int32)
        slot = place + tl.cumsum(hit, axis=0) - 1
        tl.store(ids + slot, index, (hit > 0) & (slot < wanted))
        tl.store(values + slot, number, (hit > 0) & (slot < wanted))
        place += tl.sum(hit, axis=0)
    tl.store(summary, maximum)
    tl.store(summary + 1, whole.to(tl.float32))
    tl.store(summary + 2, tl.load(row + token))


@triton.jit
def choose_kernel(
    logits,
    edited,
    penalty_slots,
    highest,
    best,
    broken,
    temperature,
    top_k,
    top_p,
    min_p,
    seed,
    sample_positions,
    logprobs,
    sampled,
    status,
    top_ids,
    top_logits,
    summary,
    vocab,
    TILES: tl.constexpr,
    COUNT: tl.constexpr,
    TILE: tl.constexpr,
    MOST: tl.constexpr,
):
    """logits and edited f32 [rows, vocab], tile statistics [rows, TILES], parameters [rows] -> sampled i32 [rows],
    status i32 [rows]: 1 if a logit is not finite (the token is then 0), else 0.

    sample_positions: position of the token to sample. Rows whose penalty_slots is not negative are sampled from
    `edited`. logprobs i32 [rows]: how many of the best logits are stored in top_ids i32 and top_logits f32
    [rows, MOST] and in summary f32 [rows, 3]; see `leave_logprobs`."""
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
        row = tl.where(tl.load(penalty_slots + at) >= 0, edited, logits) + at.to(tl.int64) * vocab
        sharpness = 1.0 / heat
        least = tl.full([], 0, tl.uint32)
        count = tl.load(top_k + at)
        if (count > 0) & (count < vocab):
            least = threshold(row, maximum, sharpness, least, count.to(tl.float32), False, vocab, TILE)
        cut = tl.load(min_p + at)
        nucleus = tl.load(top_p + at)
        if nucleus < 1.0:
            sums = tl.zeros([TILE], tl.float32)
            for start in range(0, vocab, TILE):
                sums += kept_weights(row, start, maximum, sharpness, least, 0.0, vocab, TILE)
            mass = tl.maximum(nucleus * tl.sum(sums, axis=0), 1e-30)  # top_p 0 keeps the best
            bits = threshold(row, maximum, sharpness, least, mass, True, vocab, TILE)
            cut = tl.maximum(cut, bits.to(tl.float32, bitcast=True))
        whole = tl.full([], 0.0, tl.float64)
        for start in range(0, vocab, TILE):
            whole += tl.sum(kept_weights(row, start, maximum, sharpness, least, cut, vocab, TILE), axis=0)
        where = tl.load(sample_positions + at).to(tl.uint32)
        key = tl.load(seed + at)
        word, _, _, _ = tl.philox(key, where, 0, 0, 0)
        target = (word.to(tl.float64) + 0.5) * 2.3283064365386963e-10 * whole
        before = tl.full([], 0.0, tl.float64)
        chosen = tl.full([], 0, tl.int32)
        rest = tl.full([], 0.0, tl.float64)
        done = tl.full([], 0, tl.int32)
        for start in range(0, vocab, TILE):
            part = tl.sum(kept_weights(row, start, maximum, sharpness, least, cut, vocab, TILE), axis=0)
            here = (done == 0) & (part > 0.0)
            chosen = tl.where(here, start, chosen)
            rest = tl.where(here, target - before, rest)
            before += part
            done = tl.where(before > target, 1, done)
        weight = kept_weights(row, chosen, maximum, sharpness, least, cut, vocab, TILE)
        index = tl.arange(0, TILE)
        passed = (tl.cumsum(weight, axis=0) > rest) & (weight > 0.0)
        inner = tl.min(tl.where(passed, index, TILE), axis=0)
        last = tl.max(tl.where(weight > 0.0, index, 0), axis=0)
        token = chosen + tl.minimum(inner, last)
    tl.store(sampled + at, tl.where(wrong > 0, 0, token))
    tl.store(status + at, tl.where(wrong > 0, 1, 0))
    wanted = tl.load(logprobs + at)
    if (wrong == 0) & (wanted > 0):
        own = at * MOST
        raw = logits + at.to(tl.int64) * vocab
        leave_logprobs(raw, wanted, top_ids + own, top_logits + own, summary + at * 3, token, vocab, TILE)


KERNEL = Kernel("choose", choose_kernel)


@dataclass(frozen=True)
class SampledRows:
    """The sampling parameters of every row of logits, all [rows]; see `runtime/sampling/draw.py`."""

    temperature: Operand
    top_k: Operand
    top_p: Operand
    min_p: Operand
    seed: Operand
    sample_positions: Operand
    """The position of the sampled token."""
    penalty_slots: Operand
    """The slot of a row with penalties or biases, else -1."""
    logprobs: Operand
    """The number of log-probabilities, 0 to 20."""

    @staticmethod
    def of(make: Callable[..., Operand]) -> SampledRows:
        """`make` makes an operand of a name, dtype and shape."""
        return SampledRows(**{name: make(name, dtype, "rows") for name, dtype in ROW_DTYPES.items()})


ROW_DTYPES = {
    **{"temperature": "f32", "top_k": "i32", "top_p": "f32", "min_p": "f32", "seed": "i64", "sample_positions": "i32"},
    **{"penalty_slots": "i32", "logprobs": "i32"},
}


@dataclass(frozen=True)
class Chosen:
    """The results of every row; the last three are written for rows with log-probabilities."""

    sampled: Operand
    """The token, i32 [rows]."""
    status: Operand
    """1 if a logit is not finite, else 0, i32 [rows]."""
    top_ids: Operand
    """The ids of the best logits, unordered, i32 [rows, 20]."""
    top_logits: Operand
    """The best logits, in the same order, f32 [rows, 20]."""
    summary: Operand
    """The largest logit, the sum of exp(logit - largest), the token's logit, f32 [rows, 3]."""

    @staticmethod
    def of(make: Callable[..., Operand]) -> Chosen:
        """`make` makes an operand of a name, dtype and shape."""
        return Chosen(
            make("sampled", "i32", "rows"),
            make("status", "i32", "rows"),
            make("top_ids", "i32", "rows", MAX_LOGPROBS),
            make("top_logits", "f32", "rows", MAX_LOGPROBS),
            make("summary", "f32", "rows", 3),
        )


def choose(logits: Operand, edited: Operand, tiles: TileMaxima, rows: SampledRows, chosen: Chosen) -> KernelCall:
    """Sample a token per row of logits f32 [rows, V]; temperature 0 is greedy; top_k 0, top_p 1, min_p 0 keep all.

    `edited` f32 [rows, V] and `tiles` are written by `tile_stats`. The price assumes greedy rows without
    log-probabilities.
    """
    vocab = logits.shape[-1]
    assert isinstance(vocab, int)
    written = {field.name: getattr(chosen, field.name) for field in fields(chosen)}
    read = {field.name: getattr(one, field.name) for one in (tiles, rows) for field in fields(one)}
    count = tiles_of(vocab)
    return KernelCall(
        KERNEL,
        {"logits": logits, "edited": edited, **read, **written, "vocab": vocab},
        {"TILES": count, "COUNT": max(32, next_power(count)), "TILE": TILE, "MOST": MAX_LOGPROBS},
        ("rows",),
        writes=tuple(written),
        bytes=total(*(o.bytes for o in (tiles.highest, tiles.best, tiles.broken, chosen.sampled, chosen.status))),
        operations=0,
        warps=16,
    )


def _calls_of(vocab: int) -> KernelCall:
    logits, edited = (Operand(name, "f32", ("rows", vocab)) for name in ("logits", "edited"))

    def make(name: str, dtype: str, *shape: int | str) -> Operand:
        return Operand(name, dtype, shape)

    return choose(logits, edited, TileMaxima.of(make, vocab), SampledRows.of(make), Chosen.of(make))


def _cases() -> Iterator[Case]:
    for vocab in (97, 4099):
        params = [
            SamplingParams(logprobs=1),
            SamplingParams(temperature=1.0, seed=3, logprobs=20),
            SamplingParams(temperature=0.7, top_k=5, seed=4),
            SamplingParams(temperature=1.5, top_p=0.8, seed=2**63 + 5),
            SamplingParams(temperature=1.0, min_p=0.05, seed=6, logprobs=3),
            SamplingParams(temperature=0.9, top_k=40, top_p=0.9, min_p=0.01, seed=7),
            SamplingParams(temperature=2.0, top_k=1, seed=8),
            SamplingParams(temperature=1.0, top_p=0.0, seed=9, logprobs=5),
            SamplingParams(temperature=1.0, seed=10, logprobs=2),
            SamplingParams(logprobs=2),
        ]
        random = np.random.default_rng(vocab)
        logits, edited = (random.standard_normal((len(params), vocab), np.float32) * 3 for _ in range(2))
        logits[0, [5, 60]] = 50.0
        logits[7, 7:30] = 40.0
        logits[-1, vocab - 1] = np.nan
        slots = np.array([-1, -1, -1, 0, 5, -1, -1, -1, 2, -1], np.int32)
        source = np.where(slots[:, None] >= 0, edited, logits)
        source[-1] = 0.0
        tokens, top = [], {name: [] for name in ("top_ids", "top_logits", "summary")}
        for at, (row, p) in enumerate(zip(source, params, strict=True)):
            tokens.append(int(row.argmax()) if p.seed is None else draw(row, p, uniform(p.seed, 11 + at)))
            for name, found in _best(logits[at], tokens[at], 0 if at == len(params) - 1 else p.logprobs).items():
                top[name].append(found)
        stats = maxima(source)
        stats["broken"][-1, -1] = 1
        given = {
            name: torch.tensor(
                [getattr(p, name) for p in params], dtype={"f32": torch.float32, "i32": torch.int32}[ROW_DTYPES[name]]
            )
            for name in ("temperature", "top_k", "top_p", "min_p", "logprobs")
        }
        seeds = np.array([p.seed or 0 for p in params], np.uint64).astype(np.int64)
        given |= {
            "seed": torch.from_numpy(seeds),
            "sample_positions": torch.arange(len(params), dtype=torch.int32) + 11,
        }
        given |= {"penalty_slots": torch.from_numpy(slots)}
        edited[slots < 0] = np.nan
        given |= {"logits": torch.from_numpy(logits), "edited": torch.from_numpy(edited), **stats}
        status = torch.tensor([0] * (len(params) - 1) + [1])
        outcome = {"sampled": torch.tensor(tokens), "status": status}
        outcome |= {name: torch.tensor(np.array(found)) for name, found in top.items()}
        call = _calls_of(vocab)
        yield Case(f"choose-{vocab}", call, given, {"rows": len(params)}, outcome, 1e-6)


def _best(logits: np.ndarray, token: int, count: int) -> dict[str, np.ndarray]:
    """What `leave_logprobs` stores: logits above the least by id, then the least ones; NaN: not written."""
    found = {"top_ids": np.full(MAX_LOGPROBS, np.nan), "top_logits": np.full(MAX_LOGPROBS, np.nan)}
    found["summary"] = np.full(3, np.nan)
    if count:
        best = sorted(range(len(logits)), key=lambda i: (-logits[i], i))[:count]
        least = logits[best[-1]]
        best.sort(key=lambda i: (logits[i] == least, i))
        found["top_ids"][:count], found["top_logits"][:count] = best, logits[best]
        top = float(logits.max())
        found["summary"][:] = top, np.exp(logits.astype(np.float64) - top).sum(), logits[token]
    return found


def _calls(sm: int) -> Iterator[KernelCall]:
    yield _calls_of(128256)


SUITE = Suite((KERNEL,), _cases, _calls)
