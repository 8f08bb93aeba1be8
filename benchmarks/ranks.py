"""Two ranks of one thread against one process of two threads, on a Llama-3.2-1B shape with random int4 weights.

    python benchmarks/ranks.py [--rounds 5] [--work build/ranks]

A round starts each contender in a process of its own, warms it up, and times greedy decoding of one sequence and the
prefill of four prompts of 512 tokens at once; the order rotates. A ratio is the median of the rounds' ratios to the one
process, so that a slow minute slows both sides of it. `share` is the part of rank 0's decode time that it spends in
collectives, its waits for the other rank included. Decoding over pipeline stages has no goal: both stages read weights
from the same memory, one after the other.
"""

from __future__ import annotations

import argparse
import json
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
        "goals": {name: {key: goal} for name, (key, goal) in GOALS.items()},
    }
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    for name, figures in result["medians"].items():
        ratios = result["ratios"].get(name, {})
        print(f"{name}: " + ", ".join(f"{key} {value:.3g}" for key, value in figures.items()), end="")
        print("".join(f"; {key} {value:.3f} of one process" for key, value in ratios.items()))


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
