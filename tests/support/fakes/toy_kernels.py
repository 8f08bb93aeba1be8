"""The kernels of the toy model (`toy_gpu.py`) for a fake driver; processes of ranks import this alone."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from support.fakes.driver import FakeKernel, Memory

VOCAB, MAX_BLOCKS = 97, 4
F32, I32 = np.float32, np.int32


def take(memory: Memory, grid, asked, last, past, slots, ids, tokens, _scratch, _profile) -> None:
    """Ids, those below zero from `last`, and into the cache."""
    given, where = memory.array(asked, I32, tokens), memory.array(slots, I32, tokens)
    for index in range(tokens):
        token = given[index] if given[index] >= 0 else memory.array(last, I32, -int(given[index]))[-1]
        memory.array(ids, I32, tokens)[index] = token
        if where[index] >= 0:
            memory.array(past + 4 * int(where[index]), F32, 1)[0] = token


def score(memory, grid, past, tables, places, which, starts, bias, height, factor, logits, rows, sequences, *_) -> None:
    """Logits of a mixed step."""
    first = memory.array(starts, I32, sequences + 1)
    for row, token in enumerate(memory.array(which, I32, rows)):
        sequence = int(np.searchsorted(first, token, side="right")) - 1
        _score_row(memory, past, tables, sequence, places, int(token), bias, height, factor, logits, row)


def score_all(memory, grid, past, tables, places, bias, height, factor, logits, sequences, scratch, _profile) -> None:
    """Logits of a decode step; it needs 32 bytes of scratch per block."""
    memory.array(scratch, np.uint8, 32 * grid[0])[:] = 1
    for row in range(sequences):
        _score_row(memory, past, tables, row, places, row, bias, height, factor, logits, row)


def _score_row(memory, past, tables, sequence, places, token, bias, height, factor, logits, row) -> None:
    table = memory.array(tables + 4 * MAX_BLOCKS * sequence, I32, MAX_BLOCKS)
    position = int(memory.array(places + 4 * token, I32, 1)[0])
    total = sum(
        float(memory.array(past + 4 * (int(table[p // 64]) * 64 + p % 64), F32, 1)[0]) for p in range(position + 1)
    )
    line = memory.array(logits + 4 * VOCAB * row, F32, VOCAB)
    line[:] = 0
    line[int(total + memory.array(bias, F32, 1)[0]) % VOCAB] = factor * memory.array(height, F32, 1)[0]


def choose(memory: Memory, grid, logits, slots, sampled, status, last, rows, _scratch, _profile) -> None:
    """The largest logit, also into `last`."""
    for row in range(rows):
        token = int(memory.array(logits + 4 * VOCAB * row, F32, VOCAB).argmax())
        memory.array(sampled, I32, rows)[row] = token
        memory.array(status, I32, rows)[row] = 0
        slot = int(memory.array(slots, I32, rows)[row])
        if slot >= 0:
            memory.array(last + 4 * slot, I32, 1)[0] = token


_F, _I = "*fp32", "*i32"
KERNELS: Mapping[str, FakeKernel] = {
    "take": FakeKernel((_I, _I, _F, _I, _I, "i32"), take),
    "score": FakeKernel((_F, _I, _I, _I, _I, _F, _F, "fp32", _F, "i32", "i32"), score),
    "score_all": FakeKernel((_F, _I, _I, _F, _F, "fp32", _F, "i32"), score_all),
    "choose": FakeKernel((_F, _I, _I, _I, _I, "i32"), choose),
}
