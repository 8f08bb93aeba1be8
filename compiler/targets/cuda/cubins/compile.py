"""Compiles kernels to cubins ahead of time, without a GPU; equal inputs give equal bytes with any number of workers."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Generator, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field, fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from .....runtime.chips import chip
from .....runtime.cuda.launches import layout
from .....runtime.cuda.tensor_maps import ROW, MatrixTile
from .....runtime.dtypes import KERNEL_DTYPES
from .....runtime.environment import for_worker
from .....runtime.errors import EngineError, LlmcError, ResourceError, Unsupported, install_hint
from .....runtime.files import temporary
from .....runtime.machine import cpu_count, system_memory
from .....runtime.plan.plan import MachineCode
from .....runtime.progress import Progress
from ..call import Argument, Constant, Kernel, KernelCall, Operand
from .cache import KernelCache, key_of, sources_of
from .elf import Parameter, image_of
from .worker import KERNELS, SETTINGS

EXTRA = "cuda-build"
"""The extra that installs the compiler."""
_NEEDED = ("torch", "triton")
_WORKER_BYTES = 1 << 30
"""Most memory that a worker takes, with torch and a large kernel."""
_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    f"from {__name__.partition('.targets')[0]}.kernel_imports import prepare; prepare(); "
    f"from {__package__}.worker import main; main()"
)
_LONGEST_REASON = 1500
"""Characters of a compiler's message that an error shows."""
_UNASKED = ("kernel", "minimum_sm", "kinds")
"""Fields of a specialization that do not decide its cubin."""


@dataclass(frozen=True)
class Specialization:
    """The inputs of one cubin: a kernel with its constants and types. Calls with equal inputs share a cubin."""

    kernel: str
    file: str
    function: str
    constants: tuple[tuple[str, Constant], ...]
    types: tuple[str, ...]
    """Triton types of the arguments in order; every pointer is divisible by 16, no size is specialized."""
    warps: int
    stages: int
    minimum_sm: int = 80
    parameters: tuple[str, ...] = ()
    """Names of the arguments of a kernel in CUDA C++, for which only chips of `minimum_sm` will do; of others none."""
    kinds: tuple[type, ...] = field(init=False)
    """Python types of the constants, so that True, 1 and 1.0 differ."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "kinds", tuple(type(value) for _, value in self.constants))

    def __str__(self) -> str:
        constants = "".join(f" {name}={value}" for name, value in self.constants)
        return f"{self.kernel}{constants} warps={self.warps} stages={self.stages}"

    def request(self, sm: int) -> dict[str, Any]:
        """The request to the compiler: everything that decides the cubin except sources and tools."""
        facts = {one.name: getattr(self, one.name) for one in fields(self) if one.name not in _UNASKED}
        facts |= {"parameters": list(self.parameters), "types": list(self.types)}
        return {**facts, "constants": dict(self.constants), "sm": sm}


@dataclass(frozen=True)
class Cubin:
    """A compiled kernel."""

    sm: int
    data: bytes
    ptx: str
    """The PTX that `data` was assembled from, for a driver that refuses machine code."""
    types: tuple[str, ...]
    """Of the parameters; two pointers always follow them: global and profile scratch."""
    code: MachineCode
    static_shared: int = 0
    """Bytes of static shared memory of a block."""
    local: int = 0
    """Bytes of a thread's stack."""

    @property
    def shared(self) -> int:
        """Bytes of shared memory of a block, dynamic and static."""
        return self.code.shared + self.static_shared

    @staticmethod
    def from_json(answer: Mapping[str, Any]) -> Cubin:
        """Parse a worker's answer."""
        code, data = MachineCode(**answer["code"]), base64.b64decode(answer["data"])
        return Cubin(**{**answer, "data": data, "types": tuple(answer["types"]), "code": code})


def specialization_of(call: KernelCall) -> Specialization:
    """The specialization of a call."""
    tiles = dict(call.kernel.native.tiles) if call.kernel.native is not None else {}
    types = [
        str(MatrixTile(int(call.constants[tiles[name]] or 0), ROW)) if name in tiles else _type(argument)
        for name, argument in call.ordered
    ]
    return specialized(call.kernel, call.constants, types, call.warps, call.stages)


def kernel_alone(call: KernelCall) -> Specialization:
    """A specialization that only says which kernel a call launches, for a plan that is priced and never compiled."""
    return Specialization(call.kernel.name, "", "", (), (), call.warps, call.stages)


def specialized(
    kernel: Kernel, constants: Mapping[str, Constant], types: Iterable[str], warps: int, stages: int
) -> Specialization:
    """The specialization of a kernel; its constants are put in the order of the parameters."""
    function, native = kernel.function.fn, kernel.native
    return Specialization(
        kernel=kernel.name,
        file=native.file if native is not None else function.__module__.removeprefix(f"{KERNELS}."),
        function=function.__name__,
        constants=tuple((name, constants[name]) for name in kernel.parameters if name in constants),
        types=tuple(types),
        warps=warps,
        stages=stages,
        minimum_sm=kernel.minimum_sm,
        parameters=tuple(kernel.given(constants)) if native is not None else (),
    )


