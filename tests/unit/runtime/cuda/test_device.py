"""A GPU's steps without a GPU: the driver is a fake that does nothing until it is waited for, and counts what lives."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.fakes.driver import FakeApi, FakeKernel, Result
from support.running import run_some
from support.toy_gpu import HEIGHT, IMAGES, KERNELS, MAX_BLOCKS, SHARED, VOCAB, answer, toy_engine, toy_plan

from llmc.runtime.chips import target_for
from llmc.runtime.cuda.contents import EngineContents
from llmc.runtime.cuda.device import CudaDevice
from llmc.runtime.cuda.driver import Driver
from llmc.runtime.engine_file.file import EngineFile
from llmc.runtime.errors import EngineError, LlmcError, ResourceError
from llmc.runtime.plan.executor import PagedExecutor
from llmc.runtime.plan.plan import Plan
from llmc.runtime.progress import set_debug_level
from llmc.runtime.scheduling.executor import ScheduledSequence
from llmc.runtime.scheduling.request import Request
from llmc.runtime.scheduling.scheduler import Scheduler


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_engine(tmp_path_factory.mktemp("cuda") / "toy.llmc")


@contextmanager
def executor(path: Path, api: FakeApi, *, batch: int | None = None, **options: Any) -> Iterator[PagedExecutor]:
    def make(engine: EngineFile, profile: str, plan: Plan, slots: int) -> CudaDevice:
        return CudaDevice(EngineContents(engine, profile), plan, slots, driver=Driver(api), **options)

    made = PagedExecutor(EngineFile.open(path), "sm_90", make, max_batch=batch)
    try:
        yield made
    finally:
        made.close()


@contextmanager
def loaded(path: Path, api: FakeApi, slots: int = 4, plan: Plan | None = None, **options: Any) -> Iterator[CudaDevice]:
    with EngineFile.open(path) as engine:
        given = {"driver": Driver(api), **options}
        device = CudaDevice(EngineContents(engine, "sm_90"), plan or toy_plan(), slots, **given)
        try:
            yield device
        finally:
            device.close()


def inputs_for(ids: list[int], rows: list[int], slots: list[int]) -> dict[str, np.ndarray]:
    """The first tokens of one sequence that has block 2 and more."""
    i32 = np.int32
    count = len(ids)
    return {
        "token_ids": np.array(ids, i32),
        "positions": np.arange(count, dtype=i32),
        "slot_mapping": np.arange(128, 128 + count, dtype=i32),
        "block_tables": np.array([[2, 0, 0, 0]], i32),
        "query_start_loc": np.array([0, count], i32),
        "logits_indices": np.array(rows, i32),
        "sample_slots": np.array(slots, i32),
    }


def nothing_left(api: FakeApi) -> bool:
    return not (api.device.count or api.host.count or any(api.live.values()))


@pytest.mark.parametrize("graphs", [True, False])
@pytest.mark.parametrize("batch", [1, 3, 4])
def test_requests_through_scheduler_and_device_give_the_models_tokens(toy: Path, batch: int, graphs: bool):
    prompts = [(3, 1, 4), (1,) * 70, (5, 9), tuple(range(130)), (1,) * 65, (7,)]
    counts = [9, 5, 30, 12, 3, 1]
    api = FakeApi(KERNELS)
    with executor(toy, api, batch=batch, graphs=graphs) as running:
        scheduler = Scheduler(running)
        requests = [Request(tuple(t % VOCAB for t in p), n) for p, n in zip(prompts, counts, strict=True)]
        run_some(scheduler, requests, batch)
    expected = [answer(tuple(t % VOCAB for t in p), n) for p, n in zip(prompts, counts, strict=True)]
    assert [request.tokens for request in requests] == expected
    assert nothing_left(api)


def test_wanted_logits_come_back_whole_and_belong_to_the_caller(toy: Path):
    api = FakeApi(KERNELS)
    with executor(toy, api) as running:
        prompt = (4, 8, 15)
        (first,) = running.collect(running.submit((ScheduledSequence(0, prompt, 0, ((1,),), None, 3, rows="all"),)))
        (second,) = running.collect(running.submit((ScheduledSequence(0, (9,), 3, ((1,),), None, 3, rows="last"),)))
    assert first.logits is not None and second.logits is not None
    assert first.logits.argmax(axis=1).tolist() == [9, 17, 32]
    assert first.logits.max(axis=1).tolist() == [2 * HEIGHT] * 3
    assert second.logits.argmax(axis=1).tolist() == [41]


def test_a_decode_program_is_captured_once_and_replayed(toy: Path):
    api = FakeApi(KERNELS)
    with executor(toy, api) as running:
        scheduler = Scheduler(running)
        scheduler.add(Request((2, 3), 20))
        while not scheduler.idle:
            scheduler.step()
    decode = [one for one in api.launched if one.captured]
    assert [one.entry for one in decode] == ["take", "score_all", "choose"]
    assert [one.entry for one in api.launched if not one.captured] == ["take", "score", "choose"]
    assert api.calls["cuGraphLaunch"] == 19
    assert api.calls["cuStreamBeginCapture"] == api.calls["cuGraphInstantiate"] == api.calls["cuGraphUpload"] == 1


def test_a_step_is_one_copy_in_and_one_copy_per_wanted_buffer(toy: Path):
    api = FakeApi(KERNELS)
    with loaded(toy, api) as device:
        inputs = inputs_for([5], [0], [0])
        device.read(device.run(0, {"tokens": 1, "sequences": 1, "rows": 1}, inputs, {"sampled", "status"}))
        before = api.calls.copy()
        step = device.run(0, {"tokens": 1, "sequences": 1, "rows": 1}, inputs, {"sampled", "status"})
        after = api.calls - before
        assert device.read(step)["sampled"].tolist() == [10]
    copies = {"cuMemcpyHtoDAsync": 1, "cuMemcpyDtoHAsync": 2, "cuGraphLaunch": 1, "cuEventRecord": 1}
    assert {name: after[name] for name in copies} == copies
    assert not {name for name in after if "Alloc" in name or "Synchronize" in name or "Launch" in name} - {
        "cuGraphLaunch"
    }


def test_launches_get_grids_threads_shared_memory_and_parameters_in_order(toy: Path):
    api = FakeApi(KERNELS)
    with loaded(toy, api) as device:
        sizes = {"tokens": 17, "sequences": 1, "rows": 2}
        found = device.read(device.run(3, sizes, inputs_for(list(range(17)), [3, 16], [-1, 2]), {"sampled", "logits"}))
        allocated = device._allocated
    assert found["sampled"].tolist() == [11, (136 + 5) % VOCAB]
    assert found["logits"].shape == (2, VOCAB) and found["logits"].dtype == np.float32
    take, score, choose = api.launched
    assert (take.grid, score.grid, choose.grid) == ((3, 1, 1), (2, 2, 1), (2, 1, 1))
    assert (take.threads, score.threads, choose.threads) == (128, 256, 128)
    assert (take.shared, score.shared, choose.shared) == (0, 60000, 49153)
    assert api.allowed == {"score": SHARED["score"], "choose": SHARED["choose"]}, "48 KiB need no permission"
    ids = allocated.arena
    # inputs lie packed, 256 bytes aligned, in the plan's order: token_ids 68 bytes, positions 68, slot_mapping 68 ...
    last, past = allocated.tensors["last_tokens"], allocated.tensors["past"]
    assert take.values == (allocated.inputs, last, past, allocated.inputs + 512, ids, 17, 0, 0)
    assert score.values[5:] == (allocated.tensors["bias"], allocated.tensors["height"], 2.0, ids + 512, 2, 1, 0, 0)
    assert not (take.pdl or score.pdl or choose.pdl)


def test_scratch_is_for_the_kernels_that_ask_for_it(toy: Path):
    api = FakeApi(KERNELS)
    with loaded(toy, api) as device:
        assert device.budget.scratch == (12 * 32, 0)
        device.read(device.run(0, {"tokens": 1, "sequences": 1, "rows": 1}, inputs_for([5], [0], [0]), ()))
        scratch = [one.values[-2:] for one in api.launched]
        assert scratch == [(0, 0), (device._allocated.scratch[0], 0), (0, 0)]
        assert device._allocated.scratch[0] % 256 == 0


@pytest.mark.parametrize("switch", [True, False])
def test_programmatic_launch_is_for_kernels_that_wait_and_follow_another(toy: Path, switch: bool):
    plan = toy_plan()
    modules = tuple(
        replace(one, code=replace(one.code, pdl=True)) if one.kernel in ("take", "choose") and one.code else one
        for one in plan.modules
    )
    api = FakeApi(KERNELS)
    with loaded(toy, api, plan=replace(plan, modules=modules, pdl=switch)) as device:
        device.read(device.run(0, {"tokens": 1, "sequences": 1, "rows": 1}, inputs_for([5], [0], [0]), ()))
    launched = [(one.entry, one.pdl) for one in api.launched]
    assert launched == [("take", False), ("score_all", False), ("choose", switch)]


def test_an_empty_grid_launches_nothing(toy: Path):
    api = FakeApi(KERNELS)
    with loaded(toy, api) as device:
        sizes = {"tokens": 4, "sequences": 1, "rows": 0}
        assert device.read(device.run(3, sizes, inputs_for([1, 2, 3, 4], [], []), ())) == {}
        past = api.device.array(device._allocated.tensors["past"] + 4 * 128, np.float32, 4)
        assert past.tolist() == [1, 2, 3, 4]
    assert [one.entry for one in api.launched] == ["take"]


def test_slots_are_not_filled_before_the_gpu_has_read_them(toy: Path):
    """Eleven steps without reading one: each must still see its own inputs, and the last three can be read."""
    api = FakeApi(KERNELS)
    sizes = {"tokens": 1, "sequences": 1, "rows": 1}
    with loaded(toy, api) as device:
        steps = [device.run(3, sizes, inputs_for([token], [0], [0]), {"sampled"}) for token in range(20, 31)]
        assert [device.read(step)["sampled"].tolist() for step in steps[-3:]] == [[33], [34], [35]]
        with pytest.raises(LlmcError, match="cannot read the results of step 8\n  found: step 11 in its place"):
            device.read(steps[-4])


def test_results_grow_without_moving_under_a_copy(toy: Path):
    api = FakeApi(KERNELS)
    with loaded(toy, api) as device:
        for rows in (1, 68, 3):
            sizes = {"tokens": 68, "sequences": 1, "rows": rows}
            ids = [1] * 64 + [0] * 4
            inputs = inputs_for(ids, list(range(rows)), [-1] * rows)
            inputs["slot_mapping"][64:] = -1
            steps = [device.run(3, sizes, inputs, {"logits"}) for _ in range(2)]
            for step in steps:
                assert device.read(step)["logits"][0].argmax() == 6
        assert api.host.count <= 6


def test_bound_sizes_are_remembered_but_not_forever(toy: Path):
    with loaded(toy, FakeApi(KERNELS)) as device:
        for tokens in (*range(1, 68), 1, 2):
            sizes = {"tokens": tokens, "sequences": 1, "rows": 1}
            device.read(device.run(3, sizes, inputs_for([0] * tokens, [0], [0]), ()))
        assert len(device._bounds) == 64


def test_caches_and_state_begin_as_zeros(toy: Path):
    api = FakeApi(KERNELS)
    with loaded(toy, api) as device:
        cache = api.device.array(device._allocated.tensors["past"], np.uint8, device.blocks["blocks"] * 256)
        state = api.device.array(device._allocated.tensors["last_tokens"], np.uint8, 16)
        assert device.blocks == {"blocks": 4 * MAX_BLOCKS} and not cache.any() and not state.any()


def test_equal_machine_code_is_loaded_once(toy: Path):
    api = FakeApi(KERNELS)
    with loaded(toy, api) as device:
        assert sorted(api.images) == sorted({*IMAGES.values()})
        assert set(device.timings) == {"context", "plan", "kernels", "memory", "weights"}


REFUSALS = [
    (
        "cuMemAlloc",
        "CUDA_ERROR_OUT_OF_MEMORY",
        ResourceError,
        "cannot allocate .* of GPU memory for weights\n  found: CUDA_ERROR_OUT_OF",
    ),
    (
        "cuModuleLoadData",
        "CUDA_ERROR_NO_BINARY_FOR_GPU",
        ResourceError,
        r"the driver \(CUDA 13.0\) refuses this machine",
    ),
    ("cuModuleLoadData", "CUDA_ERROR_INVALID_IMAGE", ResourceError, "try: NVIDIA driver 580 or newer"),
    (
        "cuModuleGetFunction",
        "CUDA_ERROR_NOT_FOUND",
        EngineError,
        "cannot find kernel take of .*\n  found: CUDA_ERROR_NOT_FOUND",
    ),
    (
        "cuFuncSetAttribute",
        "CUDA_ERROR_INVALID_VALUE",
        ResourceError,
        "cannot set the shared memory carveout of kernel take of",
    ),
    ("cuMemHostAlloc", "CUDA_ERROR_OUT_OF_MEMORY", ResourceError, "65536 bytes of pinned host memory for a step"),
    (
        "cuMemcpyHtoDAsync",
        "CUDA_ERROR_INVALID_VALUE",
        ResourceError,
        "cannot copy to the GPU\n  found: CUDA_ERROR_INVALID_VALUE",
    ),
    ("cuEventCreate", "CUDA_ERROR_OUT_OF_MEMORY", ResourceError, "cannot create an event"),
    (
        "cuStreamSynchronize",
        "CUDA_ERROR_ILLEGAL_ADDRESS",
        EngineError,
        "cannot wait for the GPU\n  found: CUDA_ERROR_ILLEGAL",
    ),
]


@pytest.mark.parametrize(("function", "failure", "kind", "text"), REFUSALS)
def test_a_driver_that_refuses_is_quoted_and_nothing_stays_allocated(
    toy: Path, function: str, failure: str, kind: type[LlmcError], text: str
):
    api = FakeApi(KERNELS)
    api.fail[function] = Result[failure]
    with pytest.raises(kind, match=text), loaded(toy, api):
        pass
    assert nothing_left(api)


def test_a_failing_kernel_is_told_when_its_step_is_read(toy: Path):
    api = FakeApi(KERNELS)
    with loaded(toy, api) as device:
        step = device.run(0, {"tokens": 1, "sequences": 1, "rows": 1}, inputs_for([5], [0], [0]), {"sampled"})
        api.fail["cuEventSynchronize"] = Result["CUDA_ERROR_ILLEGAL_ADDRESS"]
        text = "cannot wait for a step on the GPU\n  found: CUDA_ERROR_ILLEGAL_ADDRESS: a kernel failed\n  try: llmc"
        with pytest.raises(EngineError, match=text):
            device.read(step)


def test_closing_after_an_error_the_gpu_does_not_recover_from(toy: Path):
    api = FakeApi(KERNELS)
    with loaded(toy, api) as device:
        device.run(0, {"tokens": 1, "sequences": 1, "rows": 1}, inputs_for([5], [0], [0]), {"sampled"})
        for function in ("cuStreamSynchronize", "cuMemFree", "cuGraphExecDestroy", "cuCtxSetCurrent"):
            api.fail[function] = Result["CUDA_ERROR_ILLEGAL_ADDRESS"]
    assert api.calls["cuDevicePrimaryCtxRelease"] == 1 and not api.live["streams"] and not api.host.count


def test_a_failed_capture_is_ended_and_told(toy: Path):
    api = FakeApi(KERNELS)
    sizes = {"tokens": 1, "sequences": 1, "rows": 1}
    with loaded(toy, api) as device:
        api.fail["cuLaunchKernelEx"] = Result["CUDA_ERROR_INVALID_VALUE"]
        with pytest.raises(ResourceError, match=r"cannot launch the take \(take\)\n  found: CUDA_ERROR_INVALID_VALUE"):
            device.run(0, sizes, inputs_for([5], [0], [0]), {"sampled"})
        assert api.calls["cuStreamEndCapture"] == 1
        del api.fail["cuLaunchKernelEx"]
        found = device.read(device.run(0, sizes, inputs_for([5], [0], [0]), {"sampled"}))
        assert found["sampled"].tolist() == [10]
    assert nothing_left(api)


@pytest.mark.parametrize(("sm", "fits"), [(90, True), (80, False), (89, False), (100, False), (103, False)])
def test_a_plan_runs_on_its_own_chip(toy: Path, sm: int, fits: bool):
    api = FakeApi(KERNELS, sm=sm)
    if fits:
        with loaded(toy, api):
            return
    target = target_for(sm) or "cpu"
    found = f"found: {sm // 10}.{sm % 10}\n  try: an engine built with --target {target}"
    text = f"expected a GPU of compute capability 9.0 for profile .*\n  {found}"
    with pytest.raises(ResourceError, match=text), loaded(toy, api):
        pass
    assert nothing_left(api) and not api.calls["cuMemAlloc"]


def test_a_kernel_with_too_much_shared_memory_for_this_gpu(toy: Path):
    api = FakeApi(KERNELS, shared=59999)
    text = "cannot load kernel score of .* with 60000 bytes of shared memory per block\n  found: 59999 on this GPU"
    with pytest.raises(ResourceError, match=text), loaded(toy, api):
        pass


def test_steps_of_wrong_sizes_or_inputs_are_refused(toy: Path):
    with loaded(toy, FakeApi(KERNELS)) as device:
        with pytest.raises(EngineError, match=r"expected a step of at most .*\n  found: {'tokens': 69"):
            device.run(3, {"tokens": 69, "sequences": 1, "rows": 1}, {}, ())
        with pytest.raises(EngineError, match="expected a decode step of"):
            device.run(1, {"tokens": 1, "sequences": 1, "rows": 1}, {}, ())
        inputs = inputs_for([5], [0], [0]) | {"block_tables": np.zeros((1, 3), np.int32)}
        with pytest.raises(
            EngineError, match=r"expected input 'block_tables' as int32 \[1, 4\]\n  found: int32 \[1, 3\]"
        ):
            device.run(0, {"tokens": 1, "sequences": 1, "rows": 1}, inputs, ())


def test_a_plan_whose_launch_does_not_fit_its_module_is_refused(tmp_path: Path):
    plan = toy_plan()
    wrong = replace(plan.modules[0], types=("*fp32", *plan.modules[0].types[1:]))
    damaged = replace(plan, modules=(wrong, *plan.modules[1:]))
    api = FakeApi({**KERNELS, "take": FakeKernel(wrong.types, KERNELS["take"].compute)})
    with EngineFile.open(toy_engine(tmp_path / "e.llmc", damaged)) as engine:
        device = CudaDevice(EngineContents(engine, "sm_90"), damaged, 4, driver=Driver(api))
        with pytest.raises(
            EngineError,
            match=r"expected arguments of take\(\*fp32, .* in launch 'the take'\n  found: \*i32, \*i32, \*fp32",
        ):
            device.run(0, {"tokens": 1, "sequences": 1, "rows": 1}, inputs_for([5], [0], [0]), ())
        device.close()
    assert not api.launched and nothing_left(api)


def test_machine_code_that_is_not_there_is_refused(tmp_path: Path):
    path = toy_engine(tmp_path / "e.llmc", cubins=b"too short")
    text = r"expected machine code .* inside 'profiles/sm_90/kernels.cubins' of 9 bytes in .*\n  found: bytes 0 to 20"
    with pytest.raises(EngineError, match=text), loaded(path, FakeApi(KERNELS)):
        pass


def test_at_debug_3_each_launch_is_timed_alone_and_no_graph_is_captured(toy: Path, capsys: pytest.CaptureFixture[str]):
    api = FakeApi(KERNELS)
    set_debug_level("3")
    try:
        with loaded(toy, api) as device:
            inputs = inputs_for([5], [0], [0])
            step = device.run(0, {"tokens": 1, "sequences": 1, "rows": 1}, inputs, {"sampled"})
            assert device.read(step)["sampled"].tolist() == [10]
    finally:
        set_debug_level("0")
    shown = re.findall(r"^debug 3: launch .* \((\w+)\): ([\d.]+) ms$", capsys.readouterr().err, re.MULTILINE)
    assert [kernel for kernel, _ in shown] == ["take", "score_all", "choose"]
    assert {time for _, time in shown} == {"1.0000"}, "what the driver says is between the two events: one launch"
    assert api.calls["cuStreamBeginCapture"] == 0
    assert nothing_left(api)
