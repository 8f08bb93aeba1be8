"""Ranks that rank 0 has started: this process is rank 0, and whatever ends one of the others ends the job at once."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.parallel import ranks
from support.paths import ROOT

from llmc.runtime.errors import EngineError, LlmcError, RecipeError, ResourceError
from llmc.runtime.parallel import control
from llmc.runtime.parallel import start as start_module
from llmc.runtime.parallel.job import Job
from llmc.runtime.parallel.start import spawn


@pytest.fixture(autouse=True)
def nothing_is_left(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No process, thread or file of a job stays, however it ends."""
    monkeypatch.setattr(control, "GRACE", 0.5)
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "tests"))
    gc.collect()  # what earlier tests have left
    before, threads = open_files(), threading.active_count()
    yield
    assert children() == set()
    gc.collect()  # an error has the frames in which it was raised, and they have the job
    assert threading.active_count() == threads
    assert open_files() == before


def open_files() -> list[str]:
    found = []
    for link in Path("/proc/self/fd").iterdir():
        try:
            found.append(os.readlink(link))
        except OSError:  # the folder's own
            continue
    return sorted(one.partition(":[")[0] for one in found)


def children() -> set[int]:
    """Processes that this one has started, zombies too."""
    found = set[int]()
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):  # a thread that has just ended
            found.update(map(int, (task / "children").read_text().split()))
    return found


def start(ranks_: int = 3, tp: int = 3, arguments: Mapping[str, Any] | None = None, seconds: float = 60) -> Job:
    return spawn(ranks.echo, arguments or {}, ranks=ranks_, tp=tp, start=seconds)


def pids(job: Job) -> dict[int, int]:
    """Of the other ranks, after a sum of all."""
    x = np.ones(4, np.float32)
    job.broadcast("sum", {}, [x])
    job.communicator.all_reduce(x, x)
    answers = [job.receive() for _ in range(1, job.ranks)]
    return {one.rank: one.header["pid"] for one in answers if one is not None}


@pytest.mark.parametrize(("ranks_", "tp"), [(2, 2), (2, 1), (4, 2)])
def test_a_job_runs_and_leaves_in_order(ranks_: int, tp: int):
    with start(ranks_, tp) as job:
        found = ranks.lead(job)
        one = np.float32(4999) / np.float32(7)
        assert found["sum"] == pytest.approx(float(one) * tp)
        assert found["passed"] == 1 + sum(range(ranks_))
        assert {int(pid) for pid in found["pids"].values()} == children()


@pytest.mark.parametrize("victim", [1, 2])
@pytest.mark.parametrize("doing", ["collective", "recv", "idle"])
def test_a_killed_rank_ends_the_job_by_its_name(victim: int, doing: str):
    job = start()
    job.agree(ranks.FACTS)
    pid = pids(job)[victim]
    x = np.zeros(4, np.float32)
    if doing != "idle":
        job.broadcast("sleep")
        threading.Timer(0.2, os.kill, (pid, signal.SIGKILL)).start()
    else:
        os.kill(pid, signal.SIGKILL)
    with pytest.raises(ResourceError) as caught, job:
        if doing == "collective":
            job.communicator.all_reduce(x, x)
        elif doing == "recv":
            job.communicator.recv(x, victim)
        else:
            job.receive()
    assert str(caught.value) == (
        f"cannot go on without rank {victim}\n"
        f"  found: rank {victim} (host {os.uname().nodename}, pid {pid}): killed by signal 9 (SIGKILL)"
    )
    with pytest.raises(ResourceError):
        job.communicator.all_reduce(x, x)


