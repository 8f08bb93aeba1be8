"""Step A4: every carried case of a kernel: launched twice with guards around its tensors, and held against its numbers.

Nothing stops at a wrong number: it is written down. The first kernels that leave the context broken are run once more
in a process of their own under compute-sanitizer, which says where they read or write what is not theirs.
"""

from __future__ import annotations

import ctypes
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bringup.bench import Bench
from bringup.carry import CarriedCase, CaseTensor
from bringup.code import tools
from bringup.numbers import distance, numbers
from bringup.step import Item, Step
from llmc.runtime.cuda.launches import pack
from llmc.runtime.cuda.tensor_maps import passed
from llmc.runtime.errors import LlmcError
from llmc.runtime.plan.budget import aligned

GUARD, MARK, BLANK = 4096, 0xA5, 0xFF
"""Bytes on both sides of a tensor that no kernel may change, what they hold, and what unwritten results hold."""
FIRST = (
    *("rms_norm", "embed", "rope_cache", "linear_small bf16", "linear_small fp8", "linear_small"),
    *("attention_decode", "take_tokens", "tile_stats", "choose", "keep_tokens", "gated", "linear_large", "linear_fp8"),
    *("attention_prefill", "rms_norm_fp8"),
)
"""Kernels in the order in which they are wanted, with a word of the case's name where only some are; then others."""
_LIMIT, _MEMCHECK, _MEMCHECKS = 5.0, 20.0, 2
_BREAKS = 3
"""Contexts that a kernel may break before its other cases are skipped: each costs a new process."""
_TAIL = 3000


def order(case: CarriedCase, kernel: str) -> int:
    """Where a case stands."""
    for place, wanted in enumerate(FIRST):
        name, _, word = wanted.partition(" ")
        if name == kernel and (not word or word in case.name.rpartition(":")[2].split("-")):
            return place
    return len(FIRST)


@dataclass(frozen=True)
class _Room:
    """A tensor on the GPU between guards, and its bytes on the host, guards included."""

    tensor: CaseTensor
    address: int
    host: int
    initial: np.ndarray
    view: np.ndarray

    @property
    def inner(self) -> np.ndarray:
        return self.view[GUARD : GUARD + self.initial.size]

    @property
    def guarded(self) -> bool:
        return bool((self.view[:GUARD] == MARK).all() and (self.view[GUARD + self.initial.size :] == MARK).all())


def run(bench: Bench, case: CarriedCase) -> dict[str, Any]:
    """The largest error of a case's tensors against its tolerance, and what else must hold."""
    with ExitStack() as cleanup:
        rooms = _rooms(bench, case, cleanup)
        first = _launched(bench, case, rooms)
        outside = [name for name, room in rooms.items() if not room.guarded]
        second = _launched(bench, case, rooms)
        outside += [name for name, room in rooms.items() if not room.guarded and name not in outside]
        read = [name for name, room in rooms.items() if not room.tensor.written]
        changed = [name for name in read if not np.array_equal(first[name], rooms[name].initial)]
        differ = [name for name in rooms if not np.array_equal(first[name], second[name])]
        gaps = {
            tensor.name: distance(
                numbers(first[tensor.name], tensor.dtype, tensor.shape),
                np.asarray(bench.carry.arrays[tensor.expected], np.float64).reshape(tensor.shape),
            )
            for tensor in case.tensors
            if tensor.expected is not None
        }
    worst = max(gaps, key=lambda name: gaps[name]["error"])
    within = all(gap["finite"] and gap["error"] <= case.tolerance for gap in gaps.values())
    ok = within and not (outside or changed or differ)
    told = {"written outside of": outside, "inputs changed": changed, "other bits the second time": differ}
    return {
        "ok": ok,
        "error": gaps[worst]["error"],
        "tolerance": case.tolerance,
        **({} if within else {"worst": worst, **gaps[worst]}),
        **{name: found for name, found in told.items() if found},
        "code": case.code,
    }


def _rooms(bench: Bench, case: CarriedCase, cleanup: ExitStack) -> dict[str, _Room]:
    initials = {tensor.name: _initial(bench, tensor) for tensor in case.tensors}
    sizes = {name: aligned(data.size) + 2 * GUARD for name, data in initials.items()}
    host = bench.driver.allocate_host(sum(sizes.values()), case.name)
    cleanup.callback(bench.driver.free_host, host)
    rooms = {}
    for tensor in case.tensors:
        nbytes = sizes[tensor.name]
        view = np.ctypeslib.as_array((ctypes.c_ubyte * nbytes).from_address(host))
        address = bench.allocate(nbytes, tensor.name, cleanup)
        rooms[tensor.name] = _Room(tensor, address, host, initials[tensor.name], view)
        host += nbytes
    return rooms


