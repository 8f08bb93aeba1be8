"""`cuda.bindings.driver` without a GPU: memory is the host's, kernels are Python, and all work waits until waited for.

So a step that reuses memory too early, copies outside an allocation, forgets a wait or leaks shows in tests. Only what
`runtime/cuda/driver.py` calls is here; `tests/e2e/plans/test_cuda_bindings.py` checks that the real one has it too.
"""

from __future__ import annotations

import ctypes
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from types import SimpleNamespace
from typing import Any

import numpy as np

Result = IntEnum(
    "Result",
    {
        "CUDA_SUCCESS": 0,
        "CUDA_ERROR_INVALID_VALUE": 1,
        "CUDA_ERROR_OUT_OF_MEMORY": 2,
        "CUDA_ERROR_INVALID_IMAGE": 200,
        "CUDA_ERROR_INVALID_PTX": 218,
        "CUDA_ERROR_NO_BINARY_FOR_GPU": 209,
        "CUDA_ERROR_UNSUPPORTED_PTX_VERSION": 222,
        "CUDA_ERROR_NOT_FOUND": 500,
        "CUDA_ERROR_NOT_READY": 600,
        "CUDA_ERROR_ILLEGAL_ADDRESS": 700,
        "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED": 901,
    },
)
OK = Result(0)
_CTYPES = {"i32": ctypes.c_int32, "i64": ctypes.c_int64, "fp32": ctypes.c_float}


@dataclass(frozen=True)
class FakeKernel:
    """A kernel by its entry name: Triton's types of its arguments, and what it does with them.

    compute gets the memory, the grid, and the values: pointers as addresses. The scratch pointers come last.
    """

    types: tuple[str, ...]
    compute: Callable[..., None]


@dataclass(frozen=True)
class Launched:
    """One launch as it was asked for."""

    entry: str
    grid: tuple[int, int, int]
    threads: int
    shared: int
    values: tuple[int | float, ...]
    pdl: bool
    captured: bool


@dataclass(eq=False)
class Stream:
    queue: list[Callable[[], object]] = field(default_factory=list)
    """Work that returns False waits for another rank, and is asked again."""
    done: int = 0
    capturing: list[Callable[[], object]] | None = None

    def run(self, until: int | None = None) -> bool:
        """Do the work up to a position; False if it waits for another rank."""
        stop = self.done + len(self.queue) if until is None else until
        while self.done < stop:
            if self.queue[0]() is False:
                return False
            self.queue.pop(0)
            self.done += 1
        return True

    def give(self, work: Callable[[], object]) -> None:
        (self.queue if self.capturing is None else self.capturing).append(work)

    def __int__(self) -> int:
        return id(self)


@dataclass(eq=False)
class _Event:
    stream: Stream | None = None
    position: int = 0


