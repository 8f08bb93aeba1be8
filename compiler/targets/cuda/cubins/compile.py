"""Kernels to cubins, ahead of time and with no GPU; equal inputs give equal bytes, wherever and by however many."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import signal
import struct
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
from .....runtime.dtypes import KERNEL_DTYPES
from .....runtime.environment import for_worker
from .....runtime.errors import EngineError, LlmcError, ResourceError, Unsupported
from .....runtime.machine import cpu_count, memory
from .....runtime.plan.plan import MachineCode
from .....runtime.progress import Progress
from ..call import Argument, Constant, Kernel, KernelCall, Operand
from .cache import KernelCache, key_of, sources_of
from .elf import Parameter, image_of
from .worker import KERNELS, SETTINGS

EXTRA = "cuda-build"
_NEEDED = ("torch", "triton")
_WORKER_BYTES = 1 << 30
"""What a worker with torch and a large kernel takes at most."""
_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    f"from {__name__.partition('.targets')[0]}.kernel_imports import prepare; prepare(); "
    f"from {__package__}.worker import main; main()"
)
_LONGEST_REASON = 1500
_UNASKED = ("kernel", "minimum_sm", "kinds")
"""Of a specialization: what does not decide its cubin."""


@dataclass(frozen=True)
class Specialization:
    """What one cubin is compiled from: a kernel with its constants and types; all calls with an equal one share it.

    types: of the arguments that are not constants, in order; every pointer is divisible by 16, no size is specialized.
    kinds: of the constants, which so compare with their types: True is not 1, and 1.0 is neither.
    """

    kernel: str
    file: str
    function: str
    constants: tuple[tuple[str, Constant], ...]
    types: tuple[str, ...]
    warps: int
    stages: int
    minimum_sm: int = 80
    kinds: tuple[type, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "kinds", tuple(type(value) for _, value in self.constants))

    def __str__(self) -> str:
        constants = "".join(f" {name}={value}" for name, value in self.constants)
        return f"{self.kernel}{constants} warps={self.warps} stages={self.stages}"

    def request(self, sm: int) -> dict[str, Any]:
        """What the compiler is asked: all that decides the cubin except sources and tools."""
        facts = {one.name: getattr(self, one.name) for one in fields(self) if one.name not in _UNASKED}
        return {**facts, "constants": dict(self.constants), "types": list(self.types), "sm": sm}


@dataclass(frozen=True)
class Cubin:
    """A compiled kernel. types: of its parameters, after which two pointers always follow: global and profile scratch.

    static_shared: bytes of shared memory beside the dynamic ones; local: a thread's stack. ptx: what the cubin was
    assembled from, for a driver that refuses it.
    """

    sm: int
    data: bytes
    ptx: str
    types: tuple[str, ...]
    code: MachineCode
    static_shared: int = 0
    local: int = 0

    @property
    def shared(self) -> int:
        """Bytes of shared memory of a block, dynamic and static."""
        return self.code.shared + self.static_shared

    @staticmethod
    def from_json(answer: Mapping[str, Any]) -> Cubin:
        """A worker's answer as a value."""
        code, data = MachineCode(**answer["code"]), base64.b64decode(answer["data"])
        return Cubin(**{**answer, "data": data, "types": tuple(answer["types"]), "code": code})


def specialization_of(call: KernelCall) -> Specialization:
    """What must be compiled for a call."""
    return specialized(call.kernel, call.constants, map(_type, dict(call.ordered).values()), call.warps, call.stages)


def specialized(
    kernel: Kernel, constants: Mapping[str, Constant], types: Iterable[str], warps: int, stages: int
) -> Specialization:
    """A kernel with its constants, in the order of its parameters."""
    function = kernel.function.fn
    return Specialization(
        kernel=kernel.name,
        file=function.__module__.removeprefix(f"{KERNELS}."),
        function=function.__name__,
        constants=tuple((name, constants[name]) for name in kernel.parameters if name in constants),
        types=tuple(types),
        warps=warps,
        stages=stages,
        minimum_sm=kernel.minimum_sm,
    )


def _type(argument: Argument) -> str:
    """Triton's: sizes and whole numbers are i32, other numbers fp32."""
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
        ResourceError: Triton is not installed, a worker was killed, or a kernel is not in the pack that stands in.
        LlmcError: Triton refuses a kernel; of several the first in order.
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
    """As `compile_all`, but every specialization has its own outcome."""
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
        if sm < specialization.minimum_sm:
            outcomes[specialization] = Unsupported(
                f"kernel {specialization} for sm_{sm}",
                found=f"it needs sm_{specialization.minimum_sm} or newer",
                fix="a newer GPU",
            )
            continue
        keys[specialization] = key_of(specialization.request(sm), sources[specialization.file], tools)
        if answer := cache.load(keys[specialization]):
            outcomes[specialization] = Cubin.from_json(answer)
        elif cache.packed is not None:
            # another Triton's machine code among the pack's would be measured under the pack's name
            outcomes[specialization] = ResourceError(
                f"kernel {specialization} for sm_{sm} in the pack {cache.folder}",
                found="none of these sources",
                fix="make the pack again from this llmc, or unset LLMC_CACHE to compile",
            )
    missing = [specialization for specialization, outcome in outcomes.items() if outcome is None]
    with progress.stage(f"sm_{sm} kernels") as advance, contextlib.closing(_compile(missing, sm, jobs)) as answers:
        for specialization, answer in answers:
            if isinstance(answer, LlmcError):
                outcomes[specialization] = answer
                continue
            cubin = Cubin.from_json(answer)
            try:
                check_parameters(cubin, specialization.warps)
            except EngineError as error:
                outcomes[specialization] = error
                continue
            if sources_of(specialization.file) == sources[specialization.file]:  # nobody edits it at this moment
                cache.save(keys[specialization], answer)
            outcomes[specialization] = cubin
            advance(len(cubin.data))
    return {
        specialization: _fitting(specialization, outcome, target.shared)
        for specialization, outcome in outcomes.items()
        if outcome
    }