def _type(argument: Argument) -> str:
    """The Triton type of an argument: sizes and integers are i32, other numbers fp32."""
    if isinstance(argument, Operand):
        return KERNEL_DTYPES[argument.dtype].pointer
    return "fp32" if isinstance(argument, float) else "i32"


def compile_all(
    specializations: Iterable[Specialization],
    sm: int,
    *,
    progress: Progress,
    jobs: int | None = None,
    cache: KernelCache | None = None,
) -> dict[Specialization, Cubin]:
    """The cubin of every specialization; `cache` is the user's unless given.

    Raises:
        Unsupported: a kernel cannot be compiled for the chip.
        ResourceError: Triton is not installed, a worker was killed, or the cache is a pack without a kernel.
        LlmcError: Triton refuses a kernel; the first in order if there are several.
    """
    outcomes = try_compile(specializations, sm, progress=progress, jobs=jobs, cache=cache)
    for outcome in outcomes.values():
        if isinstance(outcome, LlmcError):
            raise outcome
    return {specialization: outcome for specialization, outcome in outcomes.items() if isinstance(outcome, Cubin)}


def try_compile(
    specializations: Iterable[Specialization],
    sm: int,
    *,
    progress: Progress,
    jobs: int | None = None,
    cache: KernelCache | None = None,
) -> dict[Specialization, Cubin | LlmcError]:
    """As `compile_all`, but each specialization gets its cubin or its error.

    Raises:
        ResourceError: Triton or the assembler is not installed.
    """
    target = chip(sm)
    cache = cache or KernelCache.default()
    outcomes: dict[Specialization, Cubin | LlmcError | None] = dict.fromkeys(specializations)
    if not outcomes:
        return {}
    if cache.packed is None:
        need_compiler()
    tools = cache.tools
    sources = {file: sources_of(file) for file in {specialization.file for specialization in outcomes}}
    keys: dict[Specialization, str] = {}
    for specialization in outcomes:
        if refusal := _refused(specialization, sm):
            outcomes[specialization] = refusal
            continue
        keys[specialization] = key_of(specialization.request(sm), sources[specialization.file], tools)
        if answer := cache.load(keys[specialization]):
            outcomes[specialization] = Cubin.from_json(answer)
        elif cache.packed is not None:
            # Compiling here would mix another Triton's machine code into measurements of the pack.
            outcomes[specialization] = ResourceError(
                f"cannot find kernel {specialization} for sm_{sm} in the pack {cache.folder}",
                found="no machine code of these sources",
                fix="make the pack again from this llmc, or unset LLMC_CACHE to compile",
            )
    missing = [specialization for specialization, outcome in outcomes.items() if outcome is None]
    compiling = progress.stage(f"sm_{sm}", len(missing), "kernels")
    with compiling as advance, contextlib.closing(_compile(missing, sm, jobs)) as answers:
        for specialization, answer in answers:
            advance(1)
            if isinstance(answer, LlmcError):
                outcomes[specialization] = answer
                continue
            cubin = Cubin.from_json(answer)
            try:
                check_parameters(cubin, specialization.warps)
            except EngineError as error:
                outcomes[specialization] = error
                continue
            if sources_of(specialization.file) == sources[specialization.file]:  # not edited meanwhile
                cache.save(keys[specialization], answer)
            outcomes[specialization] = cubin
    return {
        specialization: _fitting(specialization, outcome, target.shared)
        for specialization, outcome in outcomes.items()
        if outcome
    }


def _refused(specialization: Specialization, sm: int) -> Unsupported | None:
    least = specialization.minimum_sm
    if sm >= least and not (specialization.parameters and sm != least):
        return None
    found, fix = f"it needs sm_{least} or newer", "a newer GPU"
    if specialization.parameters:
        found, fix = f"its instructions are those of sm_{least} alone", "a tile of the route triton"
    return Unsupported(f"cannot compile kernel {specialization} for sm_{sm}", found=found, fix=fix)


def check_parameters(cubin: Cubin, warps: int) -> None:
    """Check that a kernel reads its parameters where `runtime/cuda/launches.py` puts them, and the plan's threads.

    Raises:
        EngineError: it does not; a launch would pass it wrong numbers, and the driver would report no error.
    """
    image = image_of(cubin.data, cubin.code.entry)
    wanted = [Parameter(one.offset, one.size) for one in layout([*cubin.types, "*i8", "*i8"])]
    if [*image.parameters] != wanted or image.threads != (32 * warps, 1, 1):
        raise EngineError(
            f"expected kernel {cubin.code.entry} for sm_{cubin.sm} with parameters {wanted}, {32 * warps} threads",
            found=f"{[*image.parameters]}, {image.threads}",
            fix="the Triton of this llmc: pip install -c constraints.txt",
        )


