"""A few steps of an engine as the interpreter computed them, launch by launch: which kernel of a GPU differs first.

A file `dump/ENGINE.npz`. `facts` is JSON: the plan's digest, and of each step the program, its sizes, and of each
launch its label, kernel and the names it writes. `STEP:in:NAME` are a step's inputs. `STEP:LAUNCH:NAME` are what a
launch has changed, as float32 of the tensor's shape in which NaN means that it did not change this number; caches are
left out, as attention reads them at once. What a launch writes is the input of the next, so errors grow: the first one
that is beyond its bound is told, with those before it.
"""

from __future__ import annotations

import ctypes
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bringup.decode import BenchDevice
from bringup.numbers import distance, numbers
from llmc.runtime.cuda.launches import BoundLaunch, BoundProgram
from llmc.runtime.errors import LlmcError
from llmc.runtime.plan.formula import value
from llmc.runtime.plan.plan import Program

BOUND = 5e-2
"""Most difference of a buffer, of its largest number: noise of bf16 grows over the layers, and wrong is far off."""
_SHOWN = 12
_NOT_JUDGED = ("i32", "i64")
"""Tokens and indices may be others where two logits are a tie."""


@dataclass(frozen=True)
class RecordedLaunch:
    """A launch that has blocks, in order. written: what it changed, by the name of the buffer."""

    label: str
    kernel: str
    written: Mapping[str, np.ndarray]


@dataclass(frozen=True)
class RecordedStep:
    """A step: which program, for which sizes, from which inputs."""

    program: int
    sizes: Mapping[str, int]
    inputs: Mapping[str, np.ndarray]
    launches: tuple[RecordedLaunch, ...]


@dataclass(frozen=True)
class Recorded:
    """Steps in order, each after those before it. plan: the digest of the plan's text."""

    plan: str
    steps: tuple[RecordedStep, ...]


def write(path: Path, recorded: Recorded) -> None:
    """Write a file that `read` reads."""
    arrays: dict[str, np.ndarray] = {}
    steps = []
    for at, step in enumerate(recorded.steps):
        arrays |= {f"{at}:in:{name}": array for name, array in step.inputs.items()}
        for index, launch in enumerate(step.launches):
            arrays |= {f"{at}:{index}:{name}": array.astype(np.float32) for name, array in launch.written.items()}
        launches = [{**asdict(launch), "written": list(launch.written)} for launch in step.launches]
        steps.append(
            {"program": step.program, "sizes": dict(step.sizes), "inputs": list(step.inputs), "launches": launches}
        )
    facts = json.dumps({"plan": recorded.plan, "steps": steps})
    held = io.BytesIO()
    np.savez_compressed(held, facts=np.frombuffer(facts.encode(), np.uint8), **arrays)  # pyright: ignore[reportArgumentType]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(held.getvalue())


def read(path: Path) -> Recorded:
    arrays = np.load(path)
    facts = json.loads(arrays["facts"].tobytes())
    steps = []
    for at, step in enumerate(facts["steps"]):
        launches = tuple(
            RecordedLaunch(
                one["label"], one["kernel"], {name: arrays[f"{at}:{index}:{name}"] for name in one["written"]}
            )
            for index, one in enumerate(step["launches"])
        )
        inputs = {name: arrays[f"{at}:in:{name}"] for name in step["inputs"]}
        steps.append(RecordedStep(step["program"], step["sizes"], inputs, launches))
    return Recorded(facts["plan"], tuple(steps))


def blocked(program: Program, sizes: Mapping[str, int]) -> list[int]:
    """The places of the launches that have blocks."""
    return [
        index for index, launch in enumerate(program.kernels) if all(value(formula, sizes) for formula in launch.grid)
    ]


def compare(device: BenchDevice, recorded: Recorded) -> dict[str, Any]:
    """Run the steps one launch at a time, up to the first that differs.

    Returns ok, the guilty launch if there is one, the largest error before it, and the last launches up to it.
    """
    seen: list[dict[str, Any]] = []
    for at, step in enumerate(recorded.steps):
        for launch, found in zip(step.launches, _launched(device, step), strict=True):
            row = {"step": at, "label": launch.label, "kernel": launch.kernel, **_worst(launch, found)}
            seen.append(row)
            if not row["ok"]:
                return {"ok": False, "guilty": row, "before": _errors(seen[:-1][-_SHOWN:]), "launches": len(seen)}
    return {
        "ok": True,
        "guilty": None,
        "launches": len(seen),
        "largest": max((one["error"] for one in seen), default=0.0),
    }


def _worst(launch: RecordedLaunch, found: Mapping[str, np.ndarray | None]) -> dict[str, Any]:
    """The buffer of a launch that is furthest off."""
    rows = [
        {"buffer": name, **distance(array, launch.written[name].astype(np.float64))}
        for name, array in found.items()
        if array is not None
    ]
    if not rows:
        return {"ok": True, "error": 0.0}
    worst = max(rows, key=lambda row: row["error"])
    return {"ok": worst["finite"] and worst["error"] <= BOUND, **worst}


def _errors(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    return [f"{row['label']} ({row['kernel']}): {row['error']:.2g}" for row in rows]


def _launched(device: BenchDevice, step: RecordedStep) -> Iterator[dict[str, np.ndarray | None]]:
    """After each launch, what it wrote; None for what is not judged."""
    program = device.plan.programs[step.program]
    places = blocked(program, step.sizes)
    if len(places) != len(step.launches):
        raise LlmcError(f"expected a step of {len(places)} launches", found=f"{len(step.launches)} recorded")
    device.send(step.program, step.sizes, step.inputs)
    bound = device.bound(step.program, step.sizes)
    for prepared, recorded in zip(bound.kernels, step.launches, strict=True):
        _launch(device, prepared, recorded)
        yield {
            name: None if program.buffers[name].dtype in _NOT_JUDGED else _buffer(device, bound, program, name)
            for name in recorded.written
        }


def _launch(device: BenchDevice, one: BoundLaunch, recorded: RecordedLaunch) -> None:
    device.driver.launch(one.config, one.function, one.parameters.address, one.label)
    try:
        device.driver.wait(device.stream)
    except LlmcError as error:
        raise LlmcError(f"cannot run launch {recorded.label} ({recorded.kernel})", found=error.found) from error


def _buffer(device: BenchDevice, bound: BoundProgram, program: Program, name: str) -> np.ndarray:
    span, driver = bound.buffers[name], device.driver
    with ExitStack() as cleanup:
        host = driver.allocate_host(span.nbytes, name)
        cleanup.callback(driver.free_host, host)
        driver.copy_out(host, span.at, span.nbytes, device.stream)
        driver.wait(device.stream)
        data = np.ctypeslib.as_array((ctypes.c_ubyte * span.nbytes).from_address(host)).copy()
    return numbers(data, program.buffers[name].dtype, span.shape)
