"""Call C: what has changed since the first call, tuned plans, and one real engine from its file to many requests.

C1 runs the cases and engines again whose code is not that of the first call's right results. C2 is B1 with the plans as
they are now carried. C3 builds the carried engine with weights in memory from carried kernels, starts it cold, and lets
the scheduler decode; C4 serves many requests with it; what time is left goes to random requests (soak).
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

from gpu_engines import EngineSpec

from bringup import agree, beside, cases
from bringup.bench import Bench
from bringup.journal import right
from bringup.step import Item, Step
from llmc.runtime.errors import LlmcError

MEMORY = Path("/dev/shm")
ROOM = 24 << 30
"""Free bytes that the folder in memory must have."""
FOLDER = "llmc-bringup"
INPUT, OUTPUT, PROMPT, TOKENS = 1000, 200, 1024, 256
SOAKED = 100
BUILD, LOAD, DECODE, SERVE, SOAK = 80.0, 30.0, 30.0, 45.0, 20.0
"""Seconds that each may take."""


def since(bench: Bench) -> Mapping[str, Mapping[str, Any]]:
    """Results of the first call, by item, as far as they were right; none where there is no such call."""
    path = bench.since or bench.journal.folder / "first.json"
    try:
        outcomes = json.loads(path.read_text())["outcomes"]
    except (OSError, ValueError, KeyError):
        return {}
    return {name: outcome["result"] for name, outcome in outcomes.items() if right(outcome)}


def changed_cases(bench: Bench) -> Iterator[Item]:
    """Cases whose machine code has not been right on a GPU yet."""
    known, codes = since(bench), {case.name: case.code for case in bench.carry.cases}
    for item in cases.items(bench):
        if known.get(f"cases/{item.name}", {}).get("code") != codes.get(item.name, ""):
            yield item


def changed_engines(bench: Bench) -> Iterator[Item]:
    """Engines whose plan has not been right on a GPU yet."""
    known = since(bench)
    for item in agree.items(bench):
        engine = bench.carry.unpacked("engines") / f"{item.name.rpartition(' ')[2]}.llmc"
        if known.get(f"agree/{item.name}", {}).get("plan") != agree.plan_digest(engine, bench.carry.sm):
            yield item


def spec_of(bench: Bench) -> EngineSpec:
    """The engine whose kernels are carried for a build.

    Raises:
        LlmcError: there is none.
    """
    facts = bench.carry.index["facts"].get("engine")
    if facts is None:
        raise LlmcError("expected carried kernels of an engine", found="none", fix="make the carry again")
    return EngineSpec(**facts)


@cache
def folder() -> Path:
    """Where the engine is built: in memory where there is room."""
    roomy = MEMORY.is_dir() and shutil.disk_usage(MEMORY).free >= ROOM
    return (MEMORY if roomy else Path(tempfile.gettempdir())) / FOLDER


def build(bench: Bench) -> Mapping[str, Any]:
    """Seconds that the build takes with all kernels carried, and its stages."""
    spec, sm = spec_of(bench), bench.carry.sm
    shutil.rmtree(folder(), ignore_errors=True)
    folder().mkdir(parents=True)
    spec.prepare(folder())
    tables = [
        word for path in sorted((bench.carry.folder / "tactics").glob("*.yaml")) for word in ("--tactics", str(path))
    ]
    found = _ran(bench, [*spec.build_command(folder(), sm), *tables], BUILD)
    told = found["told"]
    return {"seconds": found["program_s"], "bytes": _engine(bench).stat().st_size, "stages": told.get("stages")}


def cold_start(bench: Bench) -> Mapping[str, Any]:
    """Process start to first token in parts, the engine's file in memory."""
    command = beside.script("gpu_load.py", *_options(bench, "load"), "--rounds", 2, "--cold-rounds", 0)
    return _ran(bench, command, LOAD)["told"].get("warm", {})


def decode(bench: Bench) -> Mapping[str, Any]:
    """Tokens through scheduler, executor and device, at batch 1 and 8."""
    context = spec_of(bench).max_context
    sizes = ["--prompt", min(PROMPT, context // 2), "--tokens", min(TOKENS, context // 4), "--rounds", 2]
    command = beside.script("gpu_decode.py", *_options(bench, "decode"), "--batch", 1, 8, *sizes)
    rows = _ran(bench, command, DECODE)["told"].get("decode", [])
    return {f"batch {row['batch']}": row for row in rows}


def throughput(bench: Bench) -> Mapping[str, Any]:
    """As many requests at once as the engine takes, long prompts and answers, and the GPU's idle share."""
    spec = spec_of(bench)
    sizes = ["--input", min(INPUT, spec.max_context // 2), "--output", min(OUTPUT, spec.max_context // 4)]
    command = beside.script("gpu_throughput.py", *_options(bench, "throughput"), "--requests", spec.max_batch, *sizes)
    found = _ran(bench, command, SERVE)["told"]
    return {**found, "decode_step_ms": 1e3 * found["decode_step_s"]}


def soak(bench: Bench) -> Mapping[str, Any]:
    """Random requests on a small engine, together and alone."""
    engine = next(iter(sorted(bench.carry.unpacked("engines").glob("*.llmc"))), None)
    if engine is None:
        return {"skipped": "no engine is carried"}
    out = folder() / "soak.json"
    command = beside.script("gpu_soak.py", "--engine", engine, "--requests", SOAKED, "--out", out)
    return _ran(bench, command, SOAK)["told"]


def _engine(bench: Bench) -> Path:
    return spec_of(bench).path(folder(), bench.carry.sm)


def _options(bench: Bench, name: str) -> list[object]:
    """What the scripts are told of the engine.

    Raises:
        LlmcError: it has not been built.
    """
    if not _engine(bench).exists():
        raise LlmcError("expected an engine with weights", found="none: its build failed")
    out = folder() / f"{name}.json"
    return ["--engine", _engine(bench), "--work", folder(), "--out", out, *spec_of(bench).flags]


def _ran(bench: Bench, command: list[str], limit: float) -> dict[str, Any]:
    """A program that finds its kernels in what is carried."""
    bench.release()
    return beside.ran(command, limit - 1, {"LLMC_CACHE": str(bench.carry.unpacked("kernels").resolve().parent)})


def _engine_items(bench: Bench) -> Iterator[Item]:
    for name, run, limit in (
        ("build", build, BUILD),
        ("cold start", cold_start, LOAD),
        ("tokens", decode, DECODE),
        ("throughput", throughput, SERVE),
        ("soak", soak, SOAK),
    ):
        yield Item(name, partial(run), limit)


CASES, AGREE = Step("cases", 14, changed_cases), Step("agree", 14, changed_engines)
ENGINE = Step("engine", 110, _engine_items)
