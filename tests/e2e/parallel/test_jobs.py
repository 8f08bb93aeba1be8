"""Whole jobs as processes: rank 0 dies or is stopped, launchers, and two network namespaces as two hosts."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from support.parallel.hosts import Host, two_hosts
from support.parallel.jobs import hear_ctrl_c
from support.paths import ROOT

HOST = os.uname().nodename
PATIENCE = 40
"""Seconds after which a test that waits has failed; the ranks have a tenth of it."""


class Processes:
    """Processes of a test, which end with it."""

    def __init__(self) -> None:
        self.running: list[subprocess.Popen[str]] = []
        self._pids = set[int]()

    def run(self, *arguments: str, prefix: Sequence[str] = (), **variables: str) -> subprocess.Popen[str]:
        """A process of `support.parallel.ranks`."""
        command = [*prefix, sys.executable, "-m", "support.parallel.ranks", *arguments]
        environment = {**os.environ, "PYTHONPATH": str(ROOT / "tests"), **variables}
        pipe = subprocess.PIPE
        one = subprocess.Popen(
            command,
            stdout=pipe,
            stderr=pipe,
            text=True,
            env=environment,
            process_group=0,
            preexec_fn=hear_ctrl_c,
        )
        self.running.append(one)
        return one

    def ranks(
        self, start: str, ranks: int, tp: int, what: str, absent: int = 0, **more: str
    ) -> list[subprocess.Popen[str]]:
        """One process for each rank, as a launcher starts them."""
        port = str(free_port())
        return [
            self.run(
                *(start, str(ranks), str(tp), what),
                **{
                    "RANK": str(rank),
                    "WORLD_SIZE": str(ranks),
                    "MASTER_ADDR": "localhost",
                    "MASTER_PORT": port,
                    **more,
                },
            )
            for rank in range(ranks - absent)
        ]

    def pids(self, one: subprocess.Popen[str]) -> list[int]:
        """Of all ranks, as rank 0 says them when it has begun to wait."""
        assert one.stdout is not None
        line = one.stdout.readline()
        assert line, one.stderr and one.stderr.read()
        found: list[int] = json.loads(line)
        self._pids.update(found)
        return found

    def end(self) -> None:
        for one in self.running:
            one.kill()
            one.communicate()
        for pid in self._pids:
            if alive(pid):
                os.kill(pid, signal.SIGKILL)


@pytest.fixture
def processes() -> Iterator[Processes]:
    made = Processes()
    yield made
    made.end()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def named(rank: int, pids: Sequence[int]) -> str:
    return f"rank {rank} (host {HOST}, pid {pids[rank]})"


def wait_for(what: Callable[[], bool]) -> None:
    late = time.monotonic() + PATIENCE
    while not what():
        assert time.monotonic() < late, "it does not come"
        time.sleep(0.05)


def end_of(one: subprocess.Popen[str]) -> tuple[int, str]:
    """Exit code and stderr."""
    _, said = one.communicate(timeout=PATIENCE)
    return one.returncode, said


@pytest.mark.parametrize("doing", ["collective", "recv", "idle", "sleep", "waited"])
def test_ranks_do_not_outlive_rank_0(processes: Processes, doing: str):
    """Also those that are busy, which their own threads end."""
    lead = processes.run("spawn", "3", "3", doing)
    pids = processes.pids(lead)
    os.kill(pids[0], signal.SIGKILL)
    wait_for(lambda: not any(map(alive, pids)))


@pytest.mark.parametrize(
    ("sent", "code", "doing"),
    [(signal.SIGINT, 130, "collective"), (signal.SIGINT, 130, "idle"), (signal.SIGTERM, -signal.SIGTERM, "recv")],
)
def test_signals_of_a_terminal_end_the_job(processes: Processes, sent: int, code: int, doing: str):
    """Ctrl-C reaches the whole group: only rank 0 takes it, in whatever it waits."""
    lead = processes.run("spawn", "3", "3", doing)
    pids = processes.pids(lead)
    os.killpg(lead.pid, sent)
    assert end_of(lead) == (code, "")
    wait_for(lambda: not any(map(alive, pids)))


@pytest.mark.soak
def test_a_stopped_rank_0_finds_the_job_ended(processes: Processes):
    lead = processes.run("spawn", "3", "3", "idle")
    pids = processes.pids(lead)
    os.kill(pids[0], signal.SIGSTOP)
    wait_for(lambda: not any(map(alive, pids[1:])))
    os.kill(pids[0], signal.SIGCONT)
    code, said = end_of(lead)
    assert code == 4 and "ResourceError of rank 0: cannot go on without rank 0\n" in said
    assert f": {named(0, pids)}: stopped or cut off, no sign of life for 5 s" in said


@pytest.mark.soak
@pytest.mark.parametrize("start", ["spawn", "apart"])
def test_a_job_that_is_stopped_as_a_whole_goes_on(processes: Processes, start: str):
    """Ctrl-Z and fg: nobody was silent while nobody ran."""
    all_ = processes.ranks(start, 2, 2, "collective") if start == "apart" else [processes.run(start, "2", "2", "idle")]
    pids = processes.pids(all_[0])
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    time.sleep(8)
    for pid in pids:
        os.kill(pid, signal.SIGCONT)
    time.sleep(8)
    assert all(map(alive, pids))


@pytest.mark.soak
@pytest.mark.parametrize(
    ("victim", "doing"),
    [(0, "collective"), (1, "collective"), (2, "collective"), (0, "waited"), (1, "waited"), (2, "waited")],
)
def test_a_killed_rank_of_several_hosts(processes: Processes, victim: int, doing: str):
    """Others wait in gloo: rank 0 raises the job's error, the others raise it or are ended."""
    all_ = processes.ranks("apart", 3, 3, doing)
    pids = processes.pids(all_[0])
    os.kill(pids[victim], signal.SIGKILL)
    for rank, one in enumerate(all_):
        code, said = end_of(one)
        if rank == victim:
            assert code == -signal.SIGKILL
            continue
        assert code == 4
        wanted = (
            f"rank {rank}: cannot go on without rank {victim}\n  found: {named(victim, pids)}: its connection ended\n"
        )
        assert said == f"ResourceError of {wanted}" or (rank and said == ""), said


