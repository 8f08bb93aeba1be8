"""Which GPUs a machine has, and why it has none, without a context on any of them."""

from __future__ import annotations

from typing import Any

import pytest
from support.fakes.driver import FakeApi

from llmc.runtime.cuda import driver as driver_module
from llmc.runtime.cuda import gpus
from llmc.runtime.cuda.driver import Driver
from llmc.runtime.errors import ResourceError


class FakeLibrary:
    """libcuda with two GPUs, called as ctypes would."""

    def __init__(self, init: int = 0, gpus: tuple[tuple[str, int, int], ...] = ()) -> None:
        self._init, self._gpus = init, gpus

    def cuInit(self, flags: int) -> int:
        return self._init

    def cuDriverGetVersion(self, version: Any) -> int:
        version._obj.value = 12080
        return 0

    def cuDeviceGetCount(self, count: Any) -> int:
        count._obj.value = len(self._gpus)
        return 0

    def cuDeviceGet(self, device: Any, ordinal: int) -> int:
        device._obj.value = ordinal
        return 0

    def cuDeviceGetName(self, name: Any, size: int, device: Any) -> int:
        name.value = self._gpus[device.value][0].encode()[: size - 1]
        return 0

    def cuDeviceTotalMem_v2(self, memory: Any, device: Any) -> int:
        memory._obj.value = self._gpus[device.value][2]
        return 0

    def cuDeviceGetAttribute(self, number: Any, attribute: int, device: Any) -> int:
        sm = self._gpus[device.value][1]
        number._obj.value = {75: sm // 10, 76: sm % 10}[attribute]
        return 0


def test_gpus_are_described_without_a_context():
    found = gpus.detect(FakeLibrary(gpus=(("NVIDIA H200", 90, 150 << 30), ("NVIDIA B200", 100, 180 << 30))))
    assert found.driver == "12.8" and not found.problem
    assert found.gpus == (gpus.Gpu(0, "NVIDIA H200", 90, 150 << 30), gpus.Gpu(1, "NVIDIA B200", 100, 180 << 30))


@pytest.mark.parametrize(
    ("library", "problem"),
    [
        (FakeLibrary(100), "the driver sees no GPU"),
        (FakeLibrary(), "the driver sees no GPU"),
        (FakeLibrary(803), "the driver's library and its kernel module are of different versions"),
        (FakeLibrary(77), "cuInit gives CUDA error 77"),
    ],
)
def test_why_there_is_no_gpu(library: FakeLibrary, problem: str):
    assert gpus.detect(library) == gpus.DetectedGpus("12.8", (), problem)


def test_no_driver_is_no_gpu(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(gpus, "LIBRARY", "libcuda-that-is-not-there.so.1")
    assert gpus.detect().gpus == ()
    with pytest.raises(
        ResourceError, match=r"expected an NVIDIA GPU\n  found: no NVIDIA driver \(libcuda-that"
    ) as refusal:
        Driver.load()
    assert refusal.value.exit_code == 4


def test_missing_bindings_are_an_extra(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(gpus, "detect", lambda: gpus.DetectedGpus("13.0", (gpus.Gpu(0, "NVIDIA H200", 90, 1),)))
    monkeypatch.setattr(driver_module, "_BINDINGS", "cuda_that_is_not_there.bindings.driver")
    with pytest.raises(
        ResourceError,
        match=r"cannot run on a GPU without the extra 'cuda'\n  found: .*\n  try: pip install '\.\[cuda\]'",
    ):
        Driver.load()


def test_a_function_the_driver_does_not_have():
    api: Any = FakeApi()
    driver = Driver(api)

    def missing(*_: object) -> None:
        raise RuntimeError('Function "cuGraphUpload" not found')

    api.cuMemGetInfo = missing
    with pytest.raises(
        ResourceError,
        match=r"cannot read the free GPU memory\n  found: cuMemGetInfo: Function .*\n  try: a newer NVIDIA driver",
    ):
        driver.memory()
