"""Applies penalties and biases to logits, checks that they are finite, and sums up each tile, by many programs a row.

The edits and their order are those of `runtime/sampling/draw.py`. Tokens are counted on the device (`counts.py`), so a
sampled token affects the next one before the host has read it. What a row's single program (`sample.py`) needs of the
whole vocabulary is left here: the best logit, sums of weights, and the largest logit of each group.
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

from ......runtime.sampling.draw import Sampler
from ......runtime.sampling.params import SamplingParams
from ...call import Case, Kernel, KernelCall, Operand, Suite, next_power, product, total
from .candidates import GROUP, MOST_GROUPS, MOST_GROUPS_UNALIGNED, lowest
from .counts import COUNT_MASK, PROMPT
from .reference import statistics

TILE = 4096


@triton.jit
def leave_sums(number, sharpness, at, highest, sums, peaks, TILE: tl.constexpr, GROUP: tl.constexpr):
    """Store the largest of a tile's logits, the sum of exp((logit - largest) * sharpness), and the largest of each
    group, at tile `at`."""
    top = tl.max(number, axis=0)
    tl.store(highest + at, top)
    top = tl.where(top > float("-inf"), top, 0.0)
    tl.store(sums + at, tl.sum(tl.exp((number - top) * sharpness), axis=0))
    group = at.to(tl.int64) * (TILE // GROUP) + tl.arange(0, TILE // GROUP)
    tl.store(peaks + group, tl.maximum(tl.max(tl.reshape(number, [TILE // GROUP, GROUP]), axis=1), lowest()))


@triton.jit
def tile_stats_kernel(
    logits,
    temperature,
    logprobs,
    penalty_slots,
    repetition_penalty,
    presence_penalty,
    frequency_penalty,
    logit_bias_ids,
    logit_bias,
    counts,
    edited,
    highest,
    best,
    broken,
    sums,
    peaks,
    raw_highest,
    raw_sums,
    raw_peaks,
    VOCAB: tl.constexpr,
    TILES: tl.constexpr,
    TILE: tl.constexpr,
    GROUP: tl.constexpr,
    BIASES: tl.constexpr,
    MASK: tl.constexpr,
):
    """logits f32 [rows, VOCAB] -> the statistics of every tile; see `TileStats`.

    Rows whose penalty_slots i32 [rows] is a slot of counts i32 [slots, VOCAB] are first changed by penalties f32 [rows]
    and by logit_bias f32 [rows, BIASES] at logit_bias_ids (-1: none), and stored in edited f32 [rows, VOCAB]. Rows of
    temperature f32 [rows] 0 are greedy, and those of logprobs i32 [rows] 0 need no log-probabilities.
    """
    row = tl.program_id(0)
    tile = tl.program_id(1)
    index = tile * TILE + tl.arange(0, TILE)
    inside = index < VOCAB
    address = row.to(tl.int64) * VOCAB + index
    number = tl.load(logits + address, inside, 0.0)
    fine = number - number == 0.0
    at = row * TILES + tile
    if tl.load(logprobs + row) > 0:
        raw = tl.where(inside & fine, number, float("-inf"))
        leave_sums(raw, 1.0, at, raw_highest, raw_sums, raw_peaks, TILE, GROUP)
    slot = tl.load(penalty_slots + row)
    if slot >= 0:
        seen = tl.load(counts + slot.to(tl.int64) * VOCAB + index, inside, 0)
        penalty = tl.load(repetition_penalty + row)
        changed = tl.where(number > 0.0, tl.math.div_rn(number, penalty), number * penalty)
        number = tl.where(seen != 0, changed, number)
        times = seen & MASK
        less = tl.load(presence_penalty + row) + tl.load(frequency_penalty + row) * times.to(tl.float32)
        number = tl.where(times > 0, number - less, number)
        for bias in range(row * BIASES, (row + 1) * BIASES):
            token = tl.load(logit_bias_ids + bias)
            number = tl.where(index == token, number + tl.load(logit_bias + bias), number)
        tl.store(edited + address, number, inside)
    wrong = tl.sum((inside & ~fine).to(tl.int32), axis=0)
    number = tl.where(inside & fine, number, float("-inf"))
    heat = tl.load(temperature + row)
    if heat > 0.0:
        leave_sums(number, 1.0 / heat, at, highest, sums, peaks, TILE, GROUP)
    else:
        tl.store(highest + at, tl.max(number, axis=0))
    tl.store(best + at, tile * TILE + tl.argmax(number, axis=0, tie_break_left=True))
    tl.store(broken + at, wrong)


KERNEL = Kernel("tile_stats", tile_stats_kernel)
PENALTIES = ("repetition_penalty", "presence_penalty", "frequency_penalty")


def tiles_of(vocab: int) -> int:
    """Tiles of a row of logits."""
    return -(-vocab // TILE)


def groups_of(vocab: int) -> int:
    """Groups of a row of logits, those behind the vocabulary in the last tile included."""
    return tiles_of(vocab) * (TILE // GROUP)


def listed_of(vocab: int) -> int:
    """Groups that are listed for a draw, a power of two: all, if there are few."""
    return min(next_power(groups_of(vocab)), MOST_GROUPS if vocab % 4 == 0 else MOST_GROUPS_UNALIGNED)


@dataclass(frozen=True)
class TileStats:
    """The statistics of every tile, [rows, tiles], and of every group of logits, [rows, groups]."""

    highest: Operand
    """The largest finite logit, f32."""
    best: Operand
    """Its id, i32: the lowest of equals."""
    broken: Operand
    """The number of given logits that are NaN or infinite, i32."""
    sums: Operand
    """The sum of exp((logit - highest) / temperature), f32; of rows that are not greedy."""
    peaks: Operand
    """The largest finite logit of each group, f32, the lowest behind the vocabulary; of rows that are not greedy."""
    raw_highest: Operand
    """`highest` before the edits; of rows with log-probabilities, as all that follow."""
    raw_sums: Operand
    """The sum of exp(logit - raw_highest) before the edits, f32."""
    raw_peaks: Operand
    """`peaks` before the edits."""

    @staticmethod
    def of(make: Callable[..., Operand], vocab: int) -> TileStats:
        """`make` makes an operand of a name, dtype and shape."""
        tiles = tiles_of(vocab)
        dtypes = {"highest": "f32", "best": "i32", "broken": "i32", "sums": "f32", "raw_highest": "f32"}
        made = {name: make(name, dtype, "rows", tiles) for name, dtype in {**dtypes, "raw_sums": "f32"}.items()}
        return TileStats(
            **made, **{name: make(name, "f32", "rows", groups_of(vocab)) for name in ("peaks", "raw_peaks")}
        )


@dataclass(frozen=True)
class Edits:
    """The edits of logits: penalty_slots i32 [rows] (-1: none), penalties f32 [rows], biases i32 and f32 [rows, n]."""

    penalty_slots: Operand
    repetition_penalty: Operand
    presence_penalty: Operand
    frequency_penalty: Operand
    logit_bias_ids: Operand
    logit_bias: Operand

    @staticmethod
    def of(make: Callable[..., Operand], biases: int) -> Edits:
        """`make` makes an operand of a name, dtype and shape."""
        penalties = {name: make(name, "f32", "rows") for name in PENALTIES}
        return Edits(
            penalty_slots=make("penalty_slots", "i32", "rows"),
            **penalties,
            logit_bias_ids=make("logit_bias_ids", "i32", "rows", biases),
            logit_bias=make("logit_bias", "f32", "rows", biases),
        )


def tile_stats(
    logits: Operand,
    temperature: Operand,
    logprobs: Operand,
    edits: Edits,
    counts: Operand,
    edited: Operand,
    stats: TileStats,
) -> KernelCall:
    """The edited rows and statistics of logits f32 [rows, V], for `choose`.

    The price is that of sampled rows without edits and log-probabilities.
    """
    rows, vocab = logits.shape
    biases = edits.logit_bias.shape[-1]
    assert isinstance(vocab, int) and isinstance(biases, int)
    written = {"edited": edited, **{field.name: getattr(stats, field.name) for field in fields(stats)}}
    read = {field.name: getattr(edits, field.name) for field in fields(edits)}
    left = (stats.highest, stats.best, stats.broken, stats.sums, stats.peaks)
    return KernelCall(
        KERNEL,
        {"logits": logits, "temperature": temperature, "logprobs": logprobs, **read, "counts": counts, **written},
        {
            "VOCAB": vocab,
            "TILES": tiles_of(vocab),
            "TILE": TILE,
            "GROUP": GROUP,
            "BIASES": biases,
            "MASK": COUNT_MASK,
        },
        (rows, tiles_of(vocab)),
        writes=tuple(written),
        bytes=total(logits.bytes, *(one.bytes for one in left)),
        operations=product(rows, 6 * vocab),
        warps=8,
    )


def _call(vocab: int, biases: int, slots: int | str) -> KernelCall:
    make = Operand.of
    logits, edited = (make(name, "f32", "rows", vocab) for name in ("logits", "edited"))
    temperature, logprobs = make("temperature", "f32", "rows"), make("logprobs", "i32", "rows")
    counts = make("counts", "i32", slots, vocab)
    return tile_stats(logits, temperature, logprobs, Edits.of(make, biases), counts, edited, TileStats.of(make, vocab))


def _cases() -> Iterator[Case]:
    for vocab, biases in ((97, 1), (4099, 4)):
        params = [
            SamplingParams(temperature=0.7, logprobs=2),
            SamplingParams(repetition_penalty=1.5, frequency_penalty=0.25, temperature=1.5, logprobs=20),
            SamplingParams(presence_penalty=-0.5),
            SamplingParams(logit_bias=tuple((i * 7, 30.0 - i) for i in range(biases)), temperature=1.0),
            SamplingParams(logprobs=1),
        ]
        random = np.random.default_rng(vocab)
        logits = random.standard_normal((len(params), vocab), np.float32) * 3
        slots = np.array([-1, 3, 0, 2, -1], np.int32)
        counts = np.full((4, vocab), -1, np.int32)
        edited = np.full_like(logits, np.nan)
        after = logits.copy()
        for at, (row, p) in enumerate(zip(logits, params, strict=True)):
            if slots[at] >= 0:
                prompt, output = random.integers(0, vocab, 20), random.integers(0, vocab, 30)
                counts[slots[at]] = np.bincount(output, minlength=vocab)
                counts[slots[at], prompt] |= PROMPT
                sampler = Sampler()
                sampler.feed(prompt.tolist())
                for place, token in enumerate(output):
                    sampler.sample(np.eye(1, vocab, token, dtype=np.float32)[0], SamplingParams(), place)
                after[at] = edited[at] = sampler.edited(row, p)
        logits[-1, [3, vocab - 1]] = after[-1, [3, vocab - 1]] = np.nan, np.inf
        inputs = {"logits": logits, "penalty_slots": slots, "counts": counts}
        inputs["temperature"] = np.array([p.temperature for p in params], np.float32)
        inputs["logprobs"] = np.array([p.logprobs for p in params], np.int32)
        for name in PENALTIES:
            inputs[name] = np.array([getattr(p, name) for p in params], np.float32)
        inputs["logit_bias_ids"] = np.full((len(params), biases), -1, np.int32)
        inputs["logit_bias"] = np.full((len(params), biases), 9.0, np.float32)
        inputs["logit_bias_ids"][3], inputs["logit_bias"][3] = zip(*params[3].logit_bias, strict=True)
        call = _call(vocab, biases, 4)
        tensors = {name: torch.from_numpy(array) for name, array in inputs.items()}
        outcome = statistics(logits, after, inputs["temperature"], inputs["logprobs"], TILE)
        outcome["edited"] = torch.from_numpy(edited)
        yield Case(f"stats-{vocab}", call, tensors, {"rows": len(params)}, outcome, 1e-6)


def _calls(sm: int) -> Iterator[KernelCall]:
    yield _call(128256, 32, 64)


SUITE = Suite((KERNEL,), _cases, _calls)
