"""Ropes that depend on the length of the sequence: numbers and tokens are those of transformers 5.23.0 without a cache,
just below and above the original length, on the CPU and in interpreted launch plans.

transformers/modeling_rope_utils.py, dynamic_rope_update: all positions of a call have the table of its length.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.engines import checkpoint_logits, forge
from support.running import run_some
from support.samples.families import BOUND, CONFIG, Case, difference, write

import llmc
from llmc.compiler.targets.simulate.device import SimulatedDevice
from llmc.runtime.cpu.executor import CpuExecutor
from llmc.runtime.engine_file.file import EngineFile
from llmc.runtime.engine_file.manifest import Manifest
from llmc.runtime.load import load
from llmc.runtime.plan.executor import PagedExecutor
from llmc.runtime.sampling.params import SamplingParams
from llmc.runtime.scheduling.request import Request
from llmc.runtime.scheduling.scheduler import Scheduler

ORIGINAL, CONTEXT, PLAN_BOUND = 32, 96, 3e-2
LENGTHS = (ORIGINAL - 1, ORIGINAL, ORIGINAL + 1, ORIGINAL + 16, CONTEXT)
LONG = {"short_factor": [1.0 + 0.1 * i for i in range(8)], "long_factor": [3.0 + 0.5 * i for i in range(8)]}
CONFIGS: dict[str, dict[str, Any]] = {
    "dynamic": {
        "max_position_embeddings": ORIGINAL,
        "rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0},
    },
    "longrope": {
        "max_position_embeddings": CONTEXT,
        "rope_parameters": {
            "rope_type": "longrope",
            "rope_theta": 1e4,
            "factor": 3.0,
            "original_max_position_embeddings": ORIGINAL,
            **LONG,
        },
    },
}


@pytest.fixture(scope="module", params=CONFIGS)
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    checkpoint = write(folder / "c", "llama", Case(CONFIGS[request.param]))
    return llmc.build(checkpoint, folder / "e.llmc", targets=["cpu", "sm_90"], max_context=CONTEXT, max_batch=4)


def ids(count: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(0, CONFIG["vocab_size"], count).tolist()


@lru_cache(maxsize=512)
def of_transformers(checkpoint: Path, tokens: tuple[int, ...]) -> np.ndarray:
    """Logits f32 [T, V] of a model that has seen no other call: it keeps the tables of a longer one."""
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    with torch.no_grad():
        return model(torch.tensor([tokens]), use_cache=False).logits[0].numpy()


def of_checkpoint(path: Path, tokens: list[int]) -> np.ndarray:
    return of_transformers(path.parent / "c", tuple(tokens))


def margins(path: Path, request: Request, positions: range) -> np.ndarray:
    """How far the logit of each token is from the best, over the largest, each computed from all tokens before it."""
    text, found = [*request.prompt, *request.tokens], []
    for index in positions:
        row = of_checkpoint(path, text[: len(request.prompt) + index])[-1]
        found.append((row.max() - row[request.tokens[index]]) / np.abs(row).max())
    return np.array(found)


def steady(path: Path, request: Request) -> range:
    """The tokens that transformers chooses with the request's last table: with dynamic, every length has its own."""
    assert len(request.tokens) == request.max_tokens
    every = range(request.max_tokens)
    return every if "longrope" in str(path) or not request.table else every[-1:]


def test_prompts_below_and_above_the_original_length(engine: Path):
    with llmc.load(engine, profile="cpu") as loaded:
        for length in LENGTHS:
            expected = of_checkpoint(engine, ids(length))
            assert difference(loaded.logits(ids(length)), expected) < BOUND
            assert difference(checkpoint_logits(engine.parent / "c", ids(length)), expected) < BOUND
    short, long = (of_checkpoint(engine, ids(length))[:8] for length in (ORIGINAL, CONTEXT))
    assert difference(long, short) > 1e-2, "the tables make no difference"


def test_prompts_of_a_launch_plan(engine: Path):
    with load(engine, profile="sm_90", make_device=SimulatedDevice) as loaded:
        for length in LENGTHS:
            assert difference(loaded.logits(ids(length)), of_checkpoint(engine, ids(length))) < PLAN_BOUND


