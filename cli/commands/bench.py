"""`llmc bench`: how fast an engine reads and writes here, and how near that is to the memory's limit."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Annotated

from ...runtime.errors import RecipeError
from ..common import console, huge_pages, options
from ..common.options import flag

if TYPE_CHECKING:
    from ...runtime.engine import Engine


_TEXT = """\
{engine}: profile {profile}, {threads} threads, batch {batch}, loaded in {load_s:.2f} s
  prefill {prefill_tokens_per_s:.1f} tokens/s ({prompt_tokens} tokens a prompt, first token after {ttft_s:.3f} s)
  decode  {decode_tokens_per_s:.1f} tokens/s (median of {repeat} runs of {new_tokens} tokens)
  weights {weight_bytes_per_step!b} a step, {weight_bytes_per_s!g:.2f} GB/s: {percent:.0f} % of the \
{memory_bytes_per_s!g:.1f} GB/s that {threads} threads read here"""


def bench(
    engine: options.EngineFile,
    prompt_tokens: Annotated[int, flag("--prompt-tokens", "Tokens of each prompt.", min=1)] = 128,
    new_tokens: Annotated[int, flag("--new-tokens", "Tokens to generate for each prompt.", min=2)] = 64,
    batch: Annotated[int, flag("--batch", "Prompts at the same time.", min=1)] = 1,
    repeat: Annotated[int, flag("--repeat", "Runs, after one to warm up; the median counts.", min=1)] = 3,
    profile: options.Profile = None,
    threads: options.Threads = None,
    json: options.Json = False,
) -> None:
    """Measure prefill and decode speed."""
    from ...runtime.engine_file.file import EngineFile
    from ...runtime.load import load
    from ...runtime.machine import cpu_count, read_bandwidth

    huge_pages.ensure(Path(engine))
    with EngineFile.open(engine) as opened:
        manifest = opened.manifest
    used = threads or cpu_count()
    bandwidth = read_bandwidth(used)
    with load(engine, profile, threads=threads, max_batch=batch) as loaded:
        if prompt_tokens + new_tokens > loaded.max_context:
            raise RecipeError(
                f"expected --prompt-tokens and --new-tokens of at most {loaded.max_context} together, the context",
                found=f"{prompt_tokens} and {new_tokens}",
            )
        prompts = _prompts(manifest.model.vocab_size, prompt_tokens, batch)
        runs = [_measure(loaded, prompts, new_tokens) for _ in range(repeat + 1)][1:]
        name, load_s = loaded.profile, loaded.load_s
    ttft, decode = map(median, zip(*runs, strict=True))
    weights = manifest.profiles[name].needs["step_bytes"]
    facts = {
        "profile": name,
        "threads": used,
        "batch": batch,
        "prompt_tokens": prompt_tokens,
        "new_tokens": new_tokens,
        "repeat": repeat,
        "load_s": round(load_s, 4),
        "ttft_s": round(ttft, 4),
        "prefill_tokens_per_s": round(batch * prompt_tokens / ttft, 2),
        "decode_tokens_per_s": round(decode, 2),
        "weight_bytes_per_step": weights,
        "weight_bytes_per_s": round(weights * decode / batch),
        "memory_bytes_per_s": round(bandwidth),
        "memory_share": round(weights * decode / batch / bandwidth, 4),
    }
    console.show(facts, console.fill(_TEXT, facts, engine=engine, percent=100 * facts["memory_share"]), json)


def _prompts(vocabulary: int, length: int, count: int) -> list[list[int]]:
    """Fixed ids spread over the vocabulary, another order for each prompt."""
    return [[(7919 * (index + 1) + 104729 * row) % vocabulary for index in range(length)] for row in range(count)]


def _measure(engine: Engine, prompts: Sequence[list[int]], new_tokens: int) -> tuple[float, float]:
    """Seconds from the start to the first token of every prompt, and tokens per second of all from then on."""
    start = time.perf_counter()
    with ThreadPoolExecutor(len(prompts)) as pool:
        arrivals = list(pool.map(lambda ids: _arrivals(engine, ids, new_tokens), prompts))
    first = max(times[0] for times in arrivals)
    last = max(times[-1] for times in arrivals)
    after = sum(moment > first for times in arrivals for moment in times)
    return first - start, after / (last - first)


def _arrivals(engine: Engine, ids: list[int], new_tokens: int) -> list[float]:
    with engine.stream(ids, max_tokens=new_tokens, temperature=0.0, ignore_eos=True) as stream:
        return [time.perf_counter() for piece in stream if piece.token is not None]
