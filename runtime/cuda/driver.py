"""The CUDA driver: one method per operation, so that one place reports errors and tests can replace it.

Streams, events, modules, functions and graphs are the binding's own objects; addresses are integers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from importlib import import_module
from typing import Any, Self, TypeVar

from ..chips import target_for
from ..errors import EngineError, LlmcError, ResourceError, install_hint
from . import gpus

_EXTRA = install_hint("cuda")
_BINDINGS = "cuda.bindings.driver"
DEFAULT_SHARED = 48 << 10
"""Bytes of dynamic shared memory that a block may use without a function attribute."""
_WARP = 32
_REFUSED_IMAGES = {
    "CUDA_ERROR_INVALID_IMAGE",
    "CUDA_ERROR_INVALID_PTX",
    "CUDA_ERROR_INVALID_SOURCE",
    "CUDA_ERROR_NO_BINARY_FOR_GPU",
    "CUDA_ERROR_UNSUPPORTED_PTX_VERSION",
    "CUDA_ERROR_JIT_COMPILER_NOT_FOUND",
    "CUDA_ERROR_JIT_COMPILATION_DISABLED",
}
_FAILED_KERNELS = {
    "CUDA_ERROR_ILLEGAL_ADDRESS",
    "CUDA_ERROR_ILLEGAL_INSTRUCTION",
    "CUDA_ERROR_MISALIGNED_ADDRESS",
    "CUDA_ERROR_INVALID_ADDRESS_SPACE",
    "CUDA_ERROR_INVALID_PC",
    "CUDA_ERROR_HARDWARE_STACK_ERROR",
    "CUDA_ERROR_LAUNCH_FAILED",
    "CUDA_ERROR_LAUNCH_TIMEOUT",
    "CUDA_ERROR_ASSERT",
}
_NOT_READY = "CUDA_ERROR_NOT_READY"
_LOG_BYTES, _LOG_SHOWN = 8192, 600
_MOST_SHARED = 100
"""Percent: the carveout with the most shared memory and the smallest L1 cache."""
_Made = TypeVar("_Made")


def keep(cleanup: ExitStack, made: _Made, drop: Callable[[_Made], object]) -> _Made:
    """Returns `made`; `cleanup` calls `drop` on it."""
    cleanup.callback(drop, made)
    return made


class RefusedCode(ResourceError):
    """This driver refuses machine code or PTX that other drivers accept."""


class Driver:
    """A GPU through `cuda.bindings.driver`, or an object with the same functions.

    Every method raises ResourceError or EngineError with the failed operation and the CUDA error's name. The calling
    thread must have called `use`.
    """

    def __init__(self, api: Any, ordinal: int = 0) -> None:
        """Create the GPU's primary context and make it current."""
        self._api = api
        self.ordinal = ordinal
        self._call("start CUDA", "cuInit", 0)
        self._device = self._call(f"open GPU {ordinal}", "cuDeviceGet", ordinal)
        version = self._call("read the driver's version", "cuDriverGetVersion")
        self.version = f"{version // 1000}.{version % 1000 // 10}"
        self.sm = 10 * self._attribute("COMPUTE_CAPABILITY_MAJOR") + self._attribute("COMPUTE_CAPABILITY_MINOR")
        self.shared = self._attribute("MAX_SHARED_MEMORY_PER_BLOCK_OPTIN")
        self.processors = self._attribute("MULTIPROCESSOR_COUNT")
        self._context = self._call(f"create a context on GPU {ordinal}", "cuDevicePrimaryCtxRetain", self._device)
        self.use()

    @classmethod
    def load(cls, ordinal: int = 0) -> Self:
        """Open a GPU of this machine.

        Raises:
            ResourceError: there is no driver or no such GPU, or the bindings are not installed.
        """
        found = gpus.detect()
        if not found.gpus:
            raise ResourceError("expected an NVIDIA GPU", found=found.problem, fix="llmc doctor, or --profile cpu")
        try:
            api = import_module(_BINDINGS)
        except ImportError as error:
            raise ResourceError("cannot run on a GPU without the extra 'cuda'", found=str(error), fix=_EXTRA) from error
        return cls(api, ordinal)

    def use(self) -> None:
        """Make the context current in the calling thread."""
        self._call("use the GPU's context", "cuCtxSetCurrent", self._context)

    def close(self) -> None:
        """Release the context."""
        self._call("release the GPU's context", "cuDevicePrimaryCtxRelease", self._device)

    def memory(self) -> tuple[int, int]:
        """Free and total bytes of the GPU."""
        return self._call("read the free GPU memory", "cuMemGetInfo")

    def allocate(self, nbytes: int, what: str) -> int:
        """Allocate device memory, aligned to at least 256 bytes."""
        return int(self._call(f"allocate {_size(nbytes)} of GPU memory for {what}", "cuMemAlloc", max(nbytes, 1)))

    def free(self, address: int) -> None:
        self._call("free GPU memory", "cuMemFree", address)

    def allocate_host(self, nbytes: int, what: str) -> int:
        """Allocate pinned host memory."""
        doing = f"allocate {_size(nbytes)} of pinned host memory for {what}"
        return int(self._call(doing, "cuMemHostAlloc", max(nbytes, 1), 0))

    def free_host(self, address: int) -> None:
        self._call("free pinned host memory", "cuMemFreeHost", address)

    def copy_in(self, target: int, host: int, nbytes: int, stream: Any) -> None:
        """Copy from pinned host memory, asynchronously."""
        self._call("copy to the GPU", "cuMemcpyHtoDAsync", target, host, nbytes, stream)

    def copy_out(self, host: int, source: int, nbytes: int, stream: Any) -> None:
        """Copy to pinned host memory, asynchronously."""
        self._call("copy from the GPU", "cuMemcpyDtoHAsync", host, source, nbytes, stream)

    def copy(self, target: int, source: int, nbytes: int, stream: Any) -> None:
        """Copy inside the GPU's memory, asynchronously."""
        self._call("copy on the GPU", "cuMemcpyDtoDAsync", target, source, nbytes, stream)

    def fill(self, target: int, byte: int, nbytes: int, stream: Any) -> None:
        self._call("fill GPU memory", "cuMemsetD8Async", target, byte, nbytes, stream)

    def stream(self) -> Any:
        return self._call("create a stream", "cuStreamCreate", self._api.CUstream_flags.CU_STREAM_NON_BLOCKING.value)

    def wait(self, stream: Any) -> None:
        """Wait until all work of the stream is done."""
        self._call("wait for the GPU", "cuStreamSynchronize", stream)

    def drop_stream(self, stream: Any) -> None:
        self._call("drop a stream", "cuStreamDestroy", stream)

    def event(self, *, timing: bool = False) -> Any:
        flags = self._api.CUevent_flags
        kind = flags.CU_EVENT_DEFAULT if timing else flags.CU_EVENT_DISABLE_TIMING
        return self._call("create an event", "cuEventCreate", kind.value)

    def record(self, event: Any, stream: Any) -> None:
        self._call("record an event", "cuEventRecord", event, stream)

    def wait_event(self, event: Any) -> None:
        """Wait until all work queued before the event was recorded is done."""
        self._call("wait for a step on the GPU", "cuEventSynchronize", event)

    def passed(self, event: Any) -> bool:
        """True if all work queued before the event was recorded is done."""
        try:
            self._call("look at a step on the GPU", "cuEventQuery", event)
        except ResourceError as error:
            if error.found != _NOT_READY:
                raise
            return False
        return True

    def elapsed(self, start: Any, stop: Any) -> float:
        """Seconds between two recorded events with timing."""
        return self._call("read the GPU's clock", "cuEventElapsedTime", start, stop) / 1e3

    def drop_event(self, event: Any) -> None:
        self._call("drop an event", "cuEventDestroy", event)

    def module(self, image: bytes, what: str) -> Any:
        """Load a cubin.

        Raises:
            RefusedCode: the driver refuses it.
        """
        return self._call(f"load {what}", "cuModuleLoadData", image)

    def jit(self, ptx: str, what: str) -> Any:
        """Load a module that the driver compiles from PTX.

        Raises:
            RefusedCode: the driver refuses it; includes the compiler's log.
        """
        log = bytearray(_LOG_BYTES)  # the bindings accept no address here
        kinds = self._api.CUjit_option
        given = {kinds.CU_JIT_ERROR_LOG_BUFFER: log, kinds.CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES: _LOG_BYTES}
        arguments = ptx.encode() + b"\0", len(given), list(given), list(given.values())
        try:
            return self._call(f"compile the PTX of {what}", "cuModuleLoadDataEx", *arguments)
        except RefusedCode as error:
            said = log.partition(b"\0")[0].decode(errors="replace").strip()[:_LOG_SHOWN]
            found = f"{error.found}; {said}" if said else error.found
            raise RefusedCode(f"cannot compile the PTX of {what}", found=found, fix=error.fix) from None

    def unload(self, module: Any) -> None:
        self._call("unload a cubin", "cuModuleUnload", module)

    def function(self, module: Any, entry: str, shared: int, what: str) -> Any:
        """A kernel of a module, with its dynamic shared memory enabled.

        All kernels request the same split of a multiprocessor's memory between shared memory and L1 cache, because
        kernels with different splits cannot share a multiprocessor. The kernel is loaded eagerly: a lazy driver would
        load it during the first launch, which may be captured.

        Raises:
            ResourceError: this GPU has less shared memory per block.
            EngineError: the module has no such kernel.
        """
        if shared > self.shared:
            raise ResourceError(
                f"cannot load {what} with {shared} bytes of shared memory per block",
                found=f"{self.shared} on this GPU",
                fix=f"an engine built with --target {target_for(self.sm) or 'cpu'}",
            )
        function = self._call(f"find {what}", "cuModuleGetFunction", module, entry.encode())
        kinds = self._api.CUfunction_attribute
        carveout = kinds.CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT
        self._call(f"set the shared memory carveout of {what}", "cuFuncSetAttribute", function, carveout, _MOST_SHARED)
        if shared > DEFAULT_SHARED:
            limit = kinds.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
            self._call(
                f"reserve {shared} bytes of shared memory for {what}", "cuFuncSetAttribute", function, limit, shared
            )
        self._call(f"load {what}", "cuFuncLoad", function)
        return function

    def config(self, grid: Sequence[int], warps: int, shared: int, stream: Any, *, pdl: bool = False) -> Any:
        """The configuration of a launch; with `pdl` the kernel may start early and waits for its predecessor."""
        config = self._api.CUlaunchConfig()
        config.gridDimX, config.gridDimY, config.gridDimZ = grid
        config.blockDimX, config.blockDimY, config.blockDimZ = _WARP * warps, 1, 1
        config.sharedMemBytes, config.hStream = shared, stream
        if pdl:
            attribute = self._api.CUlaunchAttribute()
            kinds = self._api.CUlaunchAttributeID
            attribute.id = kinds.CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
            attribute.value.programmaticStreamSerializationAllowed = 1
            config.attrs = [attribute]
        config.numAttrs = int(pdl)
        return config

    def symbol(self, name: str, since: int) -> int:
        """The address of a function of the driver's library; `since`: the CUDA version that had it first (12000)."""
        address, _ = self._call(f"find {name}", "cuGetProcAddress", name.encode(), since, 0)
        return int(address)

    def launch(self, config: Any, function: Any, parameters: int, what: str) -> None:
        """Launch a kernel; `parameters` is the address of an array of addresses, one per parameter."""
        self._call(what, "cuLaunchKernelEx", config, function, parameters, 0)

    def begin_capture(self, stream: Any) -> None:
        """Record the stream's work as a graph from now on. Other threads may use the driver meanwhile."""
        mode = self._api.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        self._call("capture a step", "cuStreamBeginCapture", stream, mode)

    def end_capture(self, stream: Any) -> Any:
        """The captured graph, instantiated and uploaded."""
        graph = self._call("capture a step", "cuStreamEndCapture", stream)
        try:
            ready = self._call("instantiate a step's graph", "cuGraphInstantiate", graph, 0)
        finally:
            self._call("drop a captured graph", "cuGraphDestroy", graph)
        self._call("upload a step's graph", "cuGraphUpload", ready, stream)
        return ready

    def captured(self, stream: Any, give: Callable[[], None]) -> Any:
        """The work that `give` queues on the stream, as a graph ready to launch; an error of `give` leaves no graph."""
        self.begin_capture(stream)
        try:
            give()
        except BaseException:
            with suppress(LlmcError):
                self.drop_graph(self.end_capture(stream))
            raise
        return self.end_capture(stream)

    def launch_graph(self, graph: Any, stream: Any) -> None:
        self._call("launch a step's graph", "cuGraphLaunch", graph, stream)

    def drop_graph(self, graph: Any) -> None:
        self._call("drop a step's graph", "cuGraphExecDestroy", graph)

    def _attribute(self, name: str) -> int:
        attribute = getattr(self._api.CUdevice_attribute, f"CU_DEVICE_ATTRIBUTE_{name}")
        return self._call("read an attribute of the GPU", "cuDeviceGetAttribute", attribute, self._device)

    def _call(self, doing: str, function: str, *arguments: Any) -> Any:
        """Call the driver to `doing`, a verb phrase; returns its results without the status: one, or a tuple."""
        try:
            status, *results = getattr(self._api, function)(*arguments)
        except (AttributeError, RuntimeError) as error:  # a function this driver or these bindings do not have
            found = f"{function}: {error}"
            fix = "a newer NVIDIA driver, or newer bindings: pip install -U cuda-bindings cuda-core"
            raise ResourceError(f"cannot {doing}", found=found, fix=fix) from error
        if status:
            raise self._error(doing, getattr(status, "name", f"CUDA error {int(status)}"))
        return results[0] if len(results) == 1 else tuple(results)

    def _error(self, doing: str, name: str) -> LlmcError:
        if name == "CUDA_ERROR_OUT_OF_MEMORY":
            fix = "end other programs that use this memory, or a smaller --max-batch"
            return ResourceError(f"cannot {doing}", found=name, fix=fix)
        if name in _REFUSED_IMAGES:
            found = f"{name}: the driver (CUDA {self.version}) refuses this machine code"
            return RefusedCode(f"cannot {doing}", found=found, fix="NVIDIA driver 580 or newer")
        if name == "CUDA_ERROR_NOT_FOUND":
            return EngineError(f"cannot {doing}", found=name, fix="build the engine again")
        if name in _FAILED_KERNELS:
            fix = "llmc verify ENGINE, to see whether the engine or the machine is at fault"
            return EngineError(f"cannot {doing}", found=f"{name}: a kernel failed", fix=fix)
        return ResourceError(f"cannot {doing}", found=name, fix="llmc doctor")


def _size(nbytes: int) -> str:
    return f"{nbytes / 2**20:.1f} MiB" if nbytes >> 20 else f"{nbytes} bytes"
