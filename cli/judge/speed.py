"""How `llmc bench` measures: fixed prompts that run together, timed token by token."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import product
from statistics import median
from typing import TYPE_CHECKING

from ...runtime.errors import RecipeError, ResourceError

if TYPE_CHECKING:
    from ...runtime.engine import Engine
    from .subjects import Subject

_COUNT = re.compile(r"[0-9]{1,9}")


@dataclass(frozen=True)
class Load:
    """Prompts that run together: their number, and the tokens that each reads and writes."""

    prompt_tokens: int
    new_tokens: int
    batch: int


@dataclass(frozen=True)
class Speed:
    """Medians of several runs."""

    ttft: float
    """Seconds from the start to the first token of every prompt."""
    decode: float
    """Tokens a second of all prompts from then on."""


def sweep(prompt_tokens: str, new_tokens: str, batch: str, most: Subject) -> list[Load]:
    """Every combination of the flags' numbers, checked against what the engine can run before anything is loaded.

    Raises:
        RecipeError: a flag has another form, or a number is beyond the engine's batch or context.
    """
    prompts = _numbers("--prompt-tokens", prompt_tokens, least=1, example="128,512")
    new = _numbers("--new-tokens", new_tokens, least=2, example="64")
    batches = _numbers("--batch", batch, least=1, example="1,8")
    limits = most.limits
    if max(batches) > limits.max_batch:
        raise RecipeError(
            f"expected --batch of at most {limits.max_batch}, the engine's",
            found=str(max(batches)),
            fix=f"llmc build --max-batch {max(batches)}",
        )
    refuse_beyond(limits.max_context, max(prompts), max(new))
    return [Load(*one) for one in product(prompts, new, batches)]


def refuse_beyond(context: int, prompt_tokens: int, new_tokens: int) -> None:
    """Check that prompt and answer fit the context.

    Raises:
        RecipeError: they do not.
    """
    if prompt_tokens + new_tokens > context:
        raise RecipeError(
            f"expected --prompt-tokens and --new-tokens of at most {context} together, the context",
            found=f"{prompt_tokens} and {new_tokens}",
        )


def refuse_smaller(engine: Engine, loads: Sequence[Load]) -> None:
    """Check that the engine, as it was loaded, runs each batch at once: a GPU with little memory may not.

    Raises:
        ResourceError: a batch is larger than that.
    """
    largest = max(load.batch for load in loads)
    if largest > engine.max_batch:
        raise ResourceError(
            f"cannot run {largest} prompts at the same time here",
            found=f"memory for {engine.max_batch}",
            fix=f"--batch {engine.max_batch}",
        )
    refuse_beyond(engine.max_context, max(load.prompt_tokens for load in loads), max(load.new_tokens for load in loads))


def measure(engine: Engine, load: Load, repeat: int) -> Speed:
    """Run a load once to warm up, then `repeat` times."""
    prompts = [prompts_of(engine.vocab_size, load, run) for run in range(repeat + 1)]
    runs = [_run(engine, some, load.new_tokens) for some in prompts][1:]
    return Speed(*map(median, zip(*runs, strict=True)))


def _numbers(flag: str, text: str, *, least: int, example: str) -> list[int]:
    parts = [part.strip() for part in text.split(",")]
    if not all(_COUNT.fullmatch(part) and int(part) >= least for part in parts):
        raise RecipeError(
            f"expected {flag} as whole numbers from {least}, with commas between them",
            found=repr(text[:80]),
            fix=f"{flag} {example}",
        )
    return [int(part) for part in parts]


def prompts_of(vocabulary: int, load: Load, run: int) -> list[list[int]]:
    """Fixed ids, others for each prompt, load and run: an engine reads an equal beginning from its cache."""
    import numpy as np

    seeds = [[load.prompt_tokens, load.new_tokens, load.batch, run, row] for row in range(load.batch)]
    return [np.random.default_rng(seed).integers(0, vocabulary, load.prompt_tokens).tolist() for seed in seeds]


def _run(engine: Engine, prompts: Sequence[list[int]], new_tokens: int) -> tuple[float, float]:
    """Seconds from the start to the first token of every prompt, and tokens a second of all from then on.

    Times are those of the thread that runs the steps: a reader may wake up late, and see many tokens at one moment.
    """
    start = time.perf_counter()
    with ExitStack() as running:
        streams = [
            running.enter_context(engine.stream(ids, max_tokens=new_tokens, temperature=0.0, ignore_eos=True))
            for ids in prompts
        ]
        for stream in streams:
            stream.result()
        ready = [stream.request.times for stream in streams]
    first = max(times[0] for times in ready)
    last = max(times[-1] for times in ready)
    after = sum(moment > first for times in ready for moment in times)
    return first - start, after / (last - first)