def _fitting(specialization: Specialization, outcome: Cubin | LlmcError, most: int) -> Cubin | LlmcError:
    if isinstance(outcome, LlmcError) or outcome.shared <= most:
        return outcome
    return LlmcError(
        f"cannot run kernel {specialization} on sm_{outcome.sm}",
        found=f"{outcome.shared} bytes of shared memory per block, of at most {most}",
        fix="smaller tiles or fewer stages",
    )


def need_compiler() -> None:
    """Check that the packages which compile kernels are installed; the assembler is checked when a kernel needs it.

    Raises:
        ResourceError: a package is missing; says how to install it.
    """
    if absent := [module for module in _NEEDED if find_spec(module) is None]:
        raise ResourceError(
            f"cannot compile kernels without the extra {EXTRA!r}",
            found=f"not installed: {', '.join(absent)}",
            fix=install_hint(EXTRA),
        )


Answer = Mapping[str, Any] | LlmcError


def _compile(
    specializations: Sequence[Specialization], sm: int, jobs: int | None
) -> Generator[tuple[Specialization, Answer], None, None]:
    """The answers in the order in which `jobs` workers give them; each worker has its own thread."""
    if not specializations:
        return
    count = min(jobs or max(1, min(cpu_count(), system_memory().available // _WORKER_BYTES)), len(specializations))
    mine = threading.local()
    workers: list[_Worker] = []

    def start() -> None:
        mine.worker = _Worker(tempfile.mkdtemp(dir=folder))
        workers.append(mine.worker)

    def ask(specialization: Specialization) -> tuple[Specialization, Answer]:
        return specialization, mine.worker.ask(specialization, sm)

    with (
        temporary.folder("kernels") as folder,
        ThreadPoolExecutor(count, initializer=start) as threads,
    ):
        try:
            for done in as_completed([threads.submit(ask, specialization) for specialization in specializations]):
                yield done.result()
        finally:
            threads.shutdown(wait=False, cancel_futures=True)  # a thread that starts later gets no request
            for worker in workers:
                worker.close()


class _Worker:
    """A process of `worker.py`, started at the first request and again after it has died."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._closed = False

    def ask(self, specialization: Specialization, sm: int) -> Answer:
        with self._lock:
            if self._closed:
                raise ResourceError("cannot compile a kernel after the end of the build")
            process = self._process = self._process or self._started()
        assert process.stdin is not None and process.stdout is not None
        line = ""
        with contextlib.suppress(OSError, ValueError):  # it died; the exit code tells how
            print(json.dumps(specialization.request(sm)), file=process.stdin, flush=True)
            line = process.stdout.readline()
        if not line.endswith("\n"):
            return self._worker_died(specialization, sm)
        answer = json.loads(line)
        if "error" not in answer:
            return answer
        self._end()  # after a refusal Triton keeps a partial hash, and would accept the same kernel the next time
        found = answer["error"].strip()[:_LONGEST_REASON]
        return LlmcError(f"cannot compile kernel {specialization} for sm_{sm}", found=found)

    def close(self) -> None:
        self._closed = True
        self._end()

    def _started(self) -> subprocess.Popen[str]:
        folder = self._folder
        own = {"TRITON_HOME": folder, "TRITON_CACHE_DIR": f"{folder}/cache", "TMPDIR": folder}
        with open(f"{folder}/stderr", "wb") as remarks:
            return subprocess.Popen(
                [sys.executable, "-c", _START, json.dumps([os.path.abspath(entry) for entry in sys.path])],
                env={**for_worker(), **SETTINGS, **own},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=remarks,
                text=True,
                encoding="utf-8",
                start_new_session=True,  # ptxas ends with the group, and Ctrl-C reaches this process only
            )

    def _worker_died(self, specialization: Specialization, sm: int) -> LlmcError:
        """The error for a worker that died; the next request starts a new one."""
        code = self._end(patience=1)
        kernel = f"{specialization} for sm_{sm}"
        if code == -signal.SIGKILL:
            found = "its compiler was killed, probably for lack of memory"
            return ResourceError(f"cannot compile kernel {kernel}", found=found, fix="--jobs 1")
        said = Path(self._folder, "stderr").read_text(encoding="utf-8", errors="replace").strip()
        how = "gave no answer" if code is None else f"ended with code {code}"
        return LlmcError(f"cannot compile kernel {kernel}", found=f"its compiler {how}: {said[-_LONGEST_REASON:]}")

    def _end(self, patience: float = 0) -> int | None:
        """End the process and its children; the exit code if it had ended by itself within `patience` seconds."""
        with self._lock:
            process, self._process = self._process, None
            if process is None:
                return None
            code = None
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = process.wait(patience)
            with contextlib.suppress(OSError):
                os.killpg(process.pid, signal.SIGKILL)
            with contextlib.suppress(OSError), process:  # its stdin may be closed already
                process.wait()
            return code