class Memory:
    """Allocations with their real addresses; reading or writing outside one is an error."""

    def __init__(self) -> None:
        self._blocks: dict[int, Any] = {}
        self.bytes = 0

    def allocate(self, nbytes: int) -> int:
        block = ctypes.create_string_buffer(b"\xa5" * (nbytes + 512), nbytes + 512)
        address = -(-ctypes.addressof(block) // 512) * 512
        self._blocks[address] = (nbytes, block)
        self.bytes += nbytes
        return address

    def free(self, address: int) -> None:
        self.bytes -= self._blocks.pop(address)[0]

    @property
    def count(self) -> int:
        return len(self._blocks)

    def check(self, address: int, nbytes: int) -> None:
        for base, (size, _) in self._blocks.items():
            if base <= address and address + nbytes <= base + size:
                return
        raise AssertionError(f"{nbytes} bytes at {address:#x} are outside every allocation")

    def array(self, address: int, dtype: Any, count: int) -> np.ndarray:
        """Numbers at an address, in place."""
        nbytes = np.dtype(dtype).itemsize * count
        self.check(address, nbytes)
        return np.ctypeslib.as_array((ctypes.c_ubyte * nbytes).from_address(address)).view(dtype)


class FakeApi:
    """The driver's functions: each returns a status and results. fail: function to the error it gives."""

    CUstream_flags = SimpleNamespace(CU_STREAM_NON_BLOCKING=SimpleNamespace(value=1))
    CUevent_flags = SimpleNamespace(
        CU_EVENT_DEFAULT=SimpleNamespace(value=0), CU_EVENT_DISABLE_TIMING=SimpleNamespace(value=2)
    )
    CUfunction_attribute = SimpleNamespace(
        CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES="dynamic shared",
        CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT="carveout",
    )
    CUjit_option = SimpleNamespace(
        CU_JIT_ERROR_LOG_BUFFER="error log", CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES="error log bytes"
    )
    CUdevice_attribute = SimpleNamespace(
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR="major",
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR="minor",
        CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN="shared",
        CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT="processors",
    )
    CUstreamCaptureMode = SimpleNamespace(CU_STREAM_CAPTURE_MODE_THREAD_LOCAL="thread local")
    CUlaunchAttributeID = SimpleNamespace(CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION="pdl")
    CUlaunchConfig = SimpleNamespace

    def __init__(
        self,
        kernels: Mapping[str, FakeKernel] | None = None,
        *,
        sm: int = 90,
        memory: int = 1 << 30,
        shared: int = 232448,
    ) -> None:
        self.device, self.host = Memory(), Memory()
        self.fail: dict[str, Result] = {}
        self.calls: Counter[str] = Counter()
        self.launched: list[Launched] = []
        self.images: list[bytes] = []
        self.allowed: dict[str, int] = {}
        self.carveouts: dict[str, int] = {}
        self.loaded: set[str] = set()
        self.jitted: list[str] = []
        self.jit_log = ""
        self.filled: list[tuple[int, int, int]] = []
        self.live: Counter[str] = Counter()
        self.streams: list[Stream] = []
        self._kernels = kernels or {}
        self._memory = memory
        self._facts = {"major": sm // 10, "minor": sm % 10, "shared": shared, "processors": 132}

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        if not name.startswith("cu"):
            return found
        self.calls[name] += 1
        failure = self.fail.get(name)
        return found if failure is None else lambda *_: (failure,)

    def CUlaunchAttribute(self) -> SimpleNamespace:
        return SimpleNamespace(id=None, value=SimpleNamespace())

    def cuInit(self, flags: int):
        return (OK,)

    def cuDriverGetVersion(self):
        return OK, 13000

    def cuDeviceGet(self, ordinal: int):
        return OK, ordinal

    def cuDeviceGetAttribute(self, attribute: str, device: int):
        return OK, self._facts[attribute]

    def cuDevicePrimaryCtxRetain(self, device: int):
        self.live["context"] += 1
        return OK, "context"

    def cuDevicePrimaryCtxRelease(self, device: int):
        self.live["context"] -= 1
        return (OK,)

    def cuCtxSetCurrent(self, context: str):
        return (OK,)

    def cuMemGetInfo(self):
        return OK, self._memory - self.device.bytes, self._memory

    def cuMemAlloc(self, nbytes: int):
        if nbytes > self._memory - self.device.bytes:
            return Result["CUDA_ERROR_OUT_OF_MEMORY"], 0
        return OK, self.device.allocate(nbytes)

    def cuMemFree(self, address: int):
        self.device.free(address)
        return (OK,)

    def cuMemHostAlloc(self, nbytes: int, flags: int):
        return OK, self.host.allocate(nbytes)

    def cuMemFreeHost(self, address: int):
        self.host.free(address)
        return (OK,)

    def cuMemcpyHtoDAsync(self, target: int, source: int, nbytes: int, stream: Stream):
        return self._copy(self.device, target, self.host, source, nbytes, stream)

    def cuMemcpyDtoHAsync(self, target: int, source: int, nbytes: int, stream: Stream):
        return self._copy(self.host, target, self.device, source, nbytes, stream)

    def cuMemcpyDtoDAsync(self, target: int, source: int, nbytes: int, stream: Stream):
        return self._copy(self.device, target, self.device, source, nbytes, stream)

    def cuMemsetD8Async(self, target: int, byte: int, nbytes: int, stream: Stream):
        self.filled.append((target, byte, nbytes))
        return self._queue(stream, lambda: self.device.array(target, np.uint8, nbytes).fill(byte))

    def cuStreamCreate(self, flags: int):
        self.live["streams"] += 1
        self.streams.append(Stream())
        return OK, self.streams[-1]

    def cuStreamDestroy(self, stream: Stream):
        self.live["streams"] -= 1
        return (OK,)

    def cuStreamSynchronize(self, stream: Stream):
        assert stream.run(), "a wait that another rank may never end"
        return (OK,)

    def cuEventCreate(self, flags: int):
        self.live["events"] += 1
        return OK, _Event()

    def cuEventDestroy(self, event: _Event):
        self.live["events"] -= 1
        return (OK,)

    def cuEventRecord(self, event: _Event, stream: Stream):
        event.stream, event.position = stream, stream.done + len(stream.queue)
        return (OK,)

    def cuEventSynchronize(self, event: _Event):
        if event.stream is not None:
            assert event.stream.run(event.position), "a wait that another rank may never end"
        return (OK,)

    def cuEventQuery(self, event: _Event):
        passed = event.stream is None or event.stream.run(event.position)
        return (OK if passed else Result["CUDA_ERROR_NOT_READY"],)

    def cuEventElapsedTime(self, start: _Event, stop: _Event):
        return OK, float(stop.position - start.position)

    def cuModuleLoadData(self, image: bytes):
        self.images.append(image)
        self.live["modules"] += 1
        return OK, image

    def cuModuleLoadDataEx(self, image: bytes, count: int, options: list[str], values: list[Any]):
        assert count == len(options) == len(values) and image.endswith(b"\0")
        if self.jit_log:
            given = dict(zip(options, values, strict=True))
            said = self.jit_log.encode()[: given["error log bytes"] - 1] + b"\0"
            given["error log"][: len(said)] = said
            return Result["CUDA_ERROR_INVALID_PTX"], None
        self.jitted.append(image.rstrip(b"\0").decode())
        self.live["modules"] += 1
        return OK, image

    def cuModuleUnload(self, module: bytes):
        self.live["modules"] -= 1
        return (OK,)

    def cuModuleGetFunction(self, module: bytes, entry: bytes):
        known = entry.decode() in self._kernels
        return (OK, entry.decode()) if known else (Result["CUDA_ERROR_NOT_FOUND"], None)

    def cuFuncSetAttribute(self, function: str, attribute: str, number: int):
        {"dynamic shared": self.allowed, "carveout": self.carveouts}[attribute][function] = number
        return (OK,)

    def cuFuncLoad(self, function: str):
        self.loaded.add(function)
        return (OK,)

    def cuLaunchKernelEx(self, config: Any, function: str, parameters: int, extra: int):
        assert function in self.loaded, "a driver that loads lazily would load it now"
        kernel, stream = self._kernels[function], config.hStream
        values = read_parameters(kernel.types, parameters)
        grid = config.gridDimX, config.gridDimY, config.gridDimZ
        assert all(grid), "the driver refuses an empty grid"
        pdl = config.numAttrs == 1 and config.attrs[0].value.programmaticStreamSerializationAllowed == 1
        captured = stream.capturing is not None
        self.launched.append(Launched(function, grid, config.blockDimX, config.sharedMemBytes, values, pdl, captured))
        return self._queue(stream, lambda: kernel.compute(self.device, grid, *values))

    def cuStreamBeginCapture(self, stream: Stream, mode: str):
        stream.capturing = []
        return (OK,)

    def cuStreamEndCapture(self, stream: Stream):
        graph, stream.capturing = stream.capturing, None
        self.live["graphs"] += 1
        return OK, graph

    def cuGraphInstantiate(self, graph: list[Callable[[], None]], flags: int):
        self.live["graphs"] += 1
        return OK, list(graph)

    def cuGraphDestroy(self, graph: list[Callable[[], None]]):
        self.live["graphs"] -= 1
        return (OK,)

    def cuGraphExecDestroy(self, graph: list[Callable[[], None]]):
        self.live["graphs"] -= 1
        return (OK,)

    def cuGraphUpload(self, graph: list[Callable[[], None]], stream: Stream):
        return (OK,)

    def cuGraphLaunch(self, graph: list[Callable[[], None]], stream: Stream):
        stream.queue += graph
        return (OK,)

    def _copy(self, to: Memory, target: int, of: Memory, source: int, nbytes: int, stream: Stream):
        def copy() -> None:
            to.check(target, nbytes)
            of.check(source, nbytes)
            ctypes.memmove(target, source, nbytes)

        return self._queue(stream, copy)

    def _queue(self, stream: Stream, work: Callable[[], None]):
        stream.give(work)
        return (OK,)


def read_parameters(types: Sequence[str], address: int) -> tuple[int | float, ...]:
    """What a kernel finds in its parameters: its arguments and Triton's two pointers to scratch."""
    full = [*types, "*i8", "*i8"]
    pointers = (ctypes.c_void_p * len(full)).from_address(address)
    values = []
    for kind, pointer in zip(full, pointers, strict=True):
        ctype = _CTYPES.get(kind, ctypes.c_uint64)
        assert pointer is not None and pointer % ctypes.sizeof(ctype) == 0, "a parameter is not aligned"
        values.append(ctype.from_address(pointer).value)
    return tuple(values)
