"""The ranks of a GPU's split profile, interpreted together, agree with the oracle of the unsplit quantized graph.

Nothing is compiled: the interpreter runs the kernels' source.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.engines import NARROW, quantized_logits, relative, small_checkpoint, some_ids
from support.running import run_some

import llmc
from llmc.compiler.targets.cuda.cubins.compile import Cubin, Specialization
from llmc.compiler.targets.simulate.device import SimulatedDevice
from llmc.compiler.targets.simulate.world import World
from llmc.runtime.engine_file.file import EngineFile
from llmc.runtime.errors import LlmcError
from llmc.runtime.plan.executor import PagedExecutor
from llmc.runtime.plan.plan import MachineCode
from llmc.runtime.plan.together import RanksTogether, open_together
from llmc.runtime.sampling.draw import draw
from llmc.runtime.sampling.params import SamplingParams
from llmc.runtime.sampling.philox import uniform
from llmc.runtime.scheduling.executor import ScheduledSequence
from llmc.runtime.scheduling.request import Request
from llmc.runtime.scheduling.scheduler import Scheduler

BOUND = 3e-2
"""Of logits, as in test_simulate.py."""
SHAPE: dict[str, Any] = {**NARROW, "vocab_size": 511, "intermediate_size": 128, "num_hidden_layers": 2}
"""Two layers for two stages; a vocabulary that two shards cannot halve."""
VOCAB = SHAPE["vocab_size"]
MATRIX = [(quantize, split) for quantize in ("none", "fp8", "nvfp4", "int4") for split in ("tp2", "pp2", "tp2-pp2")]
QUICK = {("int4", "tp2"), ("none", "pp2")}
Build = Callable[[str, str], Path]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Build]:
    folder = tmp_path_factory.mktemp("ranks")
    checkpoint = small_checkpoint(folder / "checkpoint", tokenizer=False, **SHAPE)

    @cache
    def build(quantize: str, split: str) -> Path:
        path = folder / f"{quantize}-{split}.llmc"
        return llmc.build(checkpoint, path, targets=["sm_90"], max_batch=2, quantize=quantize, parallel=[split])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("llmc.compiler.targets.cuda.emit.compile_all", without_code)
        yield build


def without_code(asked: Iterable[Specialization], sm: int, **_: Any) -> dict[Specialization, Cubin]:
    return {one: Cubin(sm, b"none", "", one.types, MachineCode("none", 0, 32, 0)) for one in asked}


@contextmanager
def together(path: Path, split: str) -> Iterator[RanksTogether]:
    make = partial(SimulatedDevice, world=World())
    executor = open_together(EngineFile.open(path), f"sm_90-{split}", make, None)
    try:
        yield executor
    finally:
        executor.close()


def ids(count: int, seed: int) -> list[int]:
    return [token % VOCAB for token in some_ids(count, seed)]


def scheduled(prompt: list[int], params: SamplingParams | None = None, rows: Any = "all") -> ScheduledSequence:
    return ScheduledSequence(9, tuple(prompt), 0, ((0,),), params, len(prompt), rows=rows)


@pytest.mark.parametrize(
    ("quantize", "split"), [pytest.param(*one, marks=[] if one in QUICK else [pytest.mark.soak]) for one in MATRIX]
)
def test_ranks_have_the_oracles_logits_and_tokens(built: Build, quantize: str, split: str):
    path, prompts = built(quantize, split), [ids(3, 1), ids(6, 2)]
    source = path.parent / "checkpoint"
    with together(path, split) as executor:
        (output,) = executor.collect(executor.submit((scheduled(prompts[1]),)))
        executor.release(9)
        assert output.logits is not None
        assert relative(output.logits, quantized_logits(path, quantize, prompts[1], source)) < BOUND
        requests = [Request(tuple(prompt), 3) for prompt in prompts]
        run_some(Scheduler(executor), requests, 2)
    for request in requests:
        request.wait()
        logits = quantized_logits(path, quantize, [*request.prompt, *request.tokens], source)
        rows = logits[len(request.prompt) - 1 : -1]
        margin = rows.max(axis=1) - rows[np.arange(len(request.tokens)), request.tokens]
        assert len(request.tokens) == 3 and (margin <= 2 * BOUND * np.abs(rows).max()).all()


def test_stages_that_send_what_ends_in_a_bias(tmp_path: Path, built: Build):
    """Then no sum crosses the border: each shard sends its columns of the whole."""
    biased = small_checkpoint(tmp_path / "biased", tokenizer=False, **SHAPE, attention_bias=True, mlp_bias=True)
    path = llmc.build(biased, tmp_path / "e.llmc", targets=["sm_90"], max_batch=1, quantize="fp8", parallel=["tp2-pp2"])
    with together(path, "tp2-pp2") as executor:
        (output,) = executor.collect(executor.submit((scheduled(ids(5, 1)),)))
    assert output.logits is not None
    assert relative(output.logits, quantized_logits(path, "fp8", ids(5, 1), biased)) < BOUND


def test_all_shards_draw_the_token_that_the_host_would(built: Build):
    """Shards with other tokens are an error of `RanksTogether`, as the next test shows."""
    params = SamplingParams(temperature=0.9, top_k=50, seed=8, logprobs=3)
    with together(built("fp8", "tp2"), "tp2") as executor:
        (output,) = executor.collect(executor.submit((scheduled(ids(9, 9), params, "last"),)))
    assert output.logits is not None and output.sampled is not None and len(output.sampled.top) == 3
    assert output.sampled.token == draw(output.logits[-1], params, uniform(8, 9))


def test_shards_that_choose_other_tokens_are_an_error(built: Build):
    with together(built("fp8", "tp2"), "tp2") as executor:
        tickets = executor.submit((scheduled(ids(5, 1), SamplingParams(), "last"),))
        outputs = executor._ranks[0].collect(tickets[0])
        assert outputs[0].sampled is not None
        wrong = outputs[0].sampled.token + 1
        object.__setattr__(outputs[0].sampled, "token", wrong)
        with pytest.raises(
            LlmcError, match=f"expected the same tokens of all ranks of the last stage\n  found: .*{wrong}"
        ):
            executor.collect(tickets)


def test_a_stage_before_the_last_has_no_logits_and_needs_the_tokens(built: Build):
    path, world = built("none", "pp2"), World()
    ranks = [
        PagedExecutor(
            EngineFile.open(path), f"sm_90-pp2.rank-{rank}", partial(SimulatedDevice, world=world), max_batch=1
        )
        for rank in range(2)
    ]
    first, last = ((one._plan, one) for one in ranks)
    assert not {"sampled", "logits"} & {*first[0].programs[0].buffers}
    read = {name for name, tensor in first[0].tensors.items() if tensor.kind == "input"}
    assert "token_ids" in read and not read & {"temperature", "logits_indices", "sample_slots", "prompt_slots"}
    assert not any(launch.label == "take tokens" for launch in last[0].programs[0].launches)
    step = (scheduled(ids(5, 1), SamplingParams(), "last"),)
    tickets = [one.submit(step) for one in ranks]
    outputs = [one.collect(ticket)[0] for one, ticket in zip(ranks, tickets, strict=True)]
    assert (outputs[0].sampled, outputs[0].logits) == (None, None) and outputs[1].sampled is not None
    unknown = ScheduledSequence(9, (), 5, ((0,),), SamplingParams(), 5)
    with pytest.raises(LlmcError, match="expected the token of sequence 9, which another rank has sampled"):
        ranks[0].submit((unknown,))
    with pytest.raises(LlmcError, match=r"cannot go on: no rank meets another\n  found: .*{1: "):
        ranks[1].collect(ranks[1].submit((ScheduledSequence(9, (3,), 5, ((0,),), None, 5),)))
    for one in ranks:
        one.close()


def test_the_command_line_shows_the_exchanges_of_a_rank(built: Build, call: Callable[..., Any]):
    """Five sums of 64 numbers in 16 bits, and logits of the half of 511 tokens that is larger, in 32 bits."""
    path = built("fp8", "tp2")
    shown = call("inspect", path, "--launches", "--profile", "sm_90-tp2.rank-1", "--json").json
    by_kernel = [(one["kernel"], one["link_bytes"]) for one in shown["launches"] if one["link_bytes"]]
    assert by_kernel == [("all_reduce", 128)] * 5 + [("all_gather", 1024)]
    assert (shown["profile"], shown["link_bytes"]) == ("sm_90-tp2.rank-1", 5 * 128 + 1024)
    text = call("inspect", path, "--launches", "--profile", "sm_90-tp2").out
    assert "profile sm_90-tp2.rank-0" in text and "and 1.62 KiB to other ranks, whose time is not counted" in text
    missing = call("inspect", path, "--launches", "--profile", "sm_90-tp2.rank-7")
    assert missing.code == 3 and "cannot find rank 7 of profile 'sm_90-tp2'" in missing.err


def test_all_ranks_are_verified_at_once(built: Build, call: Callable[..., Any]):
    found = call("verify", built("fp8", "tp2"), "--simulate", "--profile", "sm_90-tp2")
    assert found.code == 0 and "probe on sm_90-tp2, simulated" in found.out
    assert found.err.count("is interpreted on the CPU") == 1
