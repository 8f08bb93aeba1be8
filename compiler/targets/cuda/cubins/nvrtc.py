"""Compiles CUDA C++ to PTX with NVRTC of the assembler's CUDA release: no toolkit, no GPU, no header but those given.

The library of the wheel is called through ctypes: eight functions, which have not changed since CUDA 7.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from .....runtime.errors import ResourceError
from .assembler import RELEASE

WHEEL = f"nvidia-cuda-nvrtc=={RELEASE}.*"
_LIBRARIES = ("libnvrtc-builtins.so.13.0", "libnvrtc.so.13")
"""The first is opened by the second, by name: it is found if it is loaded already."""


def compiler_version() -> str:
    """The version of the wheel, such as "13.0.88".

    Raises:
        ResourceError: it is not installed, or of another release.
    """
    found = _installed()
    if not found.startswith(f"{RELEASE}."):
        raise ResourceError(f"expected NVRTC of CUDA {RELEASE}", found=found, fix=f"pip install '{WHEEL}'")
    return found


def _installed() -> str:
    try:
        return version("nvidia-cuda-nvrtc")
    except PackageNotFoundError:
        return "not installed"


@cache
def _library() -> Any:
    spec = find_spec("nvidia")
    for folder in spec.submodule_search_locations or () if spec is not None else ():
        paths = [Path(folder, "cu13", "lib", name) for name in _LIBRARIES]
        if all(path.is_file() for path in paths):
            return [ctypes.CDLL(str(path), ctypes.RTLD_GLOBAL) for path in paths][-1]
    raise ResourceError(f"cannot find NVRTC of CUDA {RELEASE}", found="not installed", fix=f"pip install '{WHEEL}'")


def to_ptx(source: str, name: str, headers: Mapping[str, str], options: Sequence[str]) -> str:
    """The PTX of CUDA C++ called `name`, which includes only `headers`.

    Raises:
        ResourceError: NVRTC is not installed.
        RuntimeError: it refuses the source; says why.
    """
    program = ctypes.c_void_p()
    texts, names = _strings([*headers.values()]), _strings([*headers])
    _call("nvrtcCreateProgram", ctypes.byref(program), source.encode(), name.encode(), len(headers), texts, names)
    try:
        status = _library().nvrtcCompileProgram(program, len(options), _strings(options))
        if status:
            raise RuntimeError(f"NVRTC ended with {status}: {_text(program, 'ProgramLog')}")
        return _text(program, "PTX")
    finally:
        _call("nvrtcDestroyProgram", ctypes.byref(program))


def _text(program: ctypes.c_void_p, what: str) -> str:
    size = ctypes.c_size_t()
    _call(f"nvrtcGet{what}Size", program, ctypes.byref(size))
    buffer = ctypes.create_string_buffer(size.value)
    _call(f"nvrtcGet{what}", program, buffer)
    return buffer.value.decode(errors="replace").strip() + "\n"


def _strings(texts: Sequence[str]) -> Any:
    return (ctypes.c_char_p * len(texts))(*(text.encode() for text in texts))


def _call(function: str, *arguments: Any) -> None:
    if status := getattr(_library(), function)(*arguments):
        raise RuntimeError(f"{function} ended with {status}")
