"""Engines over the processes of a launcher, on one host and on two, have the tokens of one process."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from support.engines import PicoEngine
from support.parallel.hosts import Host, two_hosts
from support.parallel.jobs import PATIENCE, Jobs, Run, end_of, free_port

import llmc

PROMPT = "def main("
OPTIONS: dict[str, Any] = {"max_tokens": 12, "temperature": 0.0}
GREEDY = ("--max-tokens", "12", "--temperature", "0", "--json")


@pytest.fixture(scope="module")
def engine(pico_engine: PicoEngine) -> Path:
    return pico_engine("none", parallel="tp1,tp2,pp2,tp2-pp2")


@pytest.fixture(scope="module")
def wanted(engine: Path) -> list[int]:
    """The tokens of one process."""
    with llmc.load(engine, "cpu") as one:
        return one.generate(PROMPT, **OPTIONS).token_ids


@pytest.fixture
def jobs() -> Iterator[Jobs]:
    made = Jobs()
    yield made
    made.end()


def tokens_of(ranks: Sequence[Run], given: str | None = None) -> list[int]:
    """What rank 0 has written; the others write nothing."""
    out, said = ranks[0].communicate(given, timeout=PATIENCE)
    assert ranks[0].returncode == 0, said
    assert [end_of(one) for one in ranks[1:]] == [(0, "")] * (len(ranks) - 1)
    return json.loads(out)["token_ids"]


@pytest.mark.parametrize(
    ("profile", "ranks"),
    [("cpu-tp2", 2), *(pytest.param(*one, marks=pytest.mark.soak) for one in [("cpu-pp2", 2), ("cpu-tp2-pp2", 4)])],
)
def test_processes_of_one_host(jobs: Jobs, engine: Path, wanted: list[int], profile: str, ranks: int):
    """The prompt comes from stdin, which all of them have: rank 0 alone reads it."""
    port = free_port()
    arguments = ("run", engine, "-", "--profile", profile, *GREEDY)
    all_ = [jobs.launched(rank, port, *arguments, ranks=ranks) for rank in range(ranks)]
    assert tokens_of(all_, PROMPT) == wanted


@pytest.mark.soak
@pytest.mark.parametrize(("profile", "ranks"), [("cpu-tp2", 2), ("cpu-tp2-pp2", 4)])
def test_torchrun(jobs: Jobs, engine: Path, wanted: list[int], profile: str, ranks: int):
    prefix = [Path(sys.executable).parent / "torchrun", "--nproc-per-node", ranks, "--no-python"]
    one = jobs.start("run", engine, PROMPT, "--profile", profile, *GREEDY, prefix=prefix)
    assert tokens_of([one]) == wanted


@pytest.fixture(scope="module")
def hosts() -> Iterator[Sequence[Host]]:
    with two_hosts() as both:
        yield both


@pytest.mark.parametrize(
    ("profile", "ranks"),
    [("cpu-pp2", 2), *(pytest.param(*one, marks=pytest.mark.soak) for one in [("cpu-tp2", 2), ("cpu-tp2-pp2", 4)])],
)
def test_two_hosts(jobs: Jobs, hosts: Sequence[Host], engine: Path, wanted: list[int], profile: str, ranks: int):
    """A stage on each, or a shard on each: arrays cross the cable with gloo."""
    arguments = ("run", engine, PROMPT, "--profile", profile, *GREEDY)
    where = [hosts[rank * 2 // ranks] for rank in range(ranks)]
    all_ = [
        jobs.launched(rank, 29400, *arguments, ranks=ranks, address=hosts[0].address, prefix=host.enter)
        for rank, host in enumerate(where)
    ]
    assert tokens_of(all_) == wanted


def test_a_launcher_of_a_profile_of_one_rank_is_said(pico_engine: PicoEngine, monkeypatch: pytest.MonkeyPatch):
    """Every process would print the same text, and nothing said why."""
    path = pico_engine("int4")
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "4")
    with llmc.load(path) as engine:
        assert engine.notes == (), "of half a launcher: MASTER_ADDR is not set"
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "29500")
    with llmc.load(path) as engine:
        assert engine.notes == (
            "WORLD_SIZE=4 changes nothing: profile cpu has one rank, and every process runs it alone",
        )