def _initial(bench: Bench, tensor: CaseTensor) -> np.ndarray:
    if tensor.initial is not None:
        return np.asarray(bench.carry.arrays[tensor.initial], np.uint8).reshape(-1)
    items = {"bf16": 2, "f16": 2, "f32": 4, "i32": 4, "i64": 8, "u8": 1}[tensor.dtype]
    return np.full(int(np.prod(tensor.shape, dtype=np.int64)) * items, BLANK, np.uint8)


def _launched(bench: Bench, case: CarriedCase, rooms: Mapping[str, _Room]) -> dict[str, np.ndarray]:
    """Bytes of every tensor after a launch that starts from its first bytes."""
    driver, stream, loaded = bench.driver, bench.stream, bench.loader.kernel(case.code)
    with ExitStack() as cleanup:
        for room in rooms.values():
            room.view[:] = MARK
            room.inner[:] = room.initial
            driver.copy_in(room.address, room.host, room.view.size, stream)
        blocks = case.grid[0] * case.grid[1] * case.grid[2]
        scratch = [
            bench.allocate(nbytes * blocks, "scratch", cleanup) if nbytes else 0
            for nbytes in (loaded.code.global_scratch, loaded.code.profile_scratch)
        ]
        values = [
            passed(driver, kind, rooms[one].address + GUARD, rooms[one].tensor.shape) if isinstance(one, str) else one
            for one, kind in zip(case.arguments, loaded.code.types, strict=True)
        ]
        parameters = pack([*loaded.code.types, "*i8", "*i8"], [*values, *scratch], what=case.name)
        config = driver.config(case.grid, loaded.code.warps, loaded.code.shared, stream)
        if blocks:
            driver.launch(config, loaded.function, parameters.address, f"launch {case.name}")
        for room in rooms.values():
            driver.copy_out(room.host, room.address, room.view.size, stream)
        driver.wait(stream)
    return {name: room.inner.copy() for name, room in rooms.items()}


def alone(bench: Bench, name: str) -> dict[str, Any]:
    """One case by its name, for a process under compute-sanitizer.

    Raises:
        LlmcError: there is no such case.
    """
    case = next((one for one in bench.carry.cases if one.name == name), None)
    if case is None:
        raise LlmcError(f"expected a carried case {name!r}", found="none")
    return run(bench, case)


def memcheck(bench: Bench, name: str) -> Mapping[str, Any]:
    """What compute-sanitizer says of a case."""
    program = next(iter(tools("compute-sanitizer")), None)
    if program is None:
        return {"skipped": "no compute-sanitizer here"}
    script = Path(__file__).resolve().parent.parent / "gpu_first.py"
    carry = str(bench.carry.folder)
    command = [program, "--tool", "memcheck", sys.executable, str(script), bench.journal.call, "--carry", carry]
    try:
        done = subprocess.run(
            [*command, "--case", name], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=_MEMCHECK
        )
    except subprocess.TimeoutExpired as error:
        return {"skipped": f"compute-sanitizer takes more than {_MEMCHECK:g} s", "said": str(error.stdout)[-_TAIL:]}
    return {"exit": done.returncode, "said": done.stdout[-_TAIL:]}


def _skipped(_: Bench) -> Mapping[str, Any]:
    return {"ok": False, "skipped": f"its kernel has broken {_BREAKS} contexts"}


def items(bench: Bench) -> Iterator[Item]:
    """The cases in the order of FIRST, and after a broken context what compute-sanitizer says."""
    codes = bench.carry.code
    cases = sorted(bench.carry.cases, key=lambda case: order(case, codes[case.code].kernel))
    checked: set[str] = set()
    broken: Counter[str] = Counter()
    for case in cases:
        known = broken[codes[case.code].kernel] >= _BREAKS
        yield Item(case.name, _skipped if known else partial(run, case=case), _LIMIT)
        kernel, outcome = codes[case.code].kernel, bench.journal.outcomes.get(f"cases/{case.name}", {})
        broken[kernel] += bool(outcome.get("sticky"))
        faulty = outcome.get("sticky") and outcome.get("cuda")  # neither a crash nor a hang
        if faulty and kernel not in checked and len(checked) < _MEMCHECKS:
            checked.add(kernel)
            yield Item(f"memcheck {case.name}", partial(memcheck, name=case.name), _MEMCHECK + 2)


STEP = Step("cases", 42, items)
