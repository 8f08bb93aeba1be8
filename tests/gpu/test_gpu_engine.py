"""A real engine on a GPU: logits are the oracle's, and tokens do not depend on graphs or on who else is running."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from gpu_engines import SMALL_ENGINES  # pyright: ignore[reportMissingImports]
from support.engines import quantized_logits, relative, some_ids
from support.running import run_some

from llmc.runtime.cuda.contents import EngineContents
from llmc.runtime.cuda.device import CudaDevice
from llmc.runtime.cuda.driver import Driver
from llmc.runtime.engine_file.file import EngineFile
from llmc.runtime.plan.executor import PagedExecutor
from llmc.runtime.plan.plan import Plan
from llmc.runtime.sampling.params import SamplingParams
from llmc.runtime.scheduling.executor import ScheduledSequence
from llmc.runtime.scheduling.request import Request
from llmc.runtime.scheduling.scheduler import Scheduler

BOUND = 3e-2
"""Largest max|a-b|/max|b| of logits: activations are bfloat16 between operators."""
PROMPTS = tuple(tuple(some_ids(count, seed)) for seed, count in enumerate((5, 33, 70, 65, 200)))
TOKENS = 32


@contextmanager
def on_gpu(path: Path, sm: int, *, graphs: bool = True, batch: int = 4) -> Iterator[PagedExecutor]:
    def make(engine: EngineFile, profile: str, plan: Plan, slots: int) -> CudaDevice:
        return CudaDevice(EngineContents(engine, profile), plan, slots, graphs=graphs)

    executor = PagedExecutor(EngineFile.open(path), f"sm_{sm}", make, max_batch=batch)
    try:
        yield executor
    finally:
        executor.close()


@pytest.fixture(scope="module", params=[spec for spec in SMALL_ENGINES if spec.formats == spec.quantize], ids=str)
def engine(request: pytest.FixtureRequest, gpu: Driver, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    return request.param.built(tmp_path_factory.mktemp("gpu"), gpu.sm, "cpu,sm_{}"), request.param.quantize


def generate(executor: PagedExecutor, *, together: int, params: SamplingParams | None = None) -> list[list[int]]:
    """Every prompt's tokens, `together` of them running at a time."""
    scheduler = Scheduler(executor)
    requests = [Request(prompt, TOKENS, params or SamplingParams()) for prompt in PROMPTS]
    run_some(scheduler, requests, together)
    for request in requests:
        request.wait()
    return [request.tokens for request in requests]


def test_prompt_logits_are_the_oracles(gpu: Driver, engine: tuple[Path, str]):
    path, quantize = engine
    ids = some_ids(200, 7)
    with on_gpu(path, gpu.sm) as executor:
        rows = []
        for start, stop in ((0, 1), (1, 64), (64, 65), (65, 200)):
            scheduled = ScheduledSequence(0, tuple(ids[start:stop]), start, ((3, 0, 2, 1),), None, len(ids), rows="all")
            (output,) = executor.collect(executor.submit((scheduled,)))
            rows.append(output.logits)
    assert relative(np.concatenate(rows), quantized_logits(path, quantize, ids)) < BOUND


def test_tokens_are_the_oracles_choices(gpu: Driver, engine: tuple[Path, str]):
    path, quantize = engine
    with on_gpu(path, gpu.sm) as executor:
        answers = generate(executor, together=3)
    for prompt, tokens in zip(PROMPTS, answers, strict=True):
        assert len(tokens) == TOKENS
        rows = quantized_logits(path, quantize, [*prompt, *tokens])[len(prompt) - 1 : -1]
        margin = rows.max(axis=1) - rows[np.arange(len(tokens)), tokens]
        assert (margin <= 2 * BOUND * np.abs(rows).max()).all()
        assert (margin == 0).mean() >= 0.8


@pytest.mark.parametrize("params", [SamplingParams(), SamplingParams(temperature=0.9, top_k=40, top_p=0.95, seed=3)])
def test_graphs_do_what_launches_do(gpu: Driver, engine: tuple[Path, str], params: SamplingParams):
    answers = []
    for graphs in (True, False):
        with on_gpu(engine[0], gpu.sm, graphs=graphs) as executor:
            answers.append(generate(executor, together=3, params=params))
    assert answers[0] == answers[1]


def test_the_same_run_gives_the_same_tokens(gpu: Driver, engine: tuple[Path, str]):
    with on_gpu(engine[0], gpu.sm) as executor:
        assert generate(executor, together=4) == generate(executor, together=4)


def test_closing_gives_all_memory_back(gpu: Driver, engine: tuple[Path, str]):
    with on_gpu(engine[0], gpu.sm):
        pass  # the driver keeps a little for itself after the first time
    gpu.use()
    before = gpu.memory()[0]
    for _ in range(3):
        with on_gpu(engine[0], gpu.sm) as executor:
            generate(executor, together=2)
    gpu.use()
    assert before - gpu.memory()[0] < 8 << 20
