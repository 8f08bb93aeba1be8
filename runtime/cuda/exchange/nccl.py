"""NCCL through its C interface, as far as ranks need it: one place reports errors, and tests replace the library.

Every function that is used has been there since NCCL 2.7 and has kept its arguments (nccl.h). torch.distributed is not
used: its process groups own their streams and call functions of CUDA that a captured stream forbids.
"""

from __future__ import annotations

import ctypes
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Self

from ...errors import EngineError, LlmcError, ResourceError, install_hint

LIBRARY = "libnccl.so.2"
ID_BYTES = 128
DTYPES = {"u8": 1, "i32": 2, "i64": 4, "f16": 6, "f32": 7, "bf16": 9}
"""ncclDataType_t by the names in plans."""
_SUM = 0
_IN_PROGRESS = 7
_OURS = {4: "ncclInvalidArgument", 5: "ncclInvalidUsage"}
_RESULTS = {
    1: "ncclUnhandledCudaError",
    2: "ncclSystemError",
    3: "ncclInternalError",
    **_OURS,
    6: "ncclRemoteError",
    _IN_PROGRESS: "ncclInProgress",
    8: "ncclTimeout",
}


class UniqueId(ctypes.Structure):
    """ncclUniqueId, which is passed by value."""

    _fields_ = (("internal", ctypes.c_char * ID_BYTES),)


_POINTER, _COUNT, _INT, _COMM = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p
FUNCTIONS: dict[str, tuple[Any, ...]] = {
    "ncclGetVersion": (ctypes.POINTER(_INT),),
    "ncclGetUniqueId": (ctypes.POINTER(UniqueId),),
    "ncclCommInitRank": (ctypes.POINTER(_COMM), _INT, UniqueId, _INT),
    "ncclCommCuDevice": (_COMM, ctypes.POINTER(_INT)),
    "ncclCommGetAsyncError": (_COMM, ctypes.POINTER(_INT)),
    "ncclCommAbort": (_COMM,),
    "ncclCommDestroy": (_COMM,),
    "ncclAllReduce": (_POINTER, _POINTER, _COUNT, _INT, _INT, _COMM, _POINTER),
    "ncclAllGather": (_POINTER, _POINTER, _COUNT, _INT, _COMM, _POINTER),
    "ncclReduceScatter": (_POINTER, _POINTER, _COUNT, _INT, _INT, _COMM, _POINTER),
    "ncclSend": (_POINTER, _COUNT, _INT, _INT, _COMM, _POINTER),
    "ncclRecv": (_POINTER, _COUNT, _INT, _INT, _COMM, _POINTER),
}
"""Types of the arguments; all return ncclResult_t."""
_TEXTS = {"ncclGetErrorString": (_INT,), "ncclGetLastError": (_COMM,)}
"""Those that return text; the second is newer, and may be missing."""


