"""The compiler process: Triton without its interpreter; one request per line on stdin, one answer per line on stdout.

Triton decides at import whether kernels are interpreted, and the process that plans interprets them. So kernels are
compiled in separate processes, with a fixed environment: a user's variables cannot change the bytes of a cubin. The key
of the kernel cache covers this file's text.
"""

from __future__ import annotations

import base64
import json
import os
import re
import sys
from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Any

from ..call import EMULATE
from .assembler import PTX_ISA, assemble, targeted
from .native import compiled as native_ptx

KERNELS = f"{__name__.rsplit('.', 2)[0]}.kernels"
"""The package of the kernel files; its import decides that kernels are interpreted, so it is not imported here."""
SETTINGS = {
    "TRITON_INTERPRET": "0",
    "TRITON_DISABLE_LINE_INFO": "1",  # line information holds paths, and doubles the size of a cubin
    "TRITON_DEFAULT_FP_FUSION": "1",  # explicit, because Triton is about to change its default
    "PYTHONHASHSEED": "0",
    "OMP_NUM_THREADS": "1",
    "CUDA_VISIBLE_DEVICES": "",
}
"""Environment of a worker, besides its own folders (`compile.py`)."""
WAITS_FROM = 90
"""First capability with programmatic dependent launch: kernels allow the next launch, then wait for the last one."""
_BODY = "\n// %bb.0:"
_WAIT = re.compile(r"griddepcontrol\.wait\s*;")
_ACCESS = re.compile(
    r"^(?:@|\$|bra\b|call\b|bar\b|membar|fence|mbarrier|ld(?!\.param)|st\.|atom|red|tex|cp\.(?!async\.bulk\.prefetch\.L2))"
)
"""The beginnings of lines that branch, are a target of branches, or may access memory."""
_THREADS = re.compile(r"^\.reqntid \d+(, \d+)*$", re.MULTILINE)
_SPILLS = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_REGISTERS = re.compile(r"Used (\d+) registers")
_STATIC_SHARED = re.compile(r"(\d+) bytes smem")


def main() -> None:
    """Answer requests until stdin ends."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # keeps the output of Triton and its tools out of the answers
    for line in sys.stdin:
        try:
            answer = compile_one(json.loads(line))
        except Exception as error:
            answer = {"error": "\n".join(f"{type(one).__name__}: {one}" for one in causes(error))}
        print(json.dumps(answer), file=answers, flush=True)


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error and its causes, innermost first: Triton wraps an error once for each function of the call stack."""
    if error is not None:
        yield from causes(error.__cause__)
        yield error


def compile_one(request: Mapping[str, Any]) -> dict[str, Any]:
    """A cubin and the facts that a launch needs, in the form that `Cubin.from_json` reads."""
    return native_answer(request) if request["parameters"] else triton_answer(request)


def native_answer(request: Mapping[str, Any]) -> dict[str, Any]:
    """`compile_one` of a kernel in CUDA C++."""
    ptx, entry, shared = native_ptx(request)
    cubin, log, ptx = assembled(ptx, request["sm"])
    return _answer(request, cubin, ptx, log, {"entry": entry, "shared": shared})


def triton_answer(request: Mapping[str, Any]) -> dict[str, Any]:
    """`compile_one` of a Triton function."""
    import triton
    from triton import knobs
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    function = getattr(import_module(f"{KERNELS}.{request['file']}"), request["function"])
    constants = dict(request["constants"])
    if EMULATE in function.arg_names:
        constants[EMULATE] = False
    types = iter(request["types"])
    signature = {name: "constexpr" if name in constants else next(types) for name in function.arg_names}
    source = ASTSource(
        fn=function,
        signature=signature,
        constexprs={(i,): constants[name] for i, name in enumerate(signature) if name in constants},
        attrs={(i,): [["tt.divisibility", 16]] for i, kind in enumerate(signature.values()) if kind.startswith("*")},
    )
    options = {"num_warps": request["warps"], "num_stages": request["stages"], "enable_fp_fusion": True}
    options["ptx_version"] = PTX_ISA
    stages = Stages(request["sm"])
    hook: Any = stages  # the declared type lacks the call for the key
    knobs.runtime.add_stages_inspection_hook = hook
    compiled = triton.compile(source, target=GPUTarget("cuda", request["sm"], 32), options=options)
    facts: Any = compiled.metadata
    if facts.tensordesc_meta or facts.num_ctas != 1 or facts.launch_cooperative_grid:
        raise NotImplementedError("tensor descriptors as arguments, clusters of blocks or cooperative launches")
    scratch = {"global_scratch": facts.global_scratch_size, "profile_scratch": facts.profile_scratch_size}
    launched = {"entry": facts.name, "shared": facts.shared, **scratch}
    return _answer(request, compiled.asm["cubin"], stages.ptx, stages.log, launched)


