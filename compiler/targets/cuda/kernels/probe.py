"""Kernels that measure a chip: the cost of a launch, and the speed of reading memory without writing.

Linears of few tokens read their weights and write almost nothing, so the speed of a copy is not their limit.
"""

# Triton's type stubs reject plain numbers as constexprs, and its loops.
# pyright: reportArgumentType=false, reportGeneralTypeIssues=false

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl

from ..call import Case, Kernel, KernelCall, Operand, Suite, product

WORDS = 1 << 17
"""32-bit words that a block reads: half a MiB."""
_TILE = 2048


@triton.jit
def null_kernel(x):
    """Does nothing."""


@triton.jit
def read_kernel(source, sums, WORDS: tl.constexpr, TILE: tl.constexpr):
    """source i32 [blocks, WORDS] -> sums i32 [blocks], modulo 2^32. Grid: a program per block."""
    block = tl.program_id(0)
    start = block.to(tl.int64) * WORDS
    total = tl.zeros([TILE], tl.int32)
    for at in tl.range(0, WORDS, TILE, num_stages=1):
        total += tl.load(source + start + at + tl.arange(0, TILE))
    tl.store(sums + block, tl.sum(total, 0))


NULL = Kernel("probe_null", null_kernel)
READ = Kernel("probe_read", read_kernel)


def null(x: Operand) -> KernelCall:
    """A launch of one block that does nothing."""
    return KernelCall(NULL, {"x": x}, {}, (1,), (), 0, 0)


def read(source: Operand, sums: Operand) -> KernelCall:
    """source i32 [tokens, WORDS] -> sums i32 [tokens]; a block reads each row."""
    tokens, words = source.shape
    assert words == WORDS
    return KernelCall(
        READ,
        {"source": source, "sums": sums},
        {"WORDS": WORDS, "TILE": _TILE},
        (tokens,),
        ("sums",),
        bytes=product(tokens, 4 * WORDS),
        operations=product(tokens, WORDS),
    )


def _read() -> KernelCall:
    return read(Operand("source", "i32", ("tokens", WORDS)), Operand("sums", "i32", ("tokens",)))


def _cases() -> Iterator[Case]:
    x = torch.arange(64, dtype=torch.int32)
    yield Case("null", null(Operand("x", "i32", (64,))), {"x": x}, {}, {"x": x})
    source = torch.randint(-99, 99, (2, WORDS), generator=torch.Generator().manual_seed(5), dtype=torch.int32)
    yield Case("read", _read(), {"source": source}, {"tokens": 2}, {"sums": source.sum(1)}, 0.0)


def _calls(sm: int) -> Iterator[KernelCall]:
    yield null(Operand("x", "i32", (64,)))
    yield _read()


SUITE = Suite((NULL, READ), _cases, _calls)
