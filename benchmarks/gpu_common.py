"""Shared parts of the GPU benchmarks: an engine of a shape, a loaded device, and the copy as a unit of speed."""

from __future__ import annotations

import argparse
import json
import os
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bringup.bench import seconds
from gpu_engines import SHAPES, EngineSpec

from llmc.runtime.cuda import gpus
from llmc.runtime.cuda.contents import EngineContents
from llmc.runtime.cuda.device import CudaDevice
from llmc.runtime.cuda.driver import Driver
from llmc.runtime.engine_file.file import EngineFile
from llmc.runtime.machine import cpu_count, cpu_name
from llmc.runtime.plan.executor import PagedExecutor
from llmc.runtime.plan.plan import Plan
from llmc.runtime.profiles import has_bindings

OUT = Path(os.environ.get("OUT", "benchmarks/results"))
COPY_BYTES = 2 << 30


def parser(doc: str, name: str) -> argparse.ArgumentParser:
    """The options that all GPU benchmarks have."""
    made = argparse.ArgumentParser(description=doc.splitlines()[0])
    made.add_argument("--shape", choices=SHAPES, default="8b")
    made.add_argument("--quantize", default="fp8")
    made.add_argument("--activations", choices=("none", "fp8"), default="none")
    made.add_argument("--kv", choices=("none", "fp8"), default="none")
    made.add_argument("--max-batch", type=positive, default=8)
    made.add_argument("--max-context", type=positive, default=4096)
    made.add_argument("--engine", type=Path, help="an engine to measure, instead of one with random weights")
    made.add_argument("--work", type=Path, default=Path("build/gpu"), help="where engines are built, and kept")
    made.add_argument("--out", type=Path, default=OUT / f"{name}.json")
    made.add_argument("--dry-run", action="store_true", help="say what would be done; needs no GPU")
    return made


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text}: a number above 0")
    return number


def engine_for(options: argparse.Namespace, sm: int) -> Path:
    """The engine to measure; built if it is neither given nor present."""
    return options.engine or EngineSpec.of(options).built(options.work, sm)


def dry_run(options: argparse.Namespace, sm: int = 90) -> None:
    """Print what a run would do; refuse the options that a run refuses before it needs the GPU."""
    spec, path = EngineSpec.of(options), options.engine
    if path is not None and not path.exists():
        raise SystemExit(f"{path}: no such engine")
    found = gpus.detect()
    said = {
        "engine": str(path or spec.path(options.work, sm)),
        "build": [] if path is not None else spec.build_command(options.work, sm),
        "out": str(options.out),
        "bindings": has_bindings(),
        "gpus": [gpu.name for gpu in found.gpus],
        "problem": found.problem,
    }
    print(json.dumps(said))


def gpu() -> gpus.Gpu:
    """The GPU to measure; exits if there is none."""
    found = gpus.detect()
    if not found.gpus:
        raise SystemExit(f"no GPU to measure: {found.problem}")
    return found.gpus[0]


@dataclass
class Loaded:
    """An executor with its device and driver."""

    executor: PagedExecutor
    device: CudaDevice
    driver: Driver
    plan: Plan


def load(
    path: Path,
    sm: int,
    *,
    max_batch: int | None = None,
    graphs: bool = True,
    early: bool = False,
    kind: type[Driver] = Driver,
) -> Loaded:
    """Load an engine on the first GPU through a driver of class `kind`; `early` uses programmatic dependent launch."""
    made: list[tuple[CudaDevice, Driver, Plan]] = []

    def make(engine: EngineFile, profile: str, plan: Plan, slots: int) -> CudaDevice:
        driver, plan = kind.load(), replace(plan, pdl=early)
        device = CudaDevice(EngineContents(engine, profile), plan, slots, driver=driver, graphs=graphs)
        made.append((device, driver, plan))
        return device

    executor = PagedExecutor(EngineFile.open(path), f"sm_{sm}", make, max_batch=max_batch)
    return Loaded(executor, *made[0])


def copy_bandwidth(driver: Driver, *, nbytes: int = COPY_BYTES, rounds: int = 20) -> float:
    """Bytes/s of a device-to-device copy, read and written counted: the median of rounds, timed by the GPU."""
    with ExitStack() as cleanup:
        stream = _stream(driver, cleanup)
        source, target = (_allocated(driver, nbytes, cleanup) for _ in range(2))
        driver.fill(source, 0x5B, nbytes, stream)
        return 2 * nbytes / seconds(driver, stream, lambda: driver.copy(target, source, nbytes, stream), rounds=rounds)


def upload_bandwidth(driver: Driver, *, nbytes: int = 256 << 20, rounds: int = 10) -> float:
    """Bytes/s of a copy from pinned host memory to the GPU, likewise."""
    with ExitStack() as cleanup:
        stream = _stream(driver, cleanup)
        target, host = _allocated(driver, nbytes, cleanup), driver.allocate_host(nbytes, "a copy")
        cleanup.callback(driver.free_host, host)
        return nbytes / seconds(driver, stream, lambda: driver.copy_in(target, host, nbytes, stream), rounds=rounds)


def _stream(driver: Driver, cleanup: ExitStack) -> Any:
    stream = driver.stream()
    cleanup.callback(driver.drop_stream, stream)
    return stream


def _allocated(driver: Driver, nbytes: int, cleanup: ExitStack) -> int:
    address = driver.allocate(nbytes, "a copy")
    cleanup.callback(driver.free, address)
    return address


def machine(found: gpus.Gpu) -> str:
    return f"{found.name}, CUDA {gpus.detect().driver}; {cpu_name()}, {cpu_count()} threads"


def write(path: Path, result: Any) -> None:
    """The result as a file, and as the last line of stdout."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))
