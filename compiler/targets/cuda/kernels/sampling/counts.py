"""Token counts that penalties read, kept on the device: which tokens the prompt has, how often each was sampled."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl

from ...call import Case, Kernel, KernelCall, Operand, Suite, product

PROMPT = 1 << 30
"""The bit that is set in the count of a token of the prompt."""
COUNT_MASK = PROMPT - 1
BLOCK = 128
TILE = 4096


@triton.jit
def forget_kernel(reset_slots, counts, VOCAB: tl.constexpr, TILE: tl.constexpr):
    """Set counts i32 [slots, VOCAB] to 0 at reset_slots i32 [sequences]; -1: none. Grid: sequences, tiles."""
    slot = tl.load(reset_slots + tl.program_id(0))
    index = tl.program_id(1) * TILE + tl.arange(0, TILE)
    if slot >= 0:
        tl.store(counts + slot.to(tl.int64) * VOCAB + index, tl.zeros([TILE], tl.int32), index < VOCAB)


@triton.jit
def mark_kernel(tokens_of, prompt_slots, counts, tokens, VOCAB: tl.constexpr, MARK: tl.constexpr, BLOCK: tl.constexpr):
    """Set MARK in counts i32 [slots, VOCAB] of tokens_of i32 [tokens] at prompt_slots i32 [tokens]; -1: none."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    slot = tl.load(prompt_slots + at, at < tokens, -1)
    token = tl.load(tokens_of + at, at < tokens, 0)
    known = (slot >= 0) & (token >= 0) & (token < VOCAB)
    tl.atomic_or(counts + slot.to(tl.int64) * VOCAB + token, tl.full([BLOCK], MARK, tl.int32), known, sem="relaxed")


FORGET = Kernel("forget_counts", forget_kernel)
MARK = Kernel("mark_prompt", mark_kernel)


def _vocab(counts: Operand) -> int:
    vocab = counts.shape[-1]
    assert isinstance(vocab, int)
    return vocab


def forget_counts(reset_slots: Operand, counts: Operand) -> KernelCall:
    """Clear the counts of slots that a new sequence takes. The price assumes no new sequence."""
    tiles = -(-_vocab(counts) // TILE)
    return KernelCall(
        FORGET,
        {"reset_slots": reset_slots, "counts": counts},
        {"VOCAB": _vocab(counts), "TILE": TILE},
        ("sequences", tiles),
        writes=("counts",),
        bytes=product("sequences", 4),
        operations=0,
    )


def mark_prompt(tokens_of: Operand, prompt_slots: Operand, counts: Operand) -> KernelCall:
    """Mark the tokens of prompts in the counts; negative ids, which stand for sampled tokens, are skipped."""
    return KernelCall(
        MARK,
        {"tokens_of": tokens_of, "prompt_slots": prompt_slots, "counts": counts, "tokens": "tokens"},
        {"VOCAB": _vocab(counts), "MARK": PROMPT, "BLOCK": BLOCK},
        (f"cdiv(tokens, {BLOCK})",),
        writes=("counts",),
        bytes=product("tokens", 16),
        operations="tokens",
        warps=1,
    )


def _cases() -> Iterator[Case]:
    i32 = torch.int32
    counts = Operand("counts", "i32", (3, 5000))
    before = torch.arange(15000, dtype=i32).reshape(3, 5000)
    reset_slots = torch.tensor([2, -1, 0], dtype=i32)
    after = before.clone()
    after[[2, 0]] = 0
    call = forget_counts(Operand("reset_slots", "i32", ("sequences",)), counts)
    yield Case(
        "reset_slots", call, {"reset_slots": reset_slots, "counts": before}, {"sequences": 3}, {"counts": after}, 0.0
    )
    ids = torch.tensor([5, -1, 4999, 5, 7] + [0] * 128 + [9], dtype=i32)
    prompt_slots = torch.tensor([1, 2, 0, 1, -1] + [-1] * 128 + [2], dtype=i32)
    after = before.clone()
    after[1, 5] |= PROMPT
    after[0, 4999] |= PROMPT
    after[2, 9] |= PROMPT
    call = mark_prompt(Operand("ids", "i32", ("tokens",)), Operand("prompt_slots", "i32", ("tokens",)), counts)
    given = {"ids": ids, "prompt_slots": prompt_slots, "counts": before}
    yield Case("mark", call, given, {"tokens": len(ids)}, {"counts": after}, 0.0)


def _calls(sm: int) -> Iterator[KernelCall]:
    counts = Operand("counts", "i32", (64, 128256))
    yield forget_counts(Operand("reset_slots", "i32", ("sequences",)), counts)
    yield mark_prompt(Operand("ids", "i32", ("tokens",)), Operand("prompt_slots", "i32", ("tokens",)), counts)


SUITE = Suite((FORGET, MARK), _cases, _calls)