@pytest.mark.parametrize("profile", ["cpu", pytest.param("sm_90", marks=pytest.mark.soak)])
def test_requests_that_outgrow_the_original_length(engine: Path, profile: str):
    """In company: one that stays short, one that crosses at once, one from its prompt on, one with penalties, one whose
    beginning another has left in the cache with the other table."""
    penal = SamplingParams(repetition_penalty=1.3, presence_penalty=0.5, frequency_penalty=0.5)
    most = 22 if profile == "cpu" else 8
    requests = [
        Request(tuple(ids(ORIGINAL - 6)), most),
        Request(tuple(ids(5, 1)), most),
        Request(tuple(ids(ORIGINAL, 2)), most - 5),
        Request(tuple(ids(ORIGINAL + 8, 3)), most - 4),
        Request(tuple(ids(ORIGINAL - 4, 4)), most, penal),
        Request(tuple(ids(ORIGINAL - 6)), 3),
        Request(tuple(ids(ORIGINAL - 6)), most),
    ]
    if profile == "cpu":
        executor: Any = CpuExecutor(EngineFile.open(engine), "cpu", threads=2, max_batch=3)
    else:
        executor = PagedExecutor(EngineFile.open(engine), "sm_90", SimulatedDevice, max_batch=4)
    scheduler, bound = Scheduler(executor), 1e-4 if profile == "cpu" else 2 * PLAN_BOUND
    try:
        run_some(scheduler, requests, 3)
        assert not sum(kind.blocks for kind in executor.caches) - sum(scheduler.free_blocks)
        again = scheduler.add(Request(requests[4].prompt, most, penal))
        run_some(scheduler, [], 1)
    finally:
        executor.close()
    for request in requests:
        request.wait()
        if request.params != penal:
            assert (margins(engine, request, steady(engine, request)) <= bound).all()
    assert requests[0].tokens == requests[6].tokens and requests[0].table > 0
    assert requests[4].tokens == again.tokens
    assert [request.table > 0 for request in requests] == [True, False, True, True, True, False, True]


def test_a_conversation_continues_what_has_the_same_table(engine: Path):
    with llmc.load(engine, profile="cpu") as loaded:
        first = loaded.generate(ids(ORIGINAL - 12), max_tokens=4)
        spoken = [*ids(ORIGINAL - 12), *first.token_ids]
        assert loaded.generate([*spoken, 5], max_tokens=2).cached_tokens == len(spoken) - 1
        crossed = loaded.generate([*spoken, *ids(20, 7)], max_tokens=4)
        assert crossed.cached_tokens == 0, "keys and values of other tables"
        alone = load(engine, profile="cpu")
        assert alone.generate([*spoken, *ids(20, 7)], max_tokens=4).token_ids == crossed.token_ids
        alone.close()


def test_an_engine_within_the_original_length_has_one_table(tmp_path: Path):
    for name, config in CONFIGS.items():
        checkpoint = write(tmp_path / name, "llama", Case(config))
        path = llmc.build(checkpoint, tmp_path / f"{name}.llmc", max_context=ORIGINAL)
        with EngineFile.open(path) as file:
            assert file.manifest.model.ropes is None and not file.manifest.required_features
        with llmc.load(path) as loaded:
            found = loaded.logits(ids(ORIGINAL))
        assert difference(found, of_transformers(checkpoint, tuple(ids(ORIGINAL)))) < BOUND


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"original": 0}, "expected frequencies of rotary embeddings"),
        ({"scale": -1.0}, "expected frequencies of rotary embeddings"),
        ({"short": (1.0, 0.5), "long": ()}, "expected a graph with rotary tables"),
        ({"short": (1.0,), "long": ()}, "expected a rope of at least two frequencies"),
        ({"short": (1.0, 0.5), "long": (1.0,)}, "expected frequencies of rotary embeddings"),
    ],
)
def test_forged_tables_are_refused(engine: Path, tmp_path: Path, change: dict[str, Any], said: str):
    def changed(old: Manifest) -> Manifest:
        assert old.model.ropes is not None
        (rope,) = old.model.ropes
        return replace(old, model=replace(old.model, ropes=(replace(rope, **change),)))

    with pytest.raises(llmc.LlmcError, match=said):
        llmc.load(forge(engine, tmp_path / "f.llmc", manifest=changed), profile="cpu")


@pytest.mark.parametrize("profile", ["cpu", "sm_90"])
def test_a_graph_and_a_model_that_disagree_are_refused(engine: Path, tmp_path: Path, profile: str):
    forged = forge(engine, tmp_path / "f.llmc", manifest=lambda old: replace(old, model=replace(old.model, ropes=None)))
    with pytest.raises(llmc.LlmcError, match=r"expected a (graph|plan) with (the )?rotary tables"):
        load(forged, profile=profile, make_device=SimulatedDevice if profile == "sm_90" else None)
