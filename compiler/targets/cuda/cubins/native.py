"""Compiles a kernel in CUDA C++: the header of one call, NVRTC, then the assembler that Triton's PTX goes through.

The source tells its dynamic shared memory (`SHARED_BYTES`), and lets the next launch come and waits for the one before
itself: it knows what it may read earlier.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .assembler import targeted
from .nvrtc import to_ptx

KERNELS = Path(__file__).resolve().parents[1] / "kernels"
_ELEMENTS = {"*bf16": "bf16", "*fp16": "f16", "*fp32": "float", "*u8": "u8", "*i32": "int", "*i64": "long long"}
_NUMBERS = {"i32": "int", "i64": "long long", "fp32": "float"}
_SHARED = re.compile(r"\bSHARED_BYTES = (\d+);")
_ENTRY = re.compile(r"\.entry (\w+)\(")
_HEADERS = "*.cuh"
CALL = "call.cuh"
"""The header that is made for a call."""


def header(request: Mapping[str, Any]) -> str:
    """The constants of a call, the parameters that its launch passes, and the types of their elements.

    A parameter that the call does not have is a constant of type Absent. Two pointers that no kernel reads follow, as
    Triton's kernels have them. Pointers are not __restrict__: loads through them would move ahead of the wait for the
    launch before, which clobbers only what may alias.
    """
    lines = ["#pragma once", '#include "values.cuh"']
    for name, value in request["constants"].items():
        lines.append(f"constexpr {_constant(name, value)};")
    parameters = []
    for name, kind in zip(request["parameters"], request["types"], strict=True):
        if kind in _ELEMENTS:
            lines.append(f"using {name}_element = {_ELEMENTS[kind]};")
            parameters.append(f"{_ELEMENTS[kind]}* {name}")
        elif kind in _NUMBERS:
            parameters.append(f"{_NUMBERS[kind]} {name}")
        else:
            parameters.append(f"const __grid_constant__ Matrix {name}")
    lines.append(f"#define PARAMETERS {', '.join([*parameters, 'void*', 'void*'])}")
    return "\n".join([*lines, ""])


def _constant(name: str, value: object) -> str:
    if value is None:
        return f"Absent {name}{{}}"
    if isinstance(value, bool):
        return f"bool {name} = {str(value).lower()}"
    if isinstance(value, int):
        return f"int {name} = {value}"
    return f"float {name} = {value!r}f" if isinstance(value, float) else f'char {name}[] = "{value}"'


def compiled(request: Mapping[str, Any]) -> tuple[str, str, int]:
    """(PTX, entry, bytes of dynamic shared memory) of a request to the compiler.

    Raises:
        RuntimeError: NVRTC refuses the source, or it is not of one kernel that tells its shared memory.
    """
    source = KERNELS / request["file"]
    headers = {path.name: path.read_text() for path in sorted(source.parent.glob(_HEADERS))}
    options = (f"--gpu-architecture=compute_{request['sm']}a", "--std=c++20", "--fmad=true", "-default-device")
    ptx = to_ptx(source.read_text(), source.name, {**headers, CALL: header(request)}, options)
    ptx = targeted(ptx, request["sm"])
    entry, shared = _ENTRY.findall(ptx), _SHARED.findall(ptx)
    if len(entry) != 1 or len(shared) != 1:
        raise RuntimeError(f"{source.name}: entries {entry} and shared memory {shared}, expected one of each")
    return ptx, entry[0], int(shared[0])