class Nccl:
    """A loaded library, or an object with the same functions.

    Communicators and streams are addresses. Every method raises ResourceError or EngineError with the failed operation,
    the name of the result and NCCL's text.
    """

    def __init__(self, library: Any) -> None:
        self._library = library

    @classmethod
    def load(cls) -> Self:
        """Load the library of this machine.

        Raises:
            ResourceError: there is none.
        """
        problem = ""
        for path in (*_of_packages(), LIBRARY):
            try:
                library = ctypes.CDLL(path)
                for name, arguments in FUNCTIONS.items():
                    getattr(library, name).argtypes = arguments
            except (OSError, AttributeError) as error:
                problem = str(error)
                continue
            for name, arguments in _TEXTS.items():
                with suppress(AttributeError):
                    getattr(library, name).argtypes, getattr(library, name).restype = arguments, ctypes.c_char_p
            return cls(library)
        raise ResourceError("cannot run on several GPUs without NCCL", found=problem, fix=install_hint("nccl"))

    @property
    def version(self) -> str:
        number = ctypes.c_int()
        self._call("read the version of NCCL", "ncclGetVersion", ctypes.byref(number))
        return f"{number.value // 10000}.{number.value % 10000 // 100}.{number.value % 100}"

    def unique_id(self) -> bytes:
        """The name of a new group, which its ranks pass to `join`."""
        made = UniqueId()
        self._call("name a group of GPUs", "ncclGetUniqueId", ctypes.byref(made))
        return bytes(memoryview(made))

    def join(self, name: bytes, ranks: int, rank: int) -> int:
        """Join a group with the current context's GPU; returns once all ranks have."""
        comm = _COMM()
        self._call(
            f"join rank {rank} of {ranks} GPUs",
            "ncclCommInitRank",
            *(ctypes.byref(comm), ranks, UniqueId.from_buffer_copy(name), rank),
        )
        return comm.value or 0

    def gpu(self, comm: int) -> int:
        """The ordinal of the GPU that a communicator uses."""
        found = ctypes.c_int()
        self._call("read the GPU of a communicator", "ncclCommCuDevice", comm, ctypes.byref(found), comm=comm)
        return found.value

    def check(self, comm: int, doing: str) -> None:
        """Raise what went wrong since the last call, while a step was running on the GPU."""
        found = ctypes.c_int()
        self._call(doing, "ncclCommGetAsyncError", comm, ctypes.byref(found), comm=comm)
        if found.value not in (0, _IN_PROGRESS):
            raise self._error(doing, found.value, comm)

    def abort(self, comm: int) -> None:
        """End what a communicator is doing on the GPU, and free it."""
        self._call("abort the exchange between GPUs", "ncclCommAbort", comm)

    def destroy(self, comm: int) -> None:
        """Free a communicator, all of whose exchanges have ended."""
        self._call("leave a group of GPUs", "ncclCommDestroy", comm)

    def all_reduce(self, sends: int, receives: int, count: int, dtype: int, comm: int, stream: int, what: str) -> None:
        self._call(what, "ncclAllReduce", sends, receives, count, dtype, _SUM, comm, stream, comm=comm)

    def all_gather(self, sends: int, receives: int, count: int, dtype: int, comm: int, stream: int, what: str) -> None:
        self._call(what, "ncclAllGather", sends, receives, count, dtype, comm, stream, comm=comm)

    def reduce_scatter(
        self, sends: int, receives: int, count: int, dtype: int, comm: int, stream: int, what: str
    ) -> None:
        self._call(what, "ncclReduceScatter", sends, receives, count, dtype, _SUM, comm, stream, comm=comm)

    def send(self, sends: int, count: int, dtype: int, peer: int, comm: int, stream: int, what: str) -> None:
        self._call(what, "ncclSend", sends, count, dtype, peer, comm, stream, comm=comm)

    def recv(self, receives: int, count: int, dtype: int, peer: int, comm: int, stream: int, what: str) -> None:
        self._call(what, "ncclRecv", receives, count, dtype, peer, comm, stream, comm=comm)

    def _call(self, doing: str, function: str, *arguments: Any, comm: int | None = None) -> None:
        """Call NCCL to `doing`, a verb phrase."""
        result = getattr(self._library, function)(*arguments)
        if result:
            raise self._error(doing, result, comm)

    def _error(self, doing: str, result: int, comm: int | None) -> LlmcError:
        said = [self._library.ncclGetErrorString(result)]
        with suppress(AttributeError):
            said.append(self._library.ncclGetLastError(comm))
        texts = dict.fromkeys(" ".join(text.decode(errors="replace").split()) for text in said if text)
        found = "; ".join([_RESULTS.get(result, f"NCCL error {result}"), *filter(None, texts)])[:600]
        if result in _OURS:
            return EngineError(f"cannot {doing}", found=found, fix="build the engine again")
        return ResourceError(f"cannot {doing}", found=found, fix="the same with NCCL_DEBUG=WARN, which says more")


def _of_packages() -> list[str]:
    """The library in NVIDIA's package, whose folders are a namespace that other packages share."""
    try:
        found = find_spec("nvidia.nccl")
    except ModuleNotFoundError:
        return []
    places = found.submodule_search_locations if found is not None else None
    return [str(Path(folder) / "lib" / LIBRARY) for folder in places or ()]