def _answer(
    request: Mapping[str, Any], cubin: bytes, ptx: str, log: str, launched: Mapping[str, Any]
) -> dict[str, Any]:
    """`launched`: what the launch needs beyond what the assembler's output tells."""
    found = resources(log)
    code = {name: found[name] for name in ("registers", "spills")}
    return {
        "sm": request["sm"],
        "data": base64.b64encode(cubin).decode(),
        "ptx": ptx,
        "types": request["types"],
        "static_shared": found["static_shared"],
        "local": found["local"],
        "code": {"pdl": request["sm"] >= WAITS_FROM, **code, **launched},
    }


class Stages:
    """Triton's hook for its stages: it adds a wait to kernels of new chips, and assembles with the pinned assembler.

    Every thread waits before its first access to memory, so a launch that may start early (PTX ISA, griddepcontrol)
    reads only what the launch before has finished.
    """

    def __init__(self, sm: int) -> None:
        self._sm = sm
        self.log = self.ptx = ""
        """The assembler's output, and the PTX of the cubin."""

    def __call__(self, *arguments: Any) -> tuple[str, str] | None:
        """Change the stages; without arguments, return the hook's cache key (unused: each kernel is compiled anew)."""
        if not arguments:
            return "llmc", "llmc"
        stages: dict[str, Any] = arguments[1]
        generate = stages["ptx"]
        stages["ptx"] = lambda source, metadata: self._ptx(generate(source, metadata))
        stages["cubin"] = lambda source, _: self._cubin(source)
        return None

    def _ptx(self, ptx: str) -> str:
        ptx = targeted(ptx, self._sm)
        if self._sm < WAITS_FROM:
            return ptx
        ptx = ptx if _WAIT.search(ptx) else with_wait(ptx)
        check_wait(ptx)
        return ptx

    def _cubin(self, ptx: str) -> bytes:
        cubin, self.log, self.ptx = assembled(ptx, self._sm)
        return cubin


def assembled(ptx: str, sm: int) -> tuple[bytes, str, str]:
    """(cubin, output of the assembler, PTX of the cubin): that of one block a multiprocessor if this avoids spills."""
    cubin, log = assemble(ptx, sm)
    if resources(log)["spills"]:
        alone = for_one_block(ptx)
        another, said = assemble(alone, sm)
        if not resources(said)["spills"]:
            return another, said, alone
    return cubin, log, ptx


def for_one_block(ptx: str) -> str:
    """The PTX of one kernel, with one block per multiprocessor as the target of register allocation.

    By default the assembler of CUDA 13.0 keeps registers low enough for a second block, and spills for that (PTX ISA,
    .minnctapersm).
    """
    return _THREADS.sub(r"\g<0>\n.minnctapersm 1", ptx, count=1)


def check_wait(ptx: str) -> None:
    """Prove that a kernel waits for its predecessor before it reads or writes memory: it may then be launched early.

    Up to the wait the code is without branches, and no instruction accesses memory but loads of parameters and bulk
    copies to L2, which change nothing.

    Raises:
        RuntimeError: it is not proved.
    """
    body = ptx.partition(_BODY)[2]
    wait = _WAIT.search(body)
    lines = [line.strip() for line in body[: wait.start() if wait else 0].splitlines()[1:]]
    if wait is None or any(_ACCESS.search(line) for line in lines):
        raise RuntimeError("a kernel that may access memory before it waits for the launch before")


def with_wait(ptx: str) -> str:
    """The PTX of one kernel, with the two instructions of programmatic dependent launch before its first.

    Raises:
        RuntimeError: the text has another form than the PTX of one kernel.
    """
    head, body, rest = ptx.partition(_BODY)
    line, end, rest = rest.partition("\n")
    if not end or _BODY in rest:
        raise RuntimeError("PTX of another form than one kernel's")
    return f"{head}{body}{line}\n\tgriddepcontrol.launch_dependents;\n\tgriddepcontrol.wait;\n{rest}"


def resources(log: str) -> dict[str, int]:
    """Registers per thread, bytes of spills, of a thread's stack and of static shared memory, from `ptxas -v`.

    Raises:
        RuntimeError: the output does not say.
    """
    registers, spills = _REGISTERS.findall(log), _SPILLS.findall(log)
    if not registers or not spills:
        raise RuntimeError(f"no resources in the output of ptxas: {log[-300:]!r}")
    return {
        "registers": max(map(int, registers)),
        "local": max(int(stack) for stack, _, _ in spills),
        "spills": sum(int(stores) + int(loads) for _, stores, loads in spills),
        "static_shared": max(map(int, _STATIC_SHARED.findall(log)), default=0),
    }
