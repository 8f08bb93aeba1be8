"""Engines over ranks, which are processes: tokens, texts and logits are those of one process, whatever a request asks.

Partial sums of shards are added in another order, and a stage begins with a sum that one process has inside a kernel.
So logits differ by BOUND, and tokens are compared of weights without a format. Within one split, other requests change
what docs/architecture.md says: nothing with int4.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from support.engines import HAS_VNNI, PicoEngine, forge, relative, small_checkpoint, some_ids

import llmc
from llmc.runtime.engine import Engine
from llmc.runtime.engine_file.file import EngineFile
from llmc.runtime.errors import EngineError, RecipeError, ResourceError
from llmc.runtime.machine import SystemMemory

BOUND = 1e-4
TEXTS = ["def main(", "import os\n", "class Reader:\n", "for one in range(", "def f(", '    """A text']
OPTIONS: list[dict[str, Any]] = [
    {"temperature": 0.0},
    {"temperature": 0.9, "seed": 2**64 - 1, "top_k": 40},
    {"temperature": 0.7, "seed": 3, "top_p": 0.8, "min_p": 0.01, "logprobs": 5},
    {"temperature": 0.0, "repetition_penalty": 1.3, "presence_penalty": 0.5, "frequency_penalty": 0.2},
    {"temperature": 0.0, "logit_bias": {226: -100.0, 17: 3.5}, "logprobs": 2},
    {"temperature": 1.2, "seed": 5, "stop": ["\n"]},
]


def workers() -> list[int]:
    """The processes of ranks that this process has started."""
    found = []
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            continue
        if int(fields[1]) == os.getpid() and fields[0] != "Z" and b"parallel.worker" in command:
            found.append(int(pid))
    return sorted(found)


def answers(engine: Engine, *, tokens: int = 24) -> list[Any]:
    """All texts at once, each with other options."""
    with ExitStack() as running:
        streams = [
            running.enter_context(engine.stream(text, max_tokens=tokens, **options))
            for text, options in zip(TEXTS, OPTIONS, strict=True)
        ]
        return [stream.result() for stream in streams]


@pytest.fixture(scope="module")
def dense(pico_engine: PicoEngine) -> Path:
    return pico_engine("none", parallel="tp1,tp2,pp2,tp2-pp2")


@pytest.fixture(scope="module")
def int4(pico_engine: PicoEngine) -> Path:
    return pico_engine("int4", parallel="tp2,pp2")


@pytest.fixture(scope="module")
def loaded(request: pytest.FixtureRequest) -> Iterator[Callable[[Path, str], Engine]]:
    """Engines that tests of this file share."""
    engines = dict[tuple[Path, str], Engine]()

    def one(path: Path, profile: str) -> Engine:
        if (path, profile) not in engines:
            engines[path, profile] = llmc.load(path, profile, threads=2)
        return engines[path, profile]

    yield one
    for engine in engines.values():
        engine.close()
    assert workers() == []


@pytest.fixture(params=["cpu-tp2", "cpu-pp2", pytest.param("cpu-tp2-pp2", marks=pytest.mark.soak)])
def pair(request: pytest.FixtureRequest, loaded: Callable[[Path, str], Engine], dense: Path) -> tuple[Engine, Engine]:
    """An engine over ranks, and the same in one process."""
    return loaded(dense, request.param), loaded(dense, "cpu")


def test_many_requests_with_all_options_have_the_tokens_of_one_process(pair: tuple[Engine, Engine]):
    split, single = pair
    for ours, theirs in zip(answers(split), answers(single), strict=True):
        assert ours.token_ids == theirs.token_ids
        assert (ours.text, ours.finish_reason, ours.prompt_tokens) == (
            theirs.text,
            theirs.finish_reason,
            theirs.prompt_tokens,
        )
        for one, other in zip(ours.logprobs, theirs.logprobs, strict=True):
            assert one.logprob == pytest.approx(other.logprob, abs=1e-3)
            assert [token for token, _ in one.top] == [token for token, _ in other.top]


def test_logits_of_all_rows(pair: tuple[Engine, Engine]):
    split, single = pair
    ids = some_ids(300, seed=1)
    assert relative(split.logits(ids), single.logits(ids)) < BOUND


@pytest.mark.skipif(not HAS_VNNI, reason="the table is of CPUs with AVX-512 and VNNI")
@pytest.mark.parametrize("profile", ["cpu-tp2", "cpu-pp2"])
def test_others_change_no_bit_of_a_request(loaded: Callable[[Path, str], Engine], int4: Path, profile: str):
    engine = loaded(int4, profile)
    options: Any = {"temperature": 0.0, "max_tokens": 12, "logprobs": 3}
    alone = [engine.generate(text, **options).logprobs for text in TEXTS]
    assert [one.logprobs for one in engine.generate(TEXTS, **options)] == alone


