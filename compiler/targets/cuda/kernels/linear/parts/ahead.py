"""Reads the first weights of a linear before the launch before it has ended: the memory does not rest between launches.

A kernel that may be launched early (programmatic dependent launch) waits for its predecessor. Weights do not depend on
it, so each program asks for the first of its own before the wait, into L2, where nothing is overwritten.
"""

# Triton's type stubs reject plain numbers as constexprs, and lack its instructions of one chip.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportAssignmentType=false

from __future__ import annotations

import triton
import triton.language as tl

from .......runtime.dtypes import KERNEL_DTYPES
from ....call import Operand

MINIMUM_SM = 90
"""The first capability with programmatic dependent launch and bulk copies."""
_MOST = 16 << 20
"""Bytes of all programs: a third of the L2 of an H100, which has two partitions and other work."""
_MOST_OF_ROW = 2048
_TOKENS = 32
"""More tokens are bound by products, not by memory."""


def bytes_ahead(weights: Operand, k: int, splits: int, span: int, max_tokens: int, sm: int) -> int:
    """Bytes of a row's part of K that a program reads ahead; 0: none. span: columns of a part, of k.

    They are a multiple of 16 and no more than the last part has, as a bulk copy needs.
    """
    n, columns = weights.shape
    assert isinstance(n, int) and isinstance(columns, int)
    row = columns * KERNEL_DTYPES[weights.dtype].bytes
    if sm < MINIMUM_SM or max_tokens > _TOKENS or row % 16:
        return 0
    last = row - (splits - 1) * span * row // k
    return min(last, row // splits, _MOST_OF_ROW, _MOST // (n * splits)) // 16 * 16


@triton.constexpr_function
def _prefetch(size):
    return f"cp.async.bulk.prefetch.L2.global [$1], {size}; mov.u32 $0, 0;"


@triton.jit
def read_ahead(w, row, start, K: tl.constexpr, PER_WORD: tl.constexpr, AHEAD: tl.constexpr):
    """Ask for AHEAD bytes of each of `row` (i64) of w [N, K] from column `start` on, then wait for the launch before.

    Bulk copies: PTX ISA, cp.async.bulk.prefetch.
    """
    EACH: tl.constexpr = PER_WORD // 4 if PER_WORD > 0 else 1
    first = (w + row * (K // EACH) + start // EACH).to(tl.pointer_type(tl.uint8))
    tl.inline_asm_elementwise(_prefetch(AHEAD), "=r,l", [first], tl.int32, False, 1)
    tl.extra.cuda.gdc_launch_dependents()
    tl.extra.cuda.gdc_wait()
