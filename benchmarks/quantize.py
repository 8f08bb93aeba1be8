"""Measures quantization speed per format beside the memory speed of the same minute: it decides a large build's time.

    python benchmarks/quantize.py [--rows 4096] [--columns 4096] [--rounds 9] [--out benchmarks/results/quantize.json]

Rates are in G weights/s of a bf16 tensor: the median and the best of interleaved rounds by the clock, and the best per
second of CPU time, which a busy machine disturbs less (times the cores = what an idle machine gives). Copying the same
tensor by all cores is the unit of `of copy`: no quantizer can be faster than reading weights and writing bytes.

What bounds the formats: each is a chain of passes of torch operators over a chunk that stays in cache, 4 to 12 G
weights/s a pass and core. fp8 has 5 passes, of which the conversion to E4M3 (1.5 G/s) takes half; int8 8; int4 11;
nvfp4 and mxfp4 21, of which the maximum over so short rows (2 G/s) is the slowest. Only a fused kernel would be much
faster. Dequantizing is bound by the table look-up (0.9 G/s for 8 bits, 2.8 for 4) and the first touch of its float32
result (1.4 G/s).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from llmc.quantize import FORMATS, require_finite
from llmc.runtime.machine import cpu_count, cpu_name

GOALS = {"fp8": 0.8, "int8": 0.5, "int8-g128": 0.5, "int4": 0.5, "int4-g128": 0.5, "nvfp4": 0.25, "mxfp4": 0.25}


def jobs(w: torch.Tensor) -> dict[str, Callable[[], object]]:
    """What is timed, by name: a copy, the largest magnitude, and both directions of every format."""
    target = torch.empty_like(w)
    amax = require_finite(w, "w")
    work: dict[str, Callable[[], object]] = {"copy": lambda: target.copy_(w), "amax": lambda: require_finite(w, "w")}
    for name, fmt in FORMATS.items():
        parts = fmt.quantize(w, amax)
        work[name] = lambda fmt=fmt: fmt.quantize(w, amax)
        work[f"{name} back"] = lambda fmt=fmt, parts=parts: fmt.dequantize(parts)
    return work


def measure(work: dict[str, Callable[[], object]], rounds: int, weights: int) -> dict[str, dict[str, float]]:
    """G weights/s of each job; the rounds interleave the jobs, so that a slow minute slows all of them."""
    clock: dict[str, list[float]] = {name: [] for name in work}
    cpu: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(rounds):
        for name, job in work.items():
            start, start_cpu = time.perf_counter(), time.process_time()
            job()
            clock[name].append(time.perf_counter() - start)
            cpu[name].append(time.process_time() - start_cpu)
    return {
        name: {
            "median": weights / statistics.median(clock[name]) / 1e9,
            "best": weights / min(clock[name]) / 1e9,
            "per_cpu_second": weights / min(cpu[name]) / 1e9,
        }
        for name in work
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--columns", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "quantize.json")
    args = parser.parse_args()

    generator = torch.Generator().manual_seed(0)
    w = torch.empty(args.rows, args.columns, dtype=torch.bfloat16)
    for rows in w.split(256):
        rows.copy_(torch.randn(rows.shape, generator=generator) * 0.02)
    rates = measure(jobs(w), args.rounds, w.numel())

    load = os.getloadavg()[0]  # runnable threads, ours included: far above the cores means other work disturbed this
    cores, copy = cpu_count(), rates["copy"]["median"]
    print(f"{cpu_name()}, {cores} cores, load {load:.1f}; bf16 [{args.rows}, {args.columns}]")
    print(f"copy {4 * copy:.1f} GB/s, read and written")
    print(f"{'G weights/s':<16}{'median':>8}{'best':>8}{'per CPU s':>11}{'of copy':>9}{'goal':>7}")
    for name, rate in rates.items():
        goal = f"{GOALS[name]:.2f}" if name in GOALS else ""
        row = f"{rate['median']:>8.2f}{rate['best']:>8.2f}{rate['per_cpu_second']:>11.2f}{rate['median'] / copy:>9.0%}"
        print(f"{name:<16}{row}{goal:>7}")

    args.out.parent.mkdir(parents=True, exist_ok=True)
    report = {
        "machine": {"cpu": cpu_name(), "cores": cores, "load": round(load, 1), "torch": torch.__version__},
        "tensor": {"dtype": "BF16", "shape": [args.rows, args.columns], "rounds": args.rounds},
        "unit": "G weights/s",
        "goals": GOALS,
        "rates": {name: {key: round(value, 3) for key, value in rate.items()} for name, rate in rates.items()},
    }
    args.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
