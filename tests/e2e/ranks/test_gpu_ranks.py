"""Ranks of GPU profiles as processes, over fakes of driver and NCCL: from opening an engine to tokens and end."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.fakes.toy_ranks import shards, token_stages
from support.parallel.gpus import VARIABLE, FakeGpus, serve
from support.paths import ROOT
from support.running import run_some
from support.toy_gpu import answer, toy_ranks

from llmc.runtime.engine_file.file import EngineFile
from llmc.runtime.errors import ResourceError, VerifyError
from llmc.runtime.load import open_executor
from llmc.runtime.ranks import open as opening
from llmc.runtime.sampling.params import SamplingParams
from llmc.runtime.scheduling.executor import Executor
from llmc.runtime.scheduling.request import Request
from llmc.runtime.scheduling.scheduler import Scheduler

PROMPTS = ((4, 8, 15), (16, 23), (42,), (3, 1, 4, 1, 5))
MOST = 7
TIGHT = 35_328
"""Bytes of a GPU with room for the toy's weights and buffers, and for some blocks."""


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("ranks")
    return {name: toy_ranks(folder / f"{name}.llmc", name, plans()) for name, plans in PLANS.items()}


PLANS = {"tp2": shards, "pp2": token_stages}


class Machine:
    """A machine with fake GPUs, on which this process is rank 0."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self._folder, self._patch = folder, patch
        self.made: list[FakeGpus] = []
        patch.setenv("PYTHONPATH", str(ROOT / "tests"))
        patch.setattr(opening, "serve", serve)

    def prepare(self, *, gpus: int = 2, **special: Any) -> FakeGpus:
        """`special`: of "rank_0" and "rank_1" what goes wrong there."""
        told = {"folder": str(self._folder), "gpus": gpus}
        told |= {name.removeprefix("rank_"): facts for name, facts in special.items()}
        self._patch.setenv(VARIABLE, json.dumps(told))
        made = FakeGpus(0)
        self.made.append(made)
        made.install(self._patch.setattr)
        return made

    def report(self, rank: int) -> dict[str, Any]:
        return json.loads((self._folder / f"report {rank}").read_text())


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    made = Machine(tmp_path, monkeypatch)
    yield made
    for one in made.made:
        one.nccl.over = True


def opened(engines: dict[str, Path], name: str, **options: Any) -> Executor:
    return open_executor(EngineFile.open(engines[name]), f"sm_90-{name}", **options)


def requests(**sampling: Any) -> list[Request]:
    return [Request(prompt, MOST, SamplingParams(**sampling)) for prompt in PROMPTS]


@pytest.mark.parametrize("name", PLANS)
def test_ranks_give_the_models_tokens_and_leave_nothing(machine: Machine, engines: dict[str, Path], name: str):
    here = machine.prepare(rank_1={"memory": 1 << 20})
    executor = opened(engines, name)
    assert executor.depth == 1
    given = requests(temperature=0.7, seed=11)
    run_some(Scheduler(executor), given, together=3)
    executor.close()
    assert [request.tokens for request in given] == [answer(prompt, MOST) for prompt in PROMPTS]
    first, other = here.report(), machine.report(1)
    assert first["left"] == other["left"] == 0
    assert first["order"][-1] == other["order"][-1] == "ncclCommDestroy"
    assert {*other["seeds"]} == {11}, "another rank has other parameters"
    if name == "tp2":
        assert first["tokens"] == other["tokens"]
        assert sum(map(len, first["tokens"])) >= MOST * len(PROMPTS)
    else:
        assert not any(first["tokens"])
    exchanges = [[(one["function"], one["count"], one["captured"]) for one in side["calls"]] for side in (first, other)]
    paired = {"ncclSend": "ncclRecv"}
    assert [(paired.get(one, one), *more) for one, *more in exchanges[0]] == [(*one,) for one in exchanges[1]]
    captured = [captured for *_, captured in exchanges[0]]
    assert any(captured) and not all(captured) and len(captured) < len(first["tokens"]), "graphs are not replayed"


def test_the_smallest_pool_counts(machine: Machine, engines: dict[str, Path]):
    """The GPU of rank 1 has room for fewer blocks than the 16 of rank 0."""
    machine.prepare(rank_1={"memory": TIGHT})
    executor = opened(engines, "tp2")
    assert 0 < executor.caches[0].blocks < 16
    executor.close()


@pytest.mark.parametrize("name", PLANS)
def test_a_rank_that_dies_in_a_step_ends_rank_0(machine: Machine, engines: dict[str, Path], name: str):
    here = machine.prepare(rank_1={"dies_after": 5})
    executor = opened(engines, name)
    scheduler, given = Scheduler(executor), requests()
    with pytest.raises(ResourceError, match=r"cannot go on without rank 1\n  found: .* killed by signal 9"):
        run_some(scheduler, given, together=3)
    executor.close()
    assert here.report()["left"] == 0 and "ncclCommAbort" in here.nccl.order


def test_an_end_of_the_job_reaches_a_rank_inside_a_call_of_nccl(machine: Machine, engines: dict[str, Path]):
    """The first exchange of a group connects its ranks, and returns only then."""
    here = machine.prepare(rank_1={"dies_after": 0})
    aborted, inside = threading.Event(), here.nccl.ncclAllReduce
    abort = here.nccl.ncclCommAbort

    def reduce(*given: Any) -> int:
        return 3 if aborted.wait(60) else inside(*given)

    def stop(comm: int) -> int:
        aborted.set()
        return abort(comm)

    here.nccl.ncclAllReduce, here.nccl.ncclCommAbort = reduce, stop  # pyright: ignore[reportAttributeAccessIssue]
    executor = opened(engines, "tp2")
    with pytest.raises(ResourceError, match=r"cannot go on without rank 1\n  found: .* killed by signal 9"):
        run_some(Scheduler(executor), requests(), together=1)
    executor.close()
    assert aborted.is_set() and here.report()["left"] == 0


@pytest.mark.parametrize("rank", [0, 1])
def test_ranks_that_nccl_cannot_connect_are_refused(machine: Machine, engines: dict[str, Path], rank: int):
    special: Any = {f"rank_{rank}": {"fail": {"ncclCommInitRank": 2}}}
    here = machine.prepare(**special)
    with pytest.raises(ResourceError, match=r"found: (rank 1 \(.*\): )?ncclSystemError; text of 2; NET/Socket : peer"):
        opened(engines, "tp2")
    assert here.report()["left"] == 0


def test_a_machine_with_too_few_gpus_is_refused_by_each_rank(machine: Machine, engines: dict[str, Path]):
    """Where `profiles.fits` was not asked, as under a launcher."""
    here = machine.prepare(gpus=1)
    with pytest.raises(ResourceError, match=r"expected 2 GPUs for the ranks on this machine.*rank-1"):
        opened(engines, "tp2")
    assert here.report()["left"] == 0


def test_a_rank_without_memory_for_weights_ends_the_others(machine: Machine, engines: dict[str, Path]):
    here = machine.prepare(rank_1={"memory": 1 << 12})
    with pytest.raises(ResourceError, match=r"(?s)rank-1.*rank 1 \(host"):
        opened(engines, "tp2")
    assert here.report()["left"] == 0


def test_the_code_of_every_rank_is_judged_before_any_loads(machine: Machine, engines: dict[str, Path]):
    here, judged = machine.prepare(), list[str]()

    def judge(_engine: EngineFile, label: str) -> None:
        judged.append(label)
        if label.endswith("1"):
            raise VerifyError(f"cannot trust {label}")

    with pytest.raises(VerifyError, match=r"cannot trust sm_90-tp2.rank-1"):
        opened(engines, "tp2", judge=judge)
    assert judged == ["sm_90-tp2.rank-0", "sm_90-tp2.rank-1"] and not here.nccl.order
