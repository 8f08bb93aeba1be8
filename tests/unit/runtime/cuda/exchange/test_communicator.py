"""Ranks on GPUs without GPUs: exchanges are on the stream in the order of the plan, and every failure ends the wait.

The toy's logits are halves on two shards, so their sum shows; with stages, the first one computes and the last chooses.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.fakes.driver import FakeApi, Result
from support.fakes.nccl import FakeNccl, FakePeers, World
from support.fakes.toy_ranks import of_rank, shards, stages
from support.toy_gpu import HEIGHT, KERNELS, VOCAB, answer, toy_ranks

from llmc.runtime.cuda import gpus
from llmc.runtime.cuda.contents import EngineContents
from llmc.runtime.cuda.device import CudaDevice
from llmc.runtime.cuda.driver import Driver
from llmc.runtime.cuda.exchange.nccl import FUNCTIONS, ID_BYTES, Nccl
from llmc.runtime.engine_file.file import EngineFile
from llmc.runtime.errors import EngineError, ResourceError
from llmc.runtime.plan.between import RankOf
from llmc.runtime.plan.executor import PagedExecutor
from llmc.runtime.plan.plan import Plan
from llmc.runtime.sampling.params import SamplingParams
from llmc.runtime.scheduling.executor import ScheduledSequence

NAMES = [b"of a stage".ljust(ID_BYTES, b"\0") + b"of the job".ljust(ID_BYTES, b"\0")] * 4


class Job:
    """Ranks over fake drivers, with what is asked of each."""

    def __init__(self, count: int) -> None:
        self.world = World([FakeApi(KERNELS) for _ in range(count)])
        self.nccl = [FakeNccl(self.world, number) for number in range(count)]
        self.peers = [FakePeers(self.world, number, NAMES) for number in range(count)]

    def device(self, rank: int, engine: EngineFile, label: str, plan: Plan, slots: int, **options: Any) -> CudaDevice:
        given = {"driver": Driver(self.world.apis[rank]), "peers": self.peers[rank], "nccl": Nccl(self.nccl[rank])}
        return CudaDevice(EngineContents(engine, label), plan, slots, **(given | options))

    @property
    def nothing_left(self) -> bool:
        return not any(api.device.count or api.host.count or any(api.live.values()) for api in self.world.apis)


@contextmanager
def executors(path: Path, job: Job, name: str, **options: Any) -> Iterator[list[PagedExecutor]]:
    with ExitStack() as cleanup:
        made = []
        for rank in range(len(job.nccl)):

            def make(engine: EngineFile, label: str, plan: Plan, slots: int, rank: int = rank) -> CudaDevice:
                return job.device(rank, engine, label, plan, slots, **options)

            made.append(PagedExecutor(EngineFile.open(path), f"sm_90-{name}.rank-{rank}", make, max_batch=None))
            cleanup.callback(made[-1].close)
        yield made


@contextmanager
def devices(path: Path, job: Job, name: str, plans: Sequence[Plan], **options: Any) -> Iterator[list[CudaDevice]]:
    with EngineFile.open(path) as engine, ExitStack() as cleanup:
        made = []
        for rank, plan in enumerate(plans):
            made.append(job.device(rank, engine, f"sm_90-{name}.rank-{rank}", plan, 4, **options))
            cleanup.callback(made[-1].close)
        yield made


@pytest.fixture(scope="module")
def two_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_ranks(tmp_path_factory.mktemp("ranks") / "tp2.llmc", "tp2", shards())


@pytest.fixture(scope="module")
def two_stages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_ranks(tmp_path_factory.mktemp("ranks") / "pp2.llmc", "pp2", stages())


def step_of(tokens: tuple[int, ...], start: int) -> tuple[ScheduledSequence, ...]:
    return (ScheduledSequence(0, tokens, start, ((1,),), SamplingParams(), 3, rows="last"),)


@pytest.mark.parametrize("graphs", [True, False])
def test_shards_sum_and_every_one_of_them_chooses_the_models_tokens(two_shards: Path, graphs: bool):
    job, tokens = Job(2), []
    with executors(two_shards, job, "tp2", graphs=graphs) as ranks:
        for given, start in (((4, 8, 15), 0), ((), 3), ((), 4), ((), 5)):
            tickets = [one.submit(step_of(given, start)) for one in ranks]
            found = [one.collect(ticket)[0] for one, ticket in zip(ranks, tickets, strict=True)]
            tokens.append([one.sampled.token for one in found if one.sampled is not None])
            assert [one.logits.max() for one in found if one.logits is not None] == [2 * 2 * HEIGHT] * 2
    assert tokens == [[token, token] for token in answer((4, 8, 15), 4)]
    captured = [False, True] if graphs else [False] * 4
    for nccl, api in zip(job.nccl, job.world.apis, strict=True):
        assert [(one.function, one.count, one.dtype, one.group, one.captured) for one in nccl.calls] == [
            ("ncclAllReduce", VOCAB, 7, 2, one) for one in captured
        ]
        entries = [launch.entry for launch in api.launched]
        assert entries[:3] == ["take", "score", "choose"]
        logits = api.launched[1].values[8]
        assert {(one.sends, one.receives) for one in nccl.calls} == {(logits, logits)}
    assert job.nothing_left and not any(nccl.live for nccl in job.nccl)


def inputs(plan: Plan) -> dict[str, np.ndarray]:
    i32 = np.int32
    return {
        "token_ids": np.array([4, 8], i32),
        "positions": np.arange(2, dtype=i32),
        "slot_mapping": np.arange(64, 66, dtype=i32),
        "block_tables": np.array([[1, 0, 0, 0]], i32),
        "query_start_loc": np.array([0, 2], i32),
        "logits_indices": np.array([1], i32),
        "sample_slots": np.array([0], i32),
    }


STEP = 3, {"tokens": 2, "sequences": 1, "rows": 1}


def test_a_stage_sends_to_the_next_which_chooses(two_stages: Path):
    job = Job(2)
    with devices(two_stages, job, "pp2", stages()) as (first, last):
        handles = [
            first.run(*STEP, inputs(stages()[0]), ()),
            last.run(*STEP, inputs(stages()[1]), ("sampled", "logits")),
        ]
        read = last.read(handles[1])
        assert first.read(handles[0]) == {}
    assert read["sampled"].tolist() == answer((4, 8), 1) and read["logits"].max() == 2 * HEIGHT
    assert [(one.function, one.count, one.peer, one.group) for nccl in job.nccl for one in nccl.calls] == [
        ("ncclSend", VOCAB, 1, 2),
        ("ncclRecv", VOCAB, 0, 2),
    ]
    assert job.nothing_left


def test_four_steps_of_two_stages_are_open_at_once(two_stages: Path):
    job = Job(2)
    with devices(two_stages, job, "pp2", stages()) as (first, last):
        sent = [first.run(*STEP, inputs(stages()[0]), ()) for _ in range(3)]
        for handle in sent:
            read = last.read(last.run(*STEP, inputs(stages()[1]), ("sampled",)))
            assert read["sampled"].tolist() == answer((4, 8), 1)
            first.read(handle)


def test_nothing_is_exchanged_in_a_step_without_rows(two_shards: Path):
    job = Job(2)
    with devices(two_shards, job, "tp2", shards()) as ranks:
        given = inputs(shards()[0]) | dict.fromkeys(("logits_indices", "sample_slots"), np.array([], np.int32))
        for one in ranks:
            one.read(one.run(3, {"tokens": 2, "sequences": 1, "rows": 0}, given, ()))
    assert not job.nccl[0].calls


def test_groups_are_named_by_their_first_rank_and_joined_in_the_order_of_ranks(tmp_path: Path):
    plans = [of_rank(RankOf(rank, 2, 2), [], [], ("take", "score", "choose")) for rank in range(4)]
    path, job = toy_ranks(tmp_path / "e.llmc", "tp2-pp2", plans), Job(4)
    with devices(path, job, "tp2-pp2", plans):
        assert [[len(name) for name in peers.gave] for peers in job.peers] == [[2 * ID_BYTES]] * 4
        named = [
            [part.rstrip(b"\0") for part in (one[:ID_BYTES], one[ID_BYTES:])] for one in (p.gave[0] for p in job.peers)
        ]
        assert named == [[b"group 1", b"group 2"], [b"", b""], [b"group 1", b""], [b"", b""]]
        assert [[*nccl.live.values()] for nccl in job.nccl] == [
            [(b"of a stage", 2, rank % 2), (b"of the job", 4, rank)] for rank in range(4)
        ]


@pytest.mark.parametrize(
    ("function", "result", "error", "message"),
    [
        (
            *("ncclAllReduce", 3, ResourceError),
            r"cannot exchange the all_reduce \(all_reduce\)\n  found: ncclInternalError; text of 3; NET",
        ),
        ("ncclAllReduce", 5, EngineError, "found: ncclInvalidUsage; .*\n  try: build the engine again"),
        ("ncclAllReduce", 99, ResourceError, "found: NCCL error 99; text of 99"),
    ],
)
def test_a_failing_exchange_is_refused_by_its_name(
    two_shards: Path, function: str, result: int, error: type[Exception], message: str
):
    job = Job(2)
    with devices(two_shards, job, "tp2", shards()) as ranks:
        job.nccl[0].fail[function] = result
        with pytest.raises(error, match=message):
            ranks[0].run(*STEP, inputs(shards()[0]), ("sampled",))
    assert job.nothing_left


@pytest.mark.parametrize("function", ["ncclGetUniqueId", "ncclCommInitRank", "ncclCommCuDevice"])
def test_ranks_that_cannot_be_connected_leave_nothing(two_shards: Path, function: str):
    job = Job(2)
    job.nccl[0].fail[function] = 2
    with (
        pytest.raises(ResourceError, match=r"found: ncclSystemError; text of 2"),
        devices(two_shards, job, "tp2", shards()),
    ):
        pass
    assert job.nothing_left and not job.nccl[0].live


def test_another_gpu_than_the_drivers_is_refused(two_shards: Path):
    job = Job(2)
    job.nccl[0].gpu = 3
    with (
        pytest.raises(EngineError, match=r"expected rank 0 on GPU 0\n  found: GPU 3"),
        devices(two_shards, job, "tp2", shards()),
    ):
        pass
    assert job.nothing_left and not job.nccl[0].live


def test_a_wait_ends_with_what_nccl_finds_meanwhile(two_shards: Path):
    job = Job(2)
    with devices(two_shards, job, "tp2", shards()) as (one, _):
        handle = one.run(*STEP, inputs(shards()[0]), ("sampled",))
        job.nccl[0].broken = 6
        with pytest.raises(ResourceError, match=r"cannot exchange results with other ranks\n  found: ncclRemoteError"):
            one.read(handle)
        assert job.nccl[0].order[-1] == "ncclCommAbort" and not job.nccl[0].live
        with pytest.raises(
            ResourceError, match=r"cannot exchange the all_reduce .*\n  found: the exchange .* was aborted"
        ):
            one.run(*STEP, inputs(shards()[0]), ("sampled",))
    assert job.nothing_left


@pytest.mark.parametrize("graphs", [True, False])
def test_a_wait_for_a_dead_rank_ends_with_the_error_of_the_job(two_shards: Path, graphs: bool):
    job = Job(2)
    with executors(two_shards, job, "tp2", graphs=graphs) as (one, _):
        ticket = one.submit(step_of((4, 8, 15), 0))
        job.world.aborted = ResourceError("cannot go on without rank 1", found="killed by signal 9")
        with pytest.raises(ResourceError, match=r"cannot go on without rank 1"):
            one.collect(ticket)
    assert job.nothing_left and not any(nccl.live for nccl in job.nccl)


def test_what_another_thread_aborts_gives_no_result(two_shards: Path):
    job = Job(2)
    with devices(two_shards, job, "tp2", shards()) as (one, _):
        handle = one.run(*STEP, inputs(shards()[0]), ("sampled",))
        one.abort()
        with pytest.raises(ResourceError, match=r"found: the exchange between GPUs was aborted"):
            one.read(handle)


def test_joining_does_not_wait_for_a_rank_that_never_comes(two_shards: Path, monkeypatch: pytest.MonkeyPatch):
    job, never = Job(1), threading.Event()
    monkeypatch.setattr(FakeNccl, "ncclCommInitRank", lambda *_: int(never.wait()) - 1)
    job.world.aborted = ResourceError("cannot go on without rank 1")
    try:
        with (
            pytest.raises(ResourceError, match=r"cannot go on without rank 1"),
            devices(two_shards, job, "tp2", shards()[:1]),
        ):
            pass
    finally:
        never.set()
    assert job.nothing_left


def test_ranks_leave_after_their_last_exchange_and_without_graphs(two_shards: Path):
    """The fake refuses to destroy a communicator that a graph or a stream still needs."""
    job = Job(2)
    with executors(two_shards, job, "tp2") as ranks:
        for given, start in (((4, 8, 15), 0), ((), 3)):
            for one in [(rank, rank.submit(step_of(given, start))) for rank in ranks]:
                one[0].collect(one[1])
        assert all(api.live["graphs"] for api in job.world.apis)
    assert [nccl.order[-1] for nccl in job.nccl] == ["ncclCommDestroy"] * 2
    assert job.nothing_left


def test_one_rank_alone_is_refused(two_shards: Path):
    job = Job(1)
    with (
        pytest.raises(EngineError, match=r"cannot run profile 'sm_90-tp2.rank-0' of .* alone\n  found: rank 0 of 2"),
        devices(two_shards, job, "tp2", shards()[:1], peers=None),
    ):
        pass
    assert job.nothing_left


def test_the_plan_of_another_rank_is_refused(tmp_path: Path):
    path = toy_ranks(tmp_path / "e.llmc", "tp2", shards()[::-1])
    with pytest.raises(EngineError, match=r"expected the plan of sm_90-tp2.rank-0 in "), executors(path, Job(2), "tp2"):
        pass


def test_each_rank_of_a_machine_takes_its_own_gpu(two_shards: Path, monkeypatch: pytest.MonkeyPatch):
    there = tuple(gpus.Gpu(ordinal, "a GPU", sm, 1 << 34) for ordinal, sm in enumerate((80, 90)))
    monkeypatch.setattr(gpus, "detect", lambda: gpus.DetectedGpus("13.0", there))
    opened: list[int] = []
    monkeypatch.setattr(Driver, "load", lambda ordinal: opened.append(ordinal) or Driver(FakeApi(KERNELS), ordinal))
    job = Job(1)
    job.nccl[0].gpu = 1
    with EngineFile.open(two_shards) as engine:
        job.device(0, engine, "sm_90-tp2.rank-0", shards()[0], 4, driver=None).close()
        assert opened == [1]
        job.peers[0].local_rank = 1
        with pytest.raises(
            ResourceError, match=r"expected 2 GPUs for the ranks on this machine.*\n  found: 1 of compute"
        ):
            job.device(0, engine, "sm_90-tp2.rank-0", shards()[0], 4, driver=None)


def test_the_installed_library_has_all_functions():
    """Joining fails without a GPU, which shows NCCL's own text; NVIDIA's package need not be installed."""
    try:
        nccl = Nccl.load()
    except ResourceError as error:
        assert "cannot run on several GPUs without NCCL" in str(error)
        pytest.skip("no NCCL here")
    assert nccl.version >= "2.7" and len(nccl.unique_id()) == ID_BYTES and FUNCTIONS


def test_an_event_that_fails_is_no_event_that_has_not_passed():
    api = FakeApi(KERNELS)
    driver = Driver(api)
    event = driver.event()
    assert driver.passed(event)
    api.fail["cuEventQuery"] = Result["CUDA_ERROR_NOT_READY"]
    assert not driver.passed(event)
    api.fail["cuEventQuery"] = Result["CUDA_ERROR_ILLEGAL_ADDRESS"]
    with pytest.raises(EngineError, match=r"cannot look at a step on the GPU\n  found: CUDA_ERROR_ILLEGAL_ADDRESS"):
        driver.passed(event)
