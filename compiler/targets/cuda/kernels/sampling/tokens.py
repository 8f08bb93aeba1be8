"""Tokens on the device: a step reads the tokens that the previous step sampled, even before the host has them.

They are also counted there for penalties (`counts.py`).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl

from ...call import Case, Kernel, KernelCall, Operand, Suite, product

BLOCK = 128


@triton.jit
def take_kernel(asked, last, taken, tokens, SLOTS: tl.constexpr, BLOCK: tl.constexpr):
    """asked i32 [tokens] -> taken i32 [tokens]: ids are copied, -1 - slot becomes the token last[slot], i32 [SLOTS]."""
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = index < tokens
    token = tl.load(asked + index, inside, 0)
    slot = tl.where(token < 0, -1 - token, 0)
    kept = tl.load(last + slot, inside & (token < 0) & (slot < SLOTS), 0)
    tl.store(taken + index, tl.where(token < 0, kept, token), inside)


@triton.jit
def keep_kernel(
    sampled, slots, penalty_slots, last, counts, rows, SLOTS: tl.constexpr, VOCAB: tl.constexpr, BLOCK: tl.constexpr
):
    """Store sampled i32 [rows] in last i32 [SLOTS] at slots i32 [rows]; slot -1 stores nothing.

    Add 1 to the token's count in counts i32 [SLOTS, VOCAB] at penalty_slots i32 [rows]; -1: none.
    """
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = index < rows
    token = tl.load(sampled + index, inside, 0)
    slot = tl.load(slots + index, inside, -1)
    tl.store(last + slot, token, (slot >= 0) & (slot < SLOTS))
    slot = tl.load(penalty_slots + index, inside, -1)
    one = tl.full([BLOCK], 1, tl.int32)
    tl.atomic_add(counts + slot.to(tl.int64) * VOCAB + token, one, (slot >= 0) & (slot < SLOTS), sem="relaxed")


TAKE = Kernel("take_tokens", take_kernel)
KEEP = Kernel("keep_tokens", keep_kernel)


def take_tokens(asked: Operand, last: Operand, taken: Operand, *, slots: int) -> KernelCall:
    """Ids for the embedding: negative ids are replaced by sampled tokens."""
    return KernelCall(
        TAKE,
        {"asked": asked, "last": last, "taken": taken, "tokens": "tokens"},
        {"SLOTS": slots, "BLOCK": BLOCK},
        (f"cdiv(tokens, {BLOCK})",),
        writes=("taken",),
        bytes=product("tokens", 12),
        operations="tokens",
        warps=1,
    )


def keep_tokens(
    sampled: Operand, slots_of: Operand, penalty_slots: Operand, last: Operand, counts: Operand, *, slots: int
) -> KernelCall:
    """Store the sampled tokens for the next step's `take_tokens`, and count those of rows with penalties or biases."""
    vocab = counts.shape[-1]
    assert isinstance(vocab, int)
    return KernelCall(
        KEEP,
        {
            "sampled": sampled,
            "slots": slots_of,
            "penalty_slots": penalty_slots,
            "last": last,
            "counts": counts,
            "rows": "rows",
        },
        {"SLOTS": slots, "VOCAB": vocab, "BLOCK": BLOCK},
        (f"cdiv(rows, {BLOCK})",),
        writes=("last", "counts"),
        bytes=product("rows", 24),
        operations="rows",
        warps=1,
    )


def _cases() -> Iterator[Case]:
    i32 = torch.int32
    last = torch.arange(100, 107, dtype=i32)
    asked = torch.tensor([5, -1, -7, 0, -8] + [3] * 128, dtype=i32)
    taken = torch.tensor([5, 100, 106, 0, 0] + [3] * 128, dtype=i32)
    take = take_tokens(
        Operand("asked", "i32", ("tokens",)),
        Operand("last", "i32", (7,)),
        Operand("taken", "i32", ("tokens",)),
        slots=7,
    )
    yield Case("take", take, {"asked": asked, "last": last}, {"tokens": len(asked)}, {"taken": taken}, 0.0)
    keep = keep_tokens(
        Operand("sampled", "i32", ("rows",)),
        Operand("slots", "i32", ("rows",)),
        Operand("penalty_slots", "i32", ("rows",)),
        Operand("last", "i32", (7,)),
        Operand("counts", "i32", (7, 10)),
        slots=7,
    )
    counts = torch.arange(70, dtype=i32).reshape(7, 10)
    inputs = {
        "sampled": torch.tensor([9, 8, 7, 5], dtype=i32),
        "slots": torch.tensor([2, -1, 7, 0], dtype=i32),
        "penalty_slots": torch.tensor([2, -1, 7, -1], dtype=i32),
        "last": last,
        "counts": counts,
    }
    counted = counts.clone()
    counted[2, 9] += 1
    after = {"last": torch.tensor([5, 101, 9, 103, 104, 105, 106], dtype=i32), "counts": counted}
    yield Case("keep", keep, inputs, {"rows": 4}, after, 0.0)


SUITE = Suite((TAKE, KEEP), _cases)
