"""What the GPU benchmarks share: an engine of a shape, a loaded device, and the copy that speeds are held against."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from build8b import CONFIG

from llmc.runtime.cuda import probe
from llmc.runtime.cuda.device import CudaDevice, Options
from llmc.runtime.cuda.driver import Driver
from llmc.runtime.engine_file import EngineFile
from llmc.runtime.machine import cpu_count, cpu_name
from llmc.runtime.paged import PagedExecutor
from llmc.runtime.plan import Plan
from llmc.runtime.profiles import has_bindings

OUT = Path(os.environ.get("OUT", "benchmarks/results"))
SMALL = {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "tie_word_embeddings": True}
SHAPES: dict[str, dict[str, Any]] = {"8b": {}, "1b": {**SMALL, "head_dim": 64}}
"""Llama-3.1-8B, and Llama-3.2-1B by what it has otherwise."""
COPY_BYTES = 2 << 30


def parser(doc: str, name: str) -> argparse.ArgumentParser:
    """The options that all GPU benchmarks have."""
    made = argparse.ArgumentParser(description=doc.splitlines()[0])
    made.add_argument("--shape", choices=SHAPES, default="8b")
    made.add_argument("--quantize", default="fp8")
    made.add_argument("--max-batch", type=_positive, default=8)
    made.add_argument("--max-context", type=_positive, default=4096)
    made.add_argument("--engine", type=Path, help="an engine to measure, instead of one with random weights")
    made.add_argument("--work", type=Path, default=Path("build/gpu"), help="where engines are built, and kept")
    made.add_argument("--out", type=Path, default=OUT / f"{name}.json")
    made.add_argument("--dry-run", action="store_true", help="say what would be done; needs no GPU")
    return made


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text}: a number above 0")
    return number


def build_command(options: argparse.Namespace, sm: int) -> tuple[Path, list[str]]:
    """The engine to measure and the command that builds it, empty if it is given."""
    if options.engine is not None:
        return options.engine, []
    name = f"{options.shape}-{options.quantize}-b{options.max_batch}-c{options.max_context}-sm{sm}"
    checkpoint = options.work / options.shape
    path = options.work / f"{name}.llmc"
    command = [sys.executable, "-m", "llmc", "build", str(checkpoint), "-o", str(path), "--random-weights", "1"]
    command += ["--target", f"sm_{sm}", "--quantize", options.quantize, "--json"]
    return path, [*command, "--max-batch", str(options.max_batch), "--max-context", str(options.max_context)]


def engine_for(options: argparse.Namespace, sm: int) -> Path:
    """The engine, built unless it is there."""
    path, command = build_command(options, sm)
    if command and not path.exists():
        folder = options.work / options.shape
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps({**CONFIG, **SHAPES[options.shape]}, indent=1) + "\n")
        subprocess.run(command, check=True, stdout=subprocess.PIPE)
    return path


def dry_run(options: argparse.Namespace, sm: int = 90) -> None:
    """What a run would do; refuses what a run would refuse before it needs the GPU."""
    path, command = build_command(options, sm)
    if not command and not path.exists():
        raise SystemExit(f"{path}: no such engine")
    found = probe.look()
    said = {
        "engine": str(path),
        "build": command,
        "out": str(options.out),
        "bindings": has_bindings(),
        "gpus": [gpu.name for gpu in found.gpus],
        "problem": found.problem,
    }
    print(json.dumps(said))


def gpu() -> probe.Gpu:
    """The GPU to measure, or the end of this program."""
    found = probe.look()
    if not found.gpus:
        raise SystemExit(f"no GPU to measure: {found.problem}")
    return found.gpus[0]


@dataclass
class Loaded:
    """An executor, and the device and driver below it."""

    executor: PagedExecutor
    device: CudaDevice
    driver: Driver
    plan: Plan


def load(
    path: Path, sm: int, *, max_batch: int | None = None, options: Options | None = None, early: bool = False
) -> Loaded:
    """An engine on the first GPU. early: with programmatic dependent launch."""
    made: list[tuple[CudaDevice, Driver, Plan]] = []

    def make(engine: EngineFile, profile: str, plan: Plan, lanes: int) -> CudaDevice:
        driver, plan = Driver.load(), replace(plan, pdl=early)
        device = CudaDevice(engine, profile, plan, lanes, driver=driver, options=options)
        made.append((device, driver, plan))
        return device

    executor = PagedExecutor(EngineFile.open(path), f"sm_{sm}", make, max_batch=max_batch)
    return Loaded(executor, *made[0])


def copy_bandwidth(driver: Driver, *, nbytes: int = COPY_BYTES, rounds: int = 20) -> float:
    """Bytes/s of a device-to-device copy, read and written counted: the median of rounds, timed by the GPU."""
    stream = driver.stream()
    source, target = driver.allocate(nbytes, "a copy"), driver.allocate(nbytes, "a copy")
    driver.fill(source, 0x5B, nbytes, stream)
    events = [driver.event(timing=True) for _ in range(rounds + 1)]
    for _ in range(3):
        driver.copy(target, source, nbytes, stream)
    for event in events[:-1]:
        driver.record(event, stream)
        driver.copy(target, source, nbytes, stream)
    driver.record(events[-1], stream)
    driver.wait(stream)
    seconds = median(driver.elapsed(a, b) for a, b in pairwise(events))
    for event in events:
        driver.drop_event(event)
    driver.free(source)
    driver.free(target)
    driver.drop_stream(stream)
    return 2 * nbytes / seconds


def machine(found: probe.Gpu) -> str:
    return f"{found.name}, CUDA {probe.look().driver}; {cpu_name()}, {cpu_count()} threads"


def write(path: Path, result: Any) -> None:
    """The result as a file, and as the last line of stdout."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))
