"""Runs a thousand random requests through the scheduler: all blocks are freed, and batching changes no greedy answer.

python benchmarks/gpu_soak.py [--requests 1000] [--quantize fp8] [--batch 16] [--seed 0]

Prompts and answers have random lengths, some prompts share a prefix with earlier ones (and its blocks), and every
fourth request is sampled. Greedy ones run again, one by one. Peer: those runs. A different answer is right only where
the two best logits at its first different token are closer than twice the noise, measured between a prompt computed at
once and token by token.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import gpu_common as common
import numpy as np
from gpu_engines import PICO_BATCH, SMALL_ENGINES
from gpu_tokens import Trace, first_difference, generate, noise, tie, traces

from llmc.runtime.sampling.params import SamplingParams
from llmc.runtime.scheduling.executor import Executor
from llmc.runtime.scheduling.request import Request

SAMPLED = SamplingParams(temperature=0.9, top_k=40, top_p=0.95, seed=3)
PROBES, PROBE_STEPS = 8, 16
"""Prompts that the noise is measured on, and tokens of each."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--requests", type=common.positive, default=1000)
    parser.add_argument("--batch", type=common.positive, default=PICO_BATCH)
    parser.add_argument("--quantize", default="fp8", choices=[spec.quantize for spec in SMALL_ENGINES])
    parser.add_argument("--engine", type=Path, help="an engine to soak, instead of building one")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=Path("build/gpu"))
    parser.add_argument("--out", type=Path, default=common.OUT / "gpu_soak.json")
    parser.add_argument("--dry-run", action="store_true")
    options = parser.parse_args()
    spec = next(one for one in SMALL_ENGINES if one.quantize == options.quantize)
    if options.dry_run:
        print(json.dumps({"engine": spec.formats, "requests": options.requests}))
        return
    gpu = common.gpu()
    engine = options.engine or spec.built(options.work, gpu.sm)
    loaded = common.load(engine, gpu.sm, max_batch=options.batch)
    try:
        found = soak(loaded.executor, options.requests, options.seed)
    finally:
        loaded.executor.close()
    common.write(options.out, {"machine": common.machine(gpu), "engine": engine.stem, "batch": options.batch, **found})
    sys.exit(not found["ok"])


def requests_of(executor: Executor, count: int, seed: int) -> list[Request]:
    """Random requests, the same for the same seed."""
    random = np.random.default_rng(seed)
    longest = executor.max_context * 3 // 4
    made: list[Request] = []
    for index in range(count):
        prompt = tuple(random.integers(0, executor.vocab, int(random.integers(1, longest))).tolist())
        if made and random.random() < 0.25:
            earlier = made[int(random.integers(len(made)))].prompt
            prompt = (earlier[: int(random.integers(1, len(earlier) + 1))] + prompt)[:longest]
        most = min(64, executor.max_context - len(prompt))
        params = SAMPLED if index % 4 == 3 else SamplingParams()
        made.append(Request(prompt, int(random.integers(1, most + 1)), params))
    return made


def soak(executor: Executor, count: int, seed: int) -> dict[str, Any]:
    """The requests' answers, together and alone."""
    requests = requests_of(executor, count, seed)
    blocks = sum(kind.blocks for kind in executor.caches)
    began = time.perf_counter()
    together, free = generate(executor, requests)
    seconds = time.perf_counter() - began
    greedy = [(request, answer) for request, answer in zip(requests, together, strict=True) if request.params.greedy]
    alone = [generate(executor, [request])[0][0] for request, _ in greedy]
    worst = noise_between_paths(executor, seed)
    places = [first_difference(answer, one) for (_, answer), one in zip(greedy, alone, strict=True)]
    wrong = []
    for (request, _), one, place in zip(greedy, alone, places, strict=True):
        if place is not None:
            (reached,) = traces(executor, [(*request.prompt, *one[:place])], 1)
            if not tie(reached, 0, worst):
                wrong.append(reached.margin(0))
    unanswered = [len(answer) for request, answer in zip(requests, together, strict=True)
                  if len(answer) != request.max_tokens]  # fmt: skip
    return {
        "ok": not wrong and not unanswered and free == blocks,
        "requests": count,
        "tokens": sum(map(len, together)),
        "seconds": seconds,
        "blocks": blocks,
        "blocks_returned": free,
        "greedy": len(greedy),
        "greedy_that_differ": sum(place is not None for place in places),
        "noise": worst,
        "margins_beyond_noise": wrong,
        "answers_of_wrong_length": len(unanswered),
    }


def noise_between_paths(executor: Executor, seed: int) -> float:
    """The largest difference of a logit between a context computed at once and the same one token by token."""
    random = np.random.default_rng(seed)
    worst = 0.0
    for _ in range(PROBES):
        prompt = random.integers(0, executor.vocab, int(random.integers(1, executor.max_context // 2))).tolist()
        (stepwise,) = traces(executor, [prompt], PROBE_STEPS)
        for step in range(1, PROBE_STEPS):
            reached, after = (*prompt, *stepwise.tokens[:step]), slice(step, step + 1)
            worst = max(worst, noise(executor, [Trace(reached, stepwise.ids[after], stepwise.logits[after])]).worst)
    return worst


if __name__ == "__main__":
    main()
