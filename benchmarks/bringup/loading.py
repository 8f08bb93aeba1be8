"""Step A3: loads all carried code, and reports the rung of the ladder that works and each kernel's attributes."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from functools import partial
from importlib import import_module
from typing import Any

from bringup.bench import Bench
from bringup.code import NONE, TRITON, Loaded
from bringup.perform import described
from bringup.step import Item, Step
from llmc.runtime.errors import LlmcError

PART = 64
"""Kernels of an item."""
_WARP = 32
COLUMNS = ("kernel", "registers", "local", "static shared", "dynamic shared", "blocks per multiprocessor")


def ladder(bench: Bench) -> Mapping[str, Any]:
    """The rung that works, and why those above it do not."""
    if bench.loader.rung == NONE:
        bench.loader.last_question()
    rung = bench.loader.rung
    return {"ok": rung not in (TRITON, NONE), "rung": rung, "refused": bench.journal.head.get("refused", {})}


LADDER = Item("ladder", ladder, 100.0)
"""Before anything that needs a kernel: it may take longer than other items may."""


def load(bench: Bench, names: tuple[str, ...]) -> Mapping[str, Any]:
    """Load code by its ids: what each is like, or why it is refused."""
    rows, refused, nbytes = {}, {}, 0
    seconds = 0.0
    for name in names:
        began = time.perf_counter()
        try:
            loaded = bench.loader.kernel(name)
        except LlmcError as error:
            told = described(error)
            refused[name] = f"{bench.carry.code[name].kernel}: {told['cuda']}: {told['error']}"
            continue
        seconds += time.perf_counter() - began
        nbytes += loaded.code.cubin[1]
        rows[name] = facts(loaded)
    differ = {
        name: f"{row[0]}: {row[1]} registers, not {bench.carry.code[name].registers}"
        for name, row in rows.items()
        if row[1] != bench.carry.code[name].registers
    }
    mib = nbytes / 2**20
    return {
        "ok": not refused,
        "columns": COLUMNS,
        "kernels": rows,
        "refused": refused,
        "other registers than assembled": differ,
        "mib": mib,
        "s_per_mib": seconds / mib if mib else None,
    }


def facts(loaded: Loaded) -> tuple[Any, ...]:
    """COLUMNS of a kernel."""
    kinds = import_module("cuda.bindings.driver").CUfunction_attribute
    names = ("NUM_REGS", "LOCAL_SIZE_BYTES", "SHARED_SIZE_BYTES")
    asked = [_ask("cuFuncGetAttribute", getattr(kinds, f"CU_FUNC_ATTRIBUTE_{name}"), loaded.function) for name in names]
    code = loaded.code
    most = "cuOccupancyMaxActiveBlocksPerMultiprocessor"
    blocks = _ask(most, loaded.function, _WARP * code.warps, code.shared)
    return (code.kernel, *asked, code.shared, blocks)


def _ask(function: str, *arguments: Any) -> Any:
    """Call a driver function that llmc itself does not use.

    Raises:
        LlmcError: the function fails; names the CUDA error.
    """
    status, *results = getattr(import_module("cuda.bindings.driver"), function)(*arguments)
    if status:
        raise LlmcError(f"cannot call {function}", found=getattr(status, "name", str(status)))
    return results[0]


def _items(bench: Bench) -> Iterable[Item]:
    names = sorted(bench.carry.code)
    for start in range(0, len(names), PART):
        part = tuple(names[start : start + PART])
        yield Item(f"{start} to {start + len(part)}", partial(load, names=part), 40.0)


STEP = Step("code", 10, _items)
