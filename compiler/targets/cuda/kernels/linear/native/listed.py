"""The linears of Llama-3.1-8B by both routes, whose evidence is held (`cubins/evidence.py`)."""

from __future__ import annotations

from collections.abc import Iterator

from ....call import KernelCall
from . import gemm, stream
from .fits import SM


def pairs() -> Iterator[tuple[str, str, int, KernelCall, KernelCall]]:
    """(name, unit of work, tokens, native call, Triton's call)."""
    yield from stream.pairs(SM)
    yield from gemm.pairs(SM)
