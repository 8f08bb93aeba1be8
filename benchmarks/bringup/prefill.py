"""Step B6: whole prompts of 2,048 tokens without weights: time to the first token, and operations per second."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from functools import partial
from statistics import median
from typing import Any

import numpy as np

from bringup import carry
from bringup.bench import Bench
from bringup.decode import BenchDevice, opened
from bringup.step import Item, Step
from llmc.runtime.plan.formula import value
from llmc.runtime.plan.inputs import idle_inputs
from llmc.runtime.plan.plan import BLOCK_TOKENS

TOKENS = 2048
ROUNDS = 10
PLANS = (carry.FP8, carry.BF16)


def prompt_inputs(device: BenchDevice, sizes: Mapping[str, int]) -> dict[str, np.ndarray]:
    """A greedy step with one whole prompt, which computes the logits of its last token."""
    tokens, inputs = sizes["tokens"], idle_inputs(device.plan, sizes)
    vocab = int(device.plan.tensors["token_counts"].shape[1])
    inputs["token_ids"][:] = np.random.default_rng(0).integers(0, vocab, tokens)
    inputs["positions"][:] = np.arange(tokens)
    inputs["slot_mapping"][:] = np.arange(tokens)
    blocks = -(-tokens // BLOCK_TOKENS)
    inputs["block_tables"][0, :blocks] = np.arange(blocks) % device.blocks["blocks"]
    inputs["seq_lens"][:] = tokens
    inputs["query_start_loc"][1:] = tokens
    inputs["logits_indices"][:] = tokens - 1
    inputs["sample_positions"][:] = tokens
    return inputs


def measured(bench: Bench, name: str, tokens: int = TOKENS) -> Mapping[str, Any]:
    """Median seconds of a step with a whole prompt, from its inputs on the host to its token there."""
    device = opened(bench, name, pdl=True)
    sizes = {"tokens": tokens, "sequences": 1, "rows": 1}
    chosen = device.plan.program_for(decode=False, **sizes)
    program, inputs, taken = device.plan.programs.index(chosen), prompt_inputs(device, sizes), []
    for _ in range(ROUNDS + 1):
        began = time.perf_counter()
        device.read(device.run(program, sizes, inputs, {"sampled"}))
        taken.append(time.perf_counter() - began)
    seconds = median(taken[1:])
    operations = sum(value(launch.operations, sizes) for launch in chosen.launches)
    return {
        "plan": name,
        "tokens": tokens,
        "ms": 1e3 * seconds,
        "first_ms": 1e3 * taken[0],
        "tokens_per_s": tokens / seconds,
        "operations": operations,
        "tflops": operations / seconds / 1e12,
    }


def row_name(plan: str) -> str:
    return f"{plan}, {TOKENS} tokens"


def _items(bench: Bench) -> Iterator[Item]:
    for name in PLANS:
        if name in bench.carry.plans:
            yield Item(row_name(name), partial(measured, name=name), 20.0)


STEP = Step("prefill", 20, _items)