def check_parameters(cubin: Cubin, warps: int) -> None:
    """That a kernel reads its parameters where `runtime/cuda/launches.py` puts them, and takes the plan's threads.

    Raises:
        EngineError: it does not; a launch would give it other numbers without any error of the driver.
    """
    image = image_of(cubin.data, cubin.code.entry)
    wanted = [Parameter(one.offset, struct.calcsize(one.code)) for one in layout([*cubin.types, "*i8", "*i8"])]
    if [*image.parameters] != wanted or image.threads != (32 * warps, 1, 1):
        raise EngineError(
            f"kernel {cubin.code.entry} for sm_{cubin.sm}: parameters {wanted}, {32 * warps} threads",
            found=f"{[*image.parameters]}, {image.threads}",
            fix="the Triton of this llmc: pip install -c constraints.txt",
        )


def _fitting(specialization: Specialization, outcome: Cubin | LlmcError, most: int) -> Cubin | LlmcError:
    if isinstance(outcome, LlmcError) or outcome.shared <= most:
        return outcome
    return LlmcError(
        f"kernel {specialization} for sm_{outcome.sm}",
        found=f"{outcome.shared} bytes of shared memory per block, of at most {most}",
        fix="smaller tiles or fewer stages",
    )


def need_compiler() -> None:
    """Raises ResourceError with the pip line where the packages that compile kernels are not installed.

    That the assembler is there is asked when a kernel needs it, and then by its own name.
    """
    if absent := [module for module in _NEEDED if find_spec(module) is None]:
        raise ResourceError(
            f"compiling kernels needs the extra {EXTRA!r}",
            found=f"not installed: {', '.join(absent)}",
            fix=f"pip install 'llmc[{EXTRA}]'",
        )


Answer = Mapping[str, Any] | LlmcError


def _compile(
    specializations: Sequence[Specialization], sm: int, jobs: int | None
) -> Generator[tuple[Specialization, Answer], None, None]:
    """Every specialization's answer as it comes, from `jobs` workers, each of a thread of its own."""
    if not specializations:
        return
    count = min(jobs or max(1, min(cpu_count(), memory().available // _WORKER_BYTES)), len(specializations))
    mine = threading.local()
    workers: list[_Worker] = []

    def start() -> None:
        mine.worker = _Worker(tempfile.mkdtemp(dir=folder))
        workers.append(mine.worker)

    def ask(specialization: Specialization) -> tuple[Specialization, Answer]:
        return specialization, mine.worker.ask(specialization, sm)

    with (
        tempfile.TemporaryDirectory(prefix="llmc-kernels-") as folder,
        ThreadPoolExecutor(count, initializer=start) as threads,
    ):
        try:
            for done in as_completed([threads.submit(ask, specialization) for specialization in specializations]):
                yield done.result()
        finally:
            threads.shutdown(wait=False, cancel_futures=True)  # a thread that starts later finds nothing to ask
            for worker in workers:
                worker.close()


class _Worker:
    """A process of `worker.py`, started when it is first needed and again after it has died."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._closed = False

    def ask(self, specialization: Specialization, sm: int) -> Answer:
        with self._lock:
            if self._closed:
                raise ResourceError("a kernel after the end of the build")
            process = self._process = self._process or self._started()
        assert process.stdin is not None and process.stdout is not None
        line = ""
        with contextlib.suppress(OSError, ValueError):  # it died; how, its exit code says
            print(json.dumps(specialization.request(sm)), file=process.stdin, flush=True)
            line = process.stdout.readline()
        if not line.endswith("\n"):
            return self._worker_died(specialization, sm)
        answer = json.loads(line)
        if "error" not in answer:
            return answer
        self._end()  # Triton keeps half a hash of what it refused, and accepts it the second time
        return LlmcError(f"kernel {specialization} for sm_{sm}", found=answer["error"].strip()[:_LONGEST_REASON])

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
                start_new_session=True,  # so that ptxas ends with it, and Ctrl-C reaches this process alone
            )

    def _worker_died(self, specialization: Specialization, sm: int) -> LlmcError:
        """The error of a worker that gave no answer; the next specialization gets a new one."""
        code = self._end(patience=1)
        asked = f"kernel {specialization} for sm_{sm}"
        if code == -signal.SIGKILL:
            return ResourceError(asked, found="its compiler was killed, as systems do without memory", fix="--jobs 1")
        said = Path(self._folder, "stderr").read_text(encoding="utf-8", errors="replace").strip()
        how = "gave no answer" if code is None else f"ended with code {code}"
        return LlmcError(asked, found=f"its compiler {how}: {said[-_LONGEST_REASON:]}")

    def _end(self, patience: float = 0) -> int | None:
        """Ends the process and what it started; the exit code if it had ended by itself."""
        with self._lock:
            process, self._process = self._process, None
            if process is None:
                return None
            code = None
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = process.wait(patience)
            with contextlib.suppress(OSError):
                os.killpg(process.pid, signal.SIGKILL)
            with contextlib.suppress(OSError), process:  # closing its stdin may find nobody
                process.wait()
            return code
