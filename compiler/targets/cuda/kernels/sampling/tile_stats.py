"""Applies penalties and biases to logits, checks that they are finite, and finds the best logit of each tile.

The edits and their order are those of `runtime/sampling/draw.py`. Tokens are counted on the device (`counts.py`), so a
sampled token affects the next one before the host has read it.
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
from ...call import Case, Kernel, KernelCall, Operand, Suite, product
from .counts import COUNT_MASK, PROMPT

TILE = 4096


@triton.jit
def tile_stats_kernel(
    logits,
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
    VOCAB: tl.constexpr,
    TILES: tl.constexpr,
    TILE: tl.constexpr,
    BIASES: tl.constexpr,
    MASK: tl.constexpr,
):
    """logits f32 [rows, VOCAB] -> per tile [rows, TILES]: the largest logit, its id (the lowest of equals), and the
    number of given logits that are NaN or infinite.

    Rows whose penalty_slots i32 [rows] is a slot of counts i32 [slots, VOCAB] are first changed by penalties f32 [rows]
    and by logit_bias f32 [rows, BIASES] at logit_bias_ids (-1: none), and stored in edited f32 [rows, VOCAB].
    """
    row = tl.program_id(0)
    tile = tl.program_id(1)
    index = tile * TILE + tl.arange(0, TILE)
    inside = index < VOCAB
    address = row.to(tl.int64) * VOCAB + index
    number = tl.load(logits + address, inside, 0.0)
    fine = number - number == 0.0
    slot = tl.load(penalty_slots + row)
    if slot >= 0:
        seen = tl.load(counts + slot.to(tl.int64) * VOCAB + index, inside, 0)
        penalty = tl.load(repetition_penalty + row)
        changed = tl.where(number > 0.0, tl.math.div_rn(number, penalty), number * penalty)
        number = tl.where(seen != 0, changed, number)
        times = seen & MASK
        less = tl.load(presence_penalty + row) + tl.load(frequency_penalty + row) * times.to(tl.float32)
        number = tl.where(times > 0, number - less, number)
        for at in range(BIASES):
            token = tl.load(logit_bias_ids + row * BIASES + at)
            number = tl.where(index == token, number + tl.load(logit_bias + row * BIASES + at), number)
        tl.store(edited + address, number, inside)
    wrong = tl.sum((inside & ~fine).to(tl.int32), axis=0)
    number = tl.where(inside & fine, number, float("-inf"))
    at = row * TILES + tile
    tl.store(highest + at, tl.max(number, axis=0))
    tl.store(best + at, tile * TILE + tl.argmax(number, axis=0, tie_break_left=True))
    tl.store(broken + at, wrong)


KERNEL = Kernel("tile_stats", tile_stats_kernel)
PENALTIES = ("repetition_penalty", "presence_penalty", "frequency_penalty")


def tiles_of(vocab: int) -> int:
    """Tiles of a row of logits."""
    return -(-vocab // TILE)


@dataclass(frozen=True)
class TileMaxima:
    """The statistics of every tile, all [rows, tiles]."""

    highest: Operand
    """The largest finite logit, f32."""
    best: Operand
    """Its id, i32."""
    broken: Operand
    """The number of logits that are not finite, i32."""

    @staticmethod
    def of(make: Callable[..., Operand], vocab: int) -> TileMaxima:
        """`make` makes an operand of a name, dtype and shape."""
        dtypes = {"highest": "f32", "best": "i32", "broken": "i32"}
        return TileMaxima(**{name: make(name, dtype, "rows", tiles_of(vocab)) for name, dtype in dtypes.items()})


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


def tile_stats(logits: Operand, edits: Edits, counts: Operand, edited: Operand, tiles: TileMaxima) -> KernelCall:
    """The edited rows and tile statistics of logits f32 [rows, V], for `choose`. The price assumes no edits."""
    rows, vocab = logits.shape
    biases = edits.logit_bias.shape[-1]
    assert isinstance(vocab, int) and isinstance(biases, int)
    written = {"edited": edited, **{field.name: getattr(tiles, field.name) for field in fields(tiles)}}
    read = {field.name: getattr(edits, field.name) for field in fields(edits)}
    return KernelCall(
        KERNEL,
        {"logits": logits, **read, "counts": counts, **written},
        {"VOCAB": vocab, "TILES": tiles_of(vocab), "TILE": TILE, "BIASES": biases, "MASK": COUNT_MASK},
        (rows, tiles_of(vocab)),
        writes=tuple(written),
        bytes=logits.bytes,
        operations=product(rows, 2 * vocab),
        warps=8,
    )


def maxima(logits: np.ndarray) -> dict[str, torch.Tensor]:
    """The reference in numpy: the tile statistics of logits f32 [rows, V]."""
    tiles = [logits[:, start : start + TILE] for start in range(0, logits.shape[1], TILE)]
    finite = [np.where(np.isfinite(tile), tile, -np.inf) for tile in tiles]
    return {
        "highest": torch.from_numpy(np.stack([tile.max(1) for tile in finite], 1)),
        "best": torch.from_numpy(np.stack([i * TILE + tile.argmax(1) for i, tile in enumerate(finite)], 1)).int(),
        "broken": torch.from_numpy(np.stack([(~np.isfinite(tile)).sum(1) for tile in tiles], 1)).int(),
    }


def _call(vocab: int, biases: int, slots: int | str) -> KernelCall:
    make = Operand.of
    logits, edited = (make(name, "f32", "rows", vocab) for name in ("logits", "edited"))
    counts = make("counts", "i32", slots, vocab)
    return tile_stats(logits, Edits.of(make, biases), counts, edited, TileMaxima.of(make, vocab))


def _cases() -> Iterator[Case]:
    for vocab, biases in ((97, 1), (4099, 4)):
        params = [
            SamplingParams(),
            SamplingParams(repetition_penalty=1.5, frequency_penalty=0.25),
            SamplingParams(presence_penalty=-0.5),
            SamplingParams(logit_bias=tuple((i * 7, 30.0 - i) for i in range(biases))),
            SamplingParams(),
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
        for name in PENALTIES:
            inputs[name] = np.array([getattr(p, name) for p in params], np.float32)
        inputs["logit_bias_ids"] = np.full((len(params), biases), -1, np.int32)
        inputs["logit_bias"] = np.full((len(params), biases), 9.0, np.float32)
        inputs["logit_bias_ids"][3], inputs["logit_bias"][3] = zip(*params[3].logit_bias, strict=True)
        call = _call(vocab, biases, 4)
        tensors = {name: torch.from_numpy(array) for name, array in inputs.items()}
        outcome = {**maxima(after), "edited": torch.from_numpy(edited)}
        yield Case(f"stats-{vocab}", call, tensors, {"rows": len(params)}, outcome, 1e-6)


def _calls(sm: int) -> Iterator[KernelCall]:
    yield _call(128256, 32, 64)


SUITE = Suite((KERNEL,), _cases, _calls)
