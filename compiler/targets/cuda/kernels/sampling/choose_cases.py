"""Cases of `choose`: rows of every kind, of vocabularies whose groups all fit into the list and of one with too many.

What a row's program must not read is NaN: numbers that the statistics have read already, logits of groups that do not
reach the list's bound, tiles that are not drawn from. Only the logits of rows that fall back are all there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from ......runtime.sampling.draw import draw
from ......runtime.sampling.params import SamplingParams
from ......runtime.sampling.philox import uniform
from ...call import Case, KernelCall
from .candidates import FEW_GROUPS, GROUP
from .operands import ROW_DTYPES
from .reference import best_of, statistics
from .tile_stats import TILE, listed_of

FIRST_POSITION = 11
LARGE = 40016
"""A vocabulary of more groups than are listed."""


@dataclass(frozen=True)
class _Row:
    """A row of a case."""

    params: SamplingParams
    slot: int = -1
    """The slot of a row with penalties."""
    wide: bool = False
    """True if its program reads the whole row."""
    equal: tuple[int, int, int] = (0, 0, 1)
    """First, end and step of logits that are equal, above all others."""
    broken: bool = False


def _small() -> list[_Row]:
    return [
        _Row(SamplingParams(logprobs=1), equal=(5, 61, 55)),
        _Row(SamplingParams(temperature=1.0, seed=3, logprobs=20)),
        _Row(SamplingParams(temperature=0.7, top_k=5, seed=4)),
        _Row(SamplingParams(temperature=1.5, top_p=0.8, seed=2**63 + 5), slot=0),
        _Row(SamplingParams(temperature=1.0, min_p=0.05, seed=6, logprobs=3), slot=5),
        _Row(SamplingParams(temperature=0.9, top_k=40, top_p=0.9, min_p=0.01, seed=7)),
        _Row(SamplingParams(temperature=2.0, top_k=1, seed=8)),
        _Row(SamplingParams(temperature=1.0, top_p=0.0, seed=9, logprobs=5), equal=(7, 30, 1)),
        _Row(SamplingParams(temperature=1.0, seed=10, logprobs=2), slot=2),
        _Row(SamplingParams(temperature=0.8, top_k=10**6, top_p=0.999999, seed=11)),
        _Row(SamplingParams(logprobs=2), broken=True),
    ]


def _large() -> list[_Row]:
    every = (0, LARGE, 1)
    return [
        _Row(SamplingParams(temperature=0.8, top_k=40, top_p=0.95, seed=1)),
        _Row(SamplingParams(temperature=0.8, top_k=40, top_p=0.95, min_p=0.1, seed=2), slot=1),
        _Row(SamplingParams(temperature=1.0, top_p=0.6, seed=3, logprobs=20), slot=0),
        _Row(SamplingParams(temperature=0.5, top_p=1e-9, seed=4)),
        _Row(SamplingParams(temperature=1.0, top_k=700, seed=5)),
        _Row(SamplingParams(temperature=1.0, top_k=9, seed=6), equal=(100, 20000, 1500)),
        _Row(SamplingParams(temperature=1.0, top_k=20000, top_p=0.9, seed=7), wide=True),
        _Row(SamplingParams(temperature=3.0, top_p=0.97, seed=8), wide=True),
        _Row(SamplingParams(temperature=3.0, top_p=0.97, min_p=0.3, seed=9)),
        _Row(SamplingParams(temperature=1.0, min_p=1e-7, seed=10), wide=True),
        _Row(SamplingParams(temperature=1.3, top_k=3, seed=11, logprobs=20), wide=True, equal=every),
        _Row(SamplingParams(temperature=1.3, seed=12)),
        _Row(SamplingParams(temperature=5.0, seed=13), equal=every),
    ]


def cases(call_of: Callable[[int], KernelCall]) -> Iterator[Case]:
    """`call_of`: the call for a vocabulary."""
    for vocab, rows in ((97, _small()), (4099, _small()), (LARGE, _large())):
        yield _case(call_of(vocab), vocab, rows)


def _case(call: KernelCall, vocab: int, rows: list[_Row]) -> Case:
    random = np.random.default_rng(vocab)
    logits, edited = (random.standard_normal((len(rows), vocab), np.float32) * 3 for _ in range(2))
    for at, row in enumerate(rows):
        logits[at, slice(*row.equal)] = 40.0
    params = [row.params for row in rows]
    slots = np.array([row.slot for row in rows], np.int32)
    source = np.where(slots[:, None] >= 0, edited, logits)
    floats = {
        name: np.array([getattr(p, name) for p in params], {"f32": np.float32, "i32": np.int32}[ROW_DTYPES[name]])
        for name in ("temperature", "top_k", "top_p", "min_p", "logprobs")
    }
    broken = np.array([row.broken for row in rows])
    stats = statistics(logits, source, floats["temperature"], np.where(broken, 0, floats["logprobs"]), TILE)
    stats["broken"][broken, -1] = 1
    tokens, top = [], {name: [] for name in ("top_ids", "top_logits", "summary")}
    for at, (row, p) in enumerate(zip(rows, params, strict=True)):
        token = (
            int(source[at].argmax()) if p.seed is None else draw(source[at], p, uniform(p.seed, FIRST_POSITION + at))
        )
        tokens.append(0 if row.broken else token)
        for name, found in best_of(logits[at], token, 0 if row.broken else p.logprobs).items():
            top[name].append(found)
    given = {
        **floats,
        "seed": np.array([p.seed or 0 for p in params], np.uint64).astype(np.int64),
        "sample_positions": np.arange(len(rows), dtype=np.int32) + FIRST_POSITION,
        "penalty_slots": slots,
        **_spoiled(rows, logits, edited, tokens),
    }
    outcome = {"sampled": np.array(tokens), "status": broken.astype(np.int32)}
    outcome |= {name: np.array(found) for name, found in top.items()}
    inputs = {name: torch.from_numpy(one) for name, one in given.items()} | stats
    expected = {name: torch.from_numpy(one) for name, one in outcome.items()}
    return Case(f"choose-{vocab}", call, inputs, {"rows": len(rows)}, expected, 1e-6)


def _spoiled(rows: list[_Row], logits: np.ndarray, edited: np.ndarray, tokens: list[int]) -> dict[str, np.ndarray]:
    """The two tensors of logits with NaN in place of all that is not to be read."""
    read, read_edited = np.zeros(logits.shape, bool), np.zeros(logits.shape, bool)
    for at, (row, token) in enumerate(zip(rows, tokens, strict=True)):
        p = row.params
        own, source = (read_edited[at], edited[at]) if row.slot >= 0 else (read[at], logits[at])
        if row.wide:
            own[:] = True
        elif p.temperature > 0 and (p.top_k or p.top_p < 1 or p.min_p):
            own |= _listed(source, listed_of(len(source)))
        elif p.temperature > 0:
            own[token // TILE * TILE :][:TILE] = True
        if p.logprobs and not row.broken:
            read[at, token] = True
            read[at] |= True if row.wide else _listed(logits[at], FEW_GROUPS)
    return {"logits": np.where(read, logits, np.nan), "edited": np.where(read_edited, edited, np.nan)}


def _listed(logits: np.ndarray, most: int) -> np.ndarray:
    """Which logits are in one of the `most` groups with the highest peaks."""
    starts = np.arange(0, len(logits), GROUP)
    peaks = np.maximum.reduceat(logits, starts)
    return np.repeat(peaks >= np.sort(peaks)[-min(most, len(peaks))], GROUP)[: len(logits)]
