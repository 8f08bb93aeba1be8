"""Launch plans of latent attention, interpreted: against the oracle, in steps of every kind, and what is cached."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.engines import NARROW, quantized_logits, relative, some_ids
from support.running import run_some
from support.samples.families import Case, check_simulated, uncompiled, write

import llmc
from llmc.compiler.families.latent import latent
from llmc.compiler.families.latents import deepseek_v3
from llmc.compiler.families.spec import Latent, Temperature
from llmc.compiler.targets.cuda import emit
from llmc.compiler.targets.simulate.device import SimulatedDevice
from llmc.runtime.engine_file.file import EngineFile
from llmc.runtime.plan.budget import block_bytes
from llmc.runtime.plan.executor import PagedExecutor
from llmc.runtime.plan.plan import KVCache, Plan
from llmc.runtime.plan.price import CACHE, Roofline, price
from llmc.runtime.scheduling.executor import ScheduledSequence
from llmc.runtime.scheduling.request import Request
from llmc.runtime.scheduling.scheduler import Scheduler

DENSE: dict[str, Any] = {
    **NARROW,
    "hidden_size": 128,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_key_value_heads": 4,
    "first_k_dense_replace": 2,
    "kv_lora_rank": 64,
    "q_lora_rank": 128,
    "qk_rope_head_dim": 16,
    "qk_nope_head_dim": 32,
    "v_head_dim": 32,
    "num_mtp_layers": 0,
}
"""Layers without experts."""


@pytest.fixture(autouse=True)
def _interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(emit, "compile_all", uncompiled)


def _written(folder: Path, **changes: object) -> Path:
    return write(folder / "c", "deepseek_v3", Case({**DENSE, **changes}, torch.bfloat16))


@pytest.mark.parametrize(
    ("quantize", "changes", "bound"),
    [
        ("none", {}, 3e-2),
        ("int4", {}, 6e-2),
        pytest.param("none", {"q_lora_rank": None, "rope_interleave": False}, 3e-2, marks=pytest.mark.soak),
        pytest.param("int4", {"num_attention_heads": 20, "num_key_value_heads": 20}, 6e-2, marks=pytest.mark.soak),
    ],
)
def test_the_plan_says_what_the_oracle_says(
    tmp_path: Path, quantize: str, changes: dict[str, object], bound: float
) -> None:
    check_simulated(_written(tmp_path, **changes), quantize, tmp_path, 70, bound)


def _plan(path: Path) -> Plan:
    with EngineFile.open(path) as engine:
        return Plan.from_json(engine.section(engine.manifest.profiles["sm_90"].graph), what="plan")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _written(tmp_path_factory.mktemp("latent"), num_hidden_layers=1, first_k_dense_replace=1)


@pytest.fixture
def engine(checkpoint: Path, tmp_path: Path) -> Path:
    return llmc.build(checkpoint, tmp_path / "a.llmc", targets=["sm_90"], max_batch=3)


@contextmanager
def _executor(path: Path, batch: int) -> Iterator[PagedExecutor]:
    executor = PagedExecutor(EngineFile.open(path), "sm_90", SimulatedDevice, max_batch=batch)
    try:
        yield executor
    finally:
        executor.close()


def _tokens(executor: PagedExecutor, requests: list[Request]) -> list[list[int]]:
    """The tokens of each request; all blocks are free in the end."""
    scheduler = Scheduler(executor)
    run_some(scheduler, requests, len(requests))
    assert scheduler.free_blocks == tuple(kind.blocks for kind in executor.caches)
    return [request.tokens for request in requests]


def _in_steps(path: Path, ids: list[int], steps: tuple[int, ...], prompt: int) -> np.ndarray:
    """Logits of all positions, of one sequence in scattered blocks; steps behind the prompt run the decode program."""
    rows, start = [], 0
    with _executor(path, 2) as executor:
        for count in steps:
            whole = max(prompt, start)
            scheduled = ScheduledSequence(
                0, tuple(ids[start : start + count]), start, ((3, 0, 2),), None, whole, rows="all"
            )
            (output,) = executor.collect(executor.submit((scheduled,)))
            rows.append(output.logits)
            start += count
    return np.concatenate(rows)


def test_chunks_and_single_tokens_give_what_the_oracle_gives(engine: Path, checkpoint: Path) -> None:
    """The decode steps have three blocks to read, in two splits."""
    ids = some_ids(140, 3, NARROW["vocab_size"])
    found = _in_steps(engine, ids, (1, 63, 1, 70, *[1] * 5), 135)
    assert relative(found, quantized_logits(engine, "none", ids, checkpoint)) < 3e-2
    splits = [module.constants["SPLITS"] for module in _plan(engine).modules if module.kernel == "latent_decode"]
    assert splits == [2]


def test_a_cache_in_fp8_is_within_its_rounding(engine: Path, checkpoint: Path, tmp_path: Path) -> None:
    ids = some_ids(75, 5, NARROW["vocab_size"])
    path = llmc.build(checkpoint, tmp_path / "b.llmc", targets=["sm_90"], max_batch=3, kv="fp8")
    found = _in_steps(path, ids, (40, 30, *[1] * 5), 70)
    error = relative(found, quantized_logits(engine, "none", ids, checkpoint))
    assert 3e-2 < error < 0.2, "E4M3 has 4 significant bits, and scores of random weights are large"


def test_requests_together_get_what_they_get_alone(engine: Path) -> None:
    """Prompts that share a block, one that is short, and more requests than run at once."""
    shared = some_ids(70, 5, NARROW["vocab_size"])
    prompts = [shared, shared[:3], [*shared[:66], 7], shared]
    alone = []
    for prompt in prompts:
        with _executor(engine, 1) as executor:
            alone += _tokens(executor, [Request(tuple(prompt), 3)])
    with _executor(engine, 2) as executor:
        assert _tokens(executor, [Request(tuple(prompt), 3) for prompt in prompts]) == alone


def test_a_prompt_reads_the_rows_of_an_equal_one_before_it(engine: Path, checkpoint: Path) -> None:
    prompt = some_ids(70, 9, NARROW["vocab_size"])
    with _executor(engine, 1) as executor:
        scheduler, (first, second) = Scheduler(executor), (Request(tuple(prompt), 3) for _ in range(2))
        for request in (first, second):
            run_some(scheduler, [request], 1)
    assert second.lease.cached == 64 and first.tokens == second.tokens
    rows = quantized_logits(engine, "none", [*prompt, *second.tokens], checkpoint)[69:-1]
    margin = rows.max(axis=1) - rows[np.arange(3), second.tokens]
    assert (margin <= 6e-2 * np.abs(rows).max()).all()


def test_queries_are_multiplied_by_the_factors_of_their_positions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def tempered(*given: Any, **options: Any) -> Latent:
        return replace(latent(*given, **options), temperature=Temperature(beta=0.3, original=8))

    monkeypatch.setattr(deepseek_v3, "latent", tempered)
    where = _written(tmp_path, num_hidden_layers=1, first_k_dense_replace=1)
    path = llmc.build(where, tmp_path / "a.llmc", targets=["sm_90"], max_batch=2)
    ids = some_ids(75, 3, NARROW["vocab_size"])
    expected = quantized_logits(path, "none", ids, where)
    assert relative(_in_steps(path, ids, (40, 30, *[1] * 5), 70), expected) < 3e-2
    monkeypatch.undo()
    assert relative(quantized_logits(path, "none", ids, where), expected) > 0.06, "the factors matter"


def test_a_block_holds_rows_and_nothing_else(engine: Path) -> None:
    """Its price is one read of a row; a new token multiplies it twice, as key and as value."""
    plan = _plan(engine)
    caches = {name: tensor for name, tensor in plan.tensors.items() if tensor.kind == "cache"}
    assert {name: tensor.shape for name, tensor in caches.items()} == {"past.0.key": ("blocks", "1", "64", "80")}
    (kind,) = plan.caches
    assert kind == KVCache(4, rank=64) and block_bytes(plan, kind) == 64 * 80 * 2
    limits, sizes = Roofline(1e12, 1e15), {"tokens": 1, "sequences": 1, "rows": 1}
    decode = next(program for program in plan.programs if program.decode)
    (line,) = [
        one for one in price(plan, decode, limits, sizes=sizes, context=100, heads=4).lines if one.label == CACHE
    ]
    assert line.bytes == 100 * 80 * 2 and line.operations == 100 * 2 * 4 * (80 + 64)