def test_a_stopped_rank_ends_the_job(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(control, "SILENCE", 1.5)
    job = start()
    job.agree(ranks.FACTS)
    pid = pids(job)[2]
    os.kill(pid, signal.SIGSTOP)
    with (
        pytest.raises(ResourceError, match=rf"rank 2 \(host .*, pid {pid}\): stopped or cut off, no sign of life"),
        job,
    ):
        job.receive()


@pytest.mark.soak
def test_a_rank_that_computes_for_long_is_not_silent(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(control, "SILENCE", 1.5)
    job = start(2, 2)
    job.agree(ranks.FACTS)
    job.broadcast("sleep")
    time.sleep(3)
    job.check()
    job.close()


@pytest.mark.parametrize(
    ("kind", "error", "text"),
    [
        ("raise", EngineError, "cannot compute a step\n  found: {}: a damaged tensor\n  try: another engine"),
        ("bug", LlmcError, "cannot go on: a bug in llmc: ZeroDivisionError: by nothing\n  found: {}"),
        ("leave", ResourceError, "cannot go on: interrupted\n  found: {}: SystemExit"),
    ],
)
def test_an_error_of_a_rank_is_raised_on_rank_0(kind: str, error: type[LlmcError], text: str):
    job = start()
    job.agree(ranks.FACTS)
    pid = pids(job)[2]
    with pytest.raises(LlmcError) as caught, job:
        job.broadcast(kind, {"rank": 2})
        job.receive()
    assert type(caught.value) is error and caught.value.exit_code == error.exit_code
    assert str(caught.value) == text.format(f"rank 2 (host {os.uname().nodename}, pid {pid})")


def test_an_error_of_rank_0_ends_the_others():
    with pytest.raises(ZeroDivisionError), start() as job:
        job.agree(ranks.FACTS)
        job.broadcast("recv")
        raise ZeroDivisionError


def test_ranks_that_are_busy_when_the_job_ends_are_ended():
    with start() as job:
        job.agree(ranks.FACTS)
        job.broadcast("sleep")


def test_a_rank_that_dies_before_it_has_started():
    with (
        pytest.raises(ResourceError, match=r"rank 1 \(host \S+, pid \d+\): exit code 7$"),
        start(2, 2, {"1": {"exit": 7}}) as job,
    ):
        job.agree(ranks.FACTS)


def test_a_rank_that_never_answers():
    with (
        pytest.raises(ResourceError, match=r"^cannot start the ranks: no answer in 4 s\n  found: none of rank 2$"),
        start(3, 3, {"2": {"sleep": 60}}, 4) as job,  # in which rank 1 answers also on a busy machine
    ):
        job.agree(ranks.FACTS)


def test_a_rank_that_is_stopped_before_it_speaks(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(control, "SILENCE", 1.0)
    begun = start_module._Children.start

    def stopped(*arguments: Any) -> int:
        pid = begun(*arguments)
        os.kill(pid, signal.SIGSTOP)
        return pid

    monkeypatch.setattr(start_module._Children, "start", stopped)
    with pytest.raises(ResourceError, match=r"rank [12] \(host .*\): stopped or cut off, no sign of life"):
        start()


@pytest.mark.parametrize(
    ("fact", "error", "text"),
    [
        ({"engine": "xyz"}, EngineError, "expected the same engine on all ranks"),
        ({"profile": "cpu-pp2"}, RecipeError, "expected the same profile on all ranks"),
        ({"threads": 3}, RecipeError, "expected the same threads on all ranks"),
    ],
)
def test_ranks_that_differ_are_refused(fact: dict[str, Any], error: type[LlmcError], text: str):
    with pytest.raises(error) as caught, start(3, 3, {"2": fact}) as job:
        job.agree(ranks.FACTS)
    [(key, value)] = fact.items()
    asked, found = str(caught.value).split("\n")
    assert asked == text and found.startswith("  found: rank 2 (host ")
    assert found.endswith(f" has {value!r}, rank 0 has {ranks.FACTS.get(key)!r}")


def test_a_child_made_by_fork_leaves_the_job_alone():
    with start(2, 2) as job:
        job.agree(ranks.FACTS)
        child = os.fork()
        if child == 0:
            job.fail(ZeroDivisionError())
            job.close()
            os._exit(0)
        os.waitpid(child, 0)
        assert len(pids(job)) == 1