@pytest.mark.soak
@pytest.mark.parametrize("victim", [0, 1])
def test_a_stopped_rank_of_several_hosts(processes: Processes, victim: int):
    all_ = processes.ranks("apart", 2, 2, "waited" if victim == 0 else "collective")
    pids = processes.pids(all_[0])
    os.kill(pids[victim], signal.SIGSTOP)
    other = all_[1 - victim]
    code, said = end_of(other)
    assert code == 4
    assert f"  found: {named(victim, pids)}: stopped or cut off, no sign of life for 5 s\n" in said
    os.kill(pids[victim], signal.SIGCONT)
    code, said = end_of(all_[victim])
    assert code == 4
    assert f"{named(victim, pids)}: stopped or cut off" in said or (victim and said == ""), said


@pytest.mark.soak
@pytest.mark.parametrize("start", ["share", "apart"])
def test_a_launcher_without_a_store(processes: Processes, start: str):
    all_ = processes.ranks(start, 4, 2, "lead")
    out, said = all_[0].communicate(timeout=PATIENCE)
    assert said == ""
    assert json.loads(out)["passed"] == 7
    assert [end_of(one) for one in all_[1:]] == [(0, "")] * 3


@pytest.mark.soak
def test_torchrun(processes: Processes):
    prefix = [str(Path(sys.executable).parent / "torchrun"), "--nproc-per-node", "2", "--no-python"]
    one = processes.run("share", "2", "2", "lead", prefix=prefix)
    out, said = one.communicate(timeout=PATIENCE)
    assert one.returncode == 0, said
    assert json.loads(out)["passed"] == 2


def test_another_number_of_processes_is_refused_on_each(processes: Processes):
    one, other = processes.ranks("share", 2, 2, "lead", WORLD_SIZE="4")
    for rank, (code, said) in enumerate([end_of(one), end_of(other)]):
        assert code == 2
        asked = "expected 2 processes: profile cpu-tp2 has 2 ranks\n  found: WORLD_SIZE=4\n"
        assert said.startswith(f"RecipeError of rank {rank}: {asked}")


@pytest.mark.soak
def test_a_rank_that_never_comes_is_named(processes: Processes):
    ended = [end_of(one) for one in processes.ranks("share:3", 3, 3, "lead", absent=1)]
    assert [code for code, _ in ended] == [4, 4]
    for rank, (_, said) in enumerate(ended):
        assert (
            f"ResourceError of rank {rank}: cannot start 3 ranks: not all came in 3 s\n  found: nothing of rank 2\n"
            == said
        )


@pytest.fixture
def hosts() -> Iterator[Sequence[Host]]:
    with two_hosts() as both:
        yield both


def on_hosts(processes: Processes, hosts: Sequence[Host], what: str, per_host: int) -> list[subprocess.Popen[str]]:
    """Ranks of two hosts, numbered host by host."""
    port = {"MASTER_ADDR": hosts[0].address, "MASTER_PORT": "29400", "WORLD_SIZE": str(2 * per_host)}
    return [
        processes.run(
            *("share", str(2 * per_host), "2", what),
            prefix=hosts[rank // per_host].enter,
            **{**port, "RANK": str(rank)},
        )
        for rank in range(2 * per_host)
    ]


@pytest.mark.soak
@pytest.mark.parametrize("per_host", [1, 2])
def test_two_network_namespaces_are_two_hosts(processes: Processes, hosts: Sequence[Host], per_host: int):
    all_ = on_hosts(processes, hosts, "lead", per_host)
    out, said = all_[0].communicate(timeout=PATIENCE)
    assert said == ""
    assert json.loads(out)["passed"] == 1 + sum(range(2 * per_host))
    assert [end_of(one) for one in all_[1:]] == [(0, "")] * (2 * per_host - 1)


@pytest.mark.soak
@pytest.mark.parametrize("doing", ["collective", "waited"])
def test_a_cut_cable_ends_the_ranks_on_both_ends(processes: Processes, hosts: Sequence[Host], doing: str):
    all_ = on_hosts(processes, hosts, doing, 1)
    processes.pids(all_[0])
    subprocess.run(["ip", "-n", hosts[1].name, "link", "set", hosts[1].cable, "down"], check=True)
    for rank, one in enumerate(all_):
        code, said = end_of(one)
        assert code == 4
        assert "stopped or cut off, no sign of life for 5 s" in said or (rank and not said)
