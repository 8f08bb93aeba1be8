"""Two ranks of one thread against one process of two threads, on a Llama-3.2-1B shape with random int4 weights.

    python benchmarks/ranks.py [--rounds 5] [--work build/ranks]

A round starts each contender in a process of its own, warms it up, and times greedy decoding of one sequence and the
prefill of four prompts of 512 tokens at once; the order rotates. A ratio is the median of the rounds' ratios to the one
process, so that a slow minute slows both sides of it. `share` is the part of rank 0's decode time that it spends in
collectives, its waits for the other rank included. Decoding over pipeline stages has no goal: both stages read weights
from the same memory, one after the other.

`reads` is what loading a rank reads of the file, whose pages were dropped before: its own bytes, and the pages that the
system then holds. Columns of a weight lie in rows, so a page of such a weight has bytes of several ranks.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import mmap
import os
import subprocess
import sys
import time
from datetime import date
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from llama1b import CONFIG, RECIPE  # pyright: ignore[reportMissingImports]

import llmc
from llmc.runtime.engine_file.bind import from_json
from llmc.runtime.engine_file.extents import extents
from llmc.runtime.engine_file.file import EngineFile
from llmc.runtime.machine import cpu_count, cpu_name

RESULTS = Path(__file__).parent / "results" / "ranks.json"
ONE, TENSOR, PIPELINE = "cpu", "cpu-tp2", "cpu-pp2"
GOALS = {TENSOR: ("decode", 0.85), PIPELINE: ("prefill", 0.9)}
THREADS, PROMPTS, PROMPT_TOKENS, NEW_TOKENS = 2, 4, 512, 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--work", type=Path, default=Path("build/ranks"))
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child is not None:
        print(json.dumps(of_process(*options.child)))
        return
    engine = built(options.work)
    rounds = [one_round(engine, number) for number in range(options.rounds)]
    result: dict[str, Any] = {
        "machine": f"{cpu_name()}, {cpu_count()} threads",
        "date": date.today().isoformat(),
        "commit": subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip(),
        "rounds": rounds,
        "medians": {
            name: {key: median(one[name][key] for one in rounds) for key in rounds[0][name]} for name in rounds[0]
        },
        "ratios": {
            name: {key: median(one[name][key] / one[ONE][key] for one in rounds) for key in ("decode", "prefill")}
            for name in GOALS
        },
        "reads": {label: reads(engine, label) for label in (f"{TENSOR}.rank-1", f"{PIPELINE}.rank-1")},
        "goals": {name: {key: goal} for name, (key, goal) in GOALS.items()},
    }
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    for name, figures in result["medians"].items():
        ratios = result["ratios"].get(name, {})
        print(f"{name}: " + ", ".join(f"{key} {value:.3g}" for key, value in figures.items()), end="")
        print("".join(f"; {key} {value:.3f} of one process" for key, value in ratios.items()))
    for label, figures in result["reads"].items():
        print(f"{label}: reads {figures['read'] / figures['own']:.2f} of its own bytes")


def built(work: Path) -> Path:
    """The engine with the three profiles."""
    folder, path = work / "checkpoint", work / "ranks.llmc"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(CONFIG))
        recipe = work / "int4.yaml"
        recipe.write_text(RECIPE)
        llmc.build(folder, path, recipe, parallel="tp1,tp2,pp2", max_context=1024, random_weights=0)
    return path


def one_round(engine: Path, number: int) -> dict[str, Any]:
    names = [ONE, *GOALS]
    found = {}
    for name in names[number % len(names) :] + names[: number % len(names)]:
        command = [sys.executable, __file__, "--child", str(engine), name]
        found[name] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return {name: found[name] for name in names}


def reads(engine: Path, label: str) -> dict[str, int]:
    """Bytes of the file, a rank's own ones, and those in memory after it has loaded."""
    with EngineFile.open(engine) as opened:
        weights = [from_json(weight) for weight in opened.profile(label).weights.values()]
        own = {part for weight in weights for part in extents(weight, opened.tensors)}
    with engine.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    load = f"CpuExecutor(EngineFile.open({str(engine)!r}), {label!r}, threads=1, max_batch=1, exchange=object())"
    subprocess.run([sys.executable, "-c", f"{_IMPORTS}\n{load}"], check=True)
    bytes_ = engine.stat().st_size
    return {"file": bytes_, "own": sum(part.nbytes * part.count for part in own), "read": in_memory(engine, bytes_)}


_IMPORTS = """from llmc.runtime.cpu.executor import CpuExecutor
from llmc.runtime.engine_file.file import EngineFile"""


def in_memory(path: Path, size: int) -> int:
    """Bytes of the file's pages that are in the page cache (mincore)."""
    libc = ctypes.CDLL(None)
    with path.open("rb") as file, mmap.mmap(file.fileno(), size, prot=mmap.PROT_READ) as mapped:
        view = np.frombuffer(mapped, np.uint8)
        found = np.zeros(-(-size // mmap.PAGESIZE), np.uint8)
        arguments = (ctypes.c_void_p(view.ctypes.data), ctypes.c_size_t(size), ctypes.c_void_p(found.ctypes.data))
        if libc.mincore(*arguments):
            raise OSError("mincore")
        del view
    return int((found & 1).sum()) * mmap.PAGESIZE


def of_process(path: str, profile: str) -> dict[str, float]:
    """Tokens a second, and the share of decoding in collectives."""
    random = np.random.default_rng(0)
    prompts = [[int(token) for token in random.integers(5, 100_000, PROMPT_TOKENS)] for _ in range(PROMPTS)]
    with llmc.load(path, profile, threads=THREADS) as engine:
        rank: Any = getattr(engine._loop._executor, "_local", engine._loop._executor)
        engine.generate(prompts[0][:64], max_tokens=4, ignore_eos=True)
        before = rank.exchange_s
        decode = engine.generate(prompts[1][:8], max_tokens=NEW_TOKENS, ignore_eos=True)
        spent = rank.exchange_s - before
        started = time.perf_counter()
        engine.generate(prompts, max_tokens=1, ignore_eos=True)
        seconds = time.perf_counter() - started
    rate = decode.timings.decode_tokens_per_s
    return {
        "decode": rate,
        "prefill": PROMPTS * PROMPT_TOKENS / seconds,
        "share": spent * rate / NEW_TOKENS,
        "load": decode.timings.load_s,
    }


if __name__ == "__main__":
    main()