def test_a_prompt_that_continues_another_computes_what_is_new(pair: tuple[Engine, Engine]):
    ids = some_ids(150, seed=2)
    found = []
    for engine in pair:
        first = engine.generate(ids, max_tokens=8, temperature=0.0)
        rest = [*ids, *first.token_ids, *some_ids(9, seed=3)]
        found.append(engine.generate(rest, max_tokens=8, temperature=0.0, repetition_penalty=1.2))
    ours, theirs = found
    assert ours.cached_tokens == theirs.cached_tokens > 140
    assert ours.token_ids == theirs.token_ids


def test_stopped_and_cancelled_requests_leave_nothing_wrong_behind(pair: tuple[Engine, Engine]):
    """With stages a step is open when a token stops its request: what it has computed is surplus."""
    split, single = pair
    wanted = single.generate("def main(", max_tokens=20, temperature=0.0)
    for stop_after in (1, 2, 5):
        with split.stream("def main(", max_tokens=200, temperature=0.0) as stream:
            for _ in range(stop_after):
                next(stream)
        again = split.generate("def main(", max_tokens=20, temperature=0.0, stop=wanted.text[8:10])
        assert again.finish_reason == "stop"
        assert split.generate("def main(", max_tokens=20, temperature=0.0).token_ids == wanted.token_ids


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Small engines of kinds of models that the bundled one is not."""
    folder = tmp_path_factory.mktemp("kinds")
    config: dict[str, dict[str, Any]] = {
        "dynamic": {
            "max_position_embeddings": 32,
            "rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0},
        },
        "windows of all layers": {"architectures": ["MistralForCausalLM"], "sliding_window": 12},
        "windows of the last stage": {
            "architectures": ["Qwen2ForCausalLM"],
            "use_sliding_window": True,
            "sliding_window": 12,
            "max_window_layers": 2,
        },
        "not tied": {"tie_word_embeddings": False},
    }

    def build(kind: str) -> Path:
        path = folder / f"{kind}.llmc"
        if not path.exists():
            more = {"num_hidden_layers": 4, "max_position_embeddings": 256, **config[kind]}
            checkpoint = small_checkpoint(folder / kind, **more)
            llmc.build(checkpoint, path, parallel="tp1,pp2,tp2", max_context=128, max_batch=4)
        return path

    return build


@pytest.mark.parametrize(
    ("kind", "split"),
    [("dynamic", "cpu-pp2"), ("windows of all layers", "cpu-tp2"), ("windows of the last stage", "cpu-pp2")],
)
def test_models_whose_ranks_keep_different_things(kinds: Callable[[str], Path], kind: str, split: str):
    """A request outgrows its rotary tables; a prompt returns to a place that a window has left, or has not."""
    prompts = [some_ids(24, seed=4), some_ids(26, seed=5), some_ids(9, seed=6)]
    found = []
    for profile in (split, "cpu"):
        with llmc.load(kinds(kind), profile, threads=2) as engine:
            results = engine.generate(prompts, max_tokens=40, temperature=0.0, ignore_eos=True)
            long, short = [*prompts[0], *results[0].token_ids], [*prompts[0], *results[0].token_ids[:3]]
            for ids in (short, [*long, 7, 8, 9], [*prompts[2], *results[2].token_ids[:20], 5, 6]):
                results.append(engine.generate(ids, max_tokens=6, temperature=0.0, ignore_eos=True))
            found.append([(one.token_ids, one.cached_tokens) for one in results])
    assert found[0] == found[1]


def test_numbers_that_are_not_finite_end_their_own_request(kinds: Callable[[str], Path], tmp_path: Path):
    """They appear on the last stage, and belong to a request that rank 0 runs."""
    name = "model.embed_tokens.weight"
    with EngineFile.open(kinds("not tied")) as engine:
        rows = engine.tensor(name).copy()
    rows[7] = 0x7FC0  # NaN in bf16
    path = forge(kinds("not tied"), tmp_path / "nan.llmc", tensors={name: rows})
    with llmc.load(path, "cpu-pp2", threads=2) as engine:
        good = engine.generate([5, 6, 8], max_tokens=30, temperature=0.0, ignore_eos=True)
        assert 7 not in good.token_ids
        with engine.stream([5, 6, 8], max_tokens=30, temperature=0.0, ignore_eos=True) as beside:
            next(beside)
            for _ in range(3):
                with pytest.raises(EngineError, match="logits are not finite"):
                    engine.generate([5, 7, 8], max_tokens=9, temperature=0.0)
            assert beside.result().token_ids == good.token_ids
        assert engine.generate([5, 7 + 1, 8], max_tokens=3, temperature=0.0).finish_reason == "length"


def test_a_request_without_memory_fails_alone_on_all_ranks(pair: tuple[Engine, Engine]):
    """It waits for the one that runs, and the slots of all ranks stay the same."""
    split, single = pair
    ids, options = some_ids(400, seed=8), {"max_tokens": 10, "temperature": 0.0}
    with pytest.MonkeyPatch.context() as patch, split.stream("def main(", max_tokens=60, temperature=0.0) as beside:
        next(beside)
        patch.setattr("llmc.runtime.ranks.on_cpu.system_memory", lambda: SystemMemory(1 << 30, 1 << 10))
        with pytest.raises(ResourceError, match="cannot run a request of 410 tokens, prompt and answer"):
            split.generate(ids, **options)
        ended = beside.result()
    assert ended.token_ids == single.generate("def main(", max_tokens=60, temperature=0.0).token_ids
    assert split.generate(ids, **options).token_ids == single.generate(ids, **options).token_ids


def test_engines_that_are_open_at_once_and_dropped(int4: Path, dense: Path):
    before = workers()
    first, second = llmc.load(int4, "cpu-pp2"), llmc.load(dense, "cpu-tp2")
    assert len(workers()) == len(before) + 2
    third = [first.generate("def f(", max_tokens=4, temperature=0.0), second.generate("x", max_tokens=2)]
    assert third[0].completion_tokens == 4
    first.close()
    assert len(workers()) == len(before) + 1
    with pytest.raises(RecipeError, match="cannot run a request"):
        first.generate("x")
    stream = second.stream("x", max_tokens=200)
    next(stream)
    second.close()
    assert stream.result().finish_reason in ("cancelled", "length")
    del first, second, stream, third
    assert workers() == before


def test_shapes_that_lie_on_both_ends_of_a_message(int4: Path, tmp_path: Path):
    """The programs of the ranks agree, but not with the graphs: ONNX Runtime refuses, on whichever rank is first."""
    sections = {}
    with EngineFile.open(int4) as engine:
        for rank, step in enumerate(("Send", "Recv")):
            name = engine.profile(f"cpu-pp2.rank-{rank}").graph
            program = json.loads(engine.section(name))
            (message,) = [one for one in program["steps"] if one["op"] == step]
            (value,) = [*message["inputs"], *message["outputs"]]
            program["values"][value][-1] = "7"
            sections[name] = json.dumps(program).encode()
    before = workers()
    engine = llmc.load(forge(int4, tmp_path / "e.llmc", sections=sections), "cpu-pp2")
    with (
        engine,
        pytest.raises(EngineError, match=r"expected a graph with input|cannot run the engine's graph"),
    ):
        engine.generate("x", max_tokens=2)
    assert workers() == before


def test_a_rank_without_memory_ends_the_load(int4: Path, tmp_path: Path):
    """Before any rank takes memory for weights: here one wants more than there is."""
    section = "profiles/cpu-pp2/rank-1/profile.json"
    with EngineFile.open(int4) as engine:
        record = json.loads(engine.section(section))
    record["needs"]["packed_bytes"] = 1 << 50
    path = forge(int4, tmp_path / "e.llmc", sections={section: json.dumps(record).encode()})
    before = workers()
    with pytest.raises(ResourceError, match=r"cannot load .*: it needs \d+\.\d GB of memory\n  found: rank 1 \(host"):
        llmc.load(path, "cpu-pp2")
    assert workers() == before


def test_a_rank_that_dies_ends_all_requests_with_its_error(int4: Path):
    before = workers()
    with llmc.load(int4, "cpu-pp2") as engine:
        (pid,) = {*workers()} - {*before}
        stream = engine.stream("def main(", max_tokens=400, ignore_eos=True)
        next(stream)
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(ResourceError, match=r"^cannot go on without rank 1\n") as failed:
            stream.result()
        assert f"pid {pid}): killed by signal 9 (SIGKILL)" in str(failed.value)
        with pytest.raises(ResourceError, match="cannot run a request on a broken engine") as failed:
            engine.generate("x")
        assert "cannot go on without rank 1" in str(failed.value)
    assert workers() == before


def test_a_child_made_by_fork_leaves_the_ranks_alone(int4: Path):
    with llmc.load(int4, "cpu-pp2") as engine:
        child = os.fork()
        if child == 0:
            code = 1
            try:
                engine.generate("x", max_tokens=2)
            except RecipeError as error:
                code = 0 if "before the fork" in str(error) else 2
            finally:
                engine.close()
                os._exit(code)
        assert os.waitpid(child, 0)[1] == 0
        assert engine.generate("x", max_tokens=2).completion_tokens == 2


LEFT_OPEN = """
import llmc, sys
engines = [llmc.load(sys.argv[1], "cpu-pp2") for _ in range(2)]
streams = [engine.stream("def main(", max_tokens=400, ignore_eos=True) for engine in engines]
print([next(stream).text for stream in streams] != [])
"""


def test_a_program_may_end_while_its_engines_run(int4: Path):
    done = subprocess.run([sys.executable, "-c", LEFT_OPEN, int4], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "True\n", "")


def test_an_engine_that_is_changed_in_place(int4: Path, tmp_path: Path):
    before, path = workers(), tmp_path / "e.llmc"
    path.write_bytes(int4.read_bytes())
    with llmc.load(path, "cpu-pp2") as engine:
        assert engine.generate("x", max_tokens=2).completion_tokens == 2
        os.truncate(path, path.stat().st_size + 1)
        with pytest.raises(EngineError, match="replace engines by rename"):
            engine.generate("x", max_tokens=2)
    assert workers() == before
