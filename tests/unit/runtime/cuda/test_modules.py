"""A plan's kernels are loaded first: whole, with one split of memory, and from PTX where the driver wants that."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.fakes.driver import FakeApi, Result
from support.toy_gpu import IMAGES, KERNELS, PTX, answer, toy_engine, toy_plan

from llmc.runtime.cuda.contents import EngineContents
from llmc.runtime.cuda.device import CudaDevice
from llmc.runtime.cuda.driver import Driver, RefusedCode
from llmc.runtime.engine_file.file import EngineFile
from llmc.runtime.plan.executor import PagedExecutor
from llmc.runtime.plan.plan import Plan
from llmc.runtime.scheduling.request import Request
from llmc.runtime.scheduling.scheduler import Scheduler


@contextmanager
def loaded(path: Path, api: FakeApi) -> Iterator[PagedExecutor]:
    def make(engine: EngineFile, profile: str, plan: Plan, slots: int) -> CudaDevice:
        return CudaDevice(EngineContents(engine, profile), plan, slots, driver=Driver(api))

    made = PagedExecutor(EngineFile.open(path), "sm_90", make, max_batch=4)
    try:
        yield made
    finally:
        made.close()


def nothing_left(api: FakeApi) -> bool:
    return not (api.device.count or api.host.count or any(api.live.values()))


def test_kernels_are_loaded_whole_and_share_one_split_of_memory_before_the_first_step(tmp_path: Path):
    api = FakeApi(KERNELS)
    with loaded(toy_engine(tmp_path / "e.llmc"), api):
        assert api.carveouts == dict.fromkeys(KERNELS, 100) and api.loaded == {*KERNELS}
        assert api.allowed == {"score": 60000, "choose": 49153}
        assert not api.launched


def refusing(*, ptx: str = "") -> FakeApi:
    """A driver that takes no machine code; ptx: what its compiler says of PTX, if it does not take that either."""
    api = FakeApi(KERNELS)
    api.fail["cuModuleLoadData"] = Result["CUDA_ERROR_NO_BINARY_FOR_GPU"]
    api.jit_log = ptx
    return api


def test_a_driver_that_refuses_machine_code_compiles_the_ptx_and_says_so(tmp_path: Path):
    api, path = refusing(), toy_engine(tmp_path / "e.llmc", toy_plan(ptx=True), ptx=PTX)
    with loaded(path, api) as running:
        (note,) = running.notes
        scheduler = Scheduler(running)
        request = scheduler.add(Request((3, 1, 4), 5))
        while not scheduler.idle:
            scheduler.step()
    assert note == (
        "the driver refused the machine code of 3 kernels and compiled their PTX; take: CUDA_ERROR_NO_BINARY_FOR_GPU: "
        "the driver (CUDA 13.0) refuses this machine code"
    )
    assert request.tokens == answer((3, 1, 4), 5)
    assert api.jitted == [f"PTX of {name}" for name in IMAGES if name != "score_all"] and nothing_left(api)


def test_ptx_that_is_refused_too_tells_what_the_drivers_compiler_said(tmp_path: Path):
    api, path = refusing(ptx="line 3: unknown target\n"), toy_engine(tmp_path / "e.llmc", toy_plan(ptx=True), ptx=PTX)
    text = r"cannot compile the PTX of kernel take of .*\n  found: CUDA_ERROR_INVALID_PTX: .*; line 3: unknown target"
    with pytest.raises(RefusedCode, match=text), loaded(path, api):
        pass
    assert nothing_left(api)


def test_an_engine_without_ptx_is_refused_as_before(tmp_path: Path):
    api = refusing()
    with (
        pytest.raises(RefusedCode, match=r"cannot load kernel take of .*\n  found: CUDA_ERROR_NO_BINARY_FOR_GPU"),
        loaded(toy_engine(tmp_path / "e.llmc"), api),
    ):
        pass
    assert nothing_left(api) and not api.jitted
