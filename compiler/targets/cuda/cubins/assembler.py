"""Assembles PTX with the oldest assembler of a CUDA major version: every driver of that version runs its output.

Triton has a newer assembler, whose machine code an older driver of the same major version may refuse. The pinned wheel
`nvidia-cuda-nvcc` has the assembler of CUDA 13.0; drivers from 580 on run its code (CUDA Compatibility, minor version).
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from .....runtime.errors import ResourceError

RELEASE = "13.0"
"""Of CUDA."""
PTX_ISA = 90
"""The PTX version that the assembler of this release reads (9.0)."""
WHEEL = f"nvidia-cuda-nvcc=={RELEASE}.*"
ARCH = {80: "sm_80", 86: "sm_86", 87: "sm_87", 89: "sm_89", 90: "sm_90a", 100: "sm_100f", 120: "sm_120f"}
"""The assembler's target by compute capability. a: instructions of that chip only (wgmma); f: of its family, so that
sm_100f runs on 10.0 and 10.3, and sm_120f on 12.0 and 12.1 (PTX ISA, `.target`)."""
_FLAGS = ("-lineinfo", "-suppress-debug-info", "-v", "--regAllocOptLevel=2")
"""Triton's own flags: no line information, resources in the output, and a way around a register allocation bug."""
_RELEASE = re.compile(r"release (\d+\.\d+), (V[\d.]+)")
_TARGET = re.compile(r"^\.target sm_\w+", re.MULTILINE)


@cache
def assembler() -> Path:
    """The assembler of the installed wheel.

    Raises:
        ResourceError: it is not installed.
    """
    found = find_spec("nvidia")
    for folder in found.submodule_search_locations or () if found is not None else ():
        path = Path(folder) / "cu13" / "bin" / "ptxas"
        if path.is_file():
            return path
    raise ResourceError(f"cannot find ptxas of CUDA {RELEASE}", found="not installed", fix=f"pip install '{WHEEL}'")


@cache
def assembler_version() -> str:
    """The assembler's version, such as "V13.0.88".

    Raises:
        ResourceError: it is not installed, does not start, or is of another release.
    """
    try:
        said = subprocess.run([assembler(), "--version"], check=True, capture_output=True, text=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise ResourceError(
            f"cannot run ptxas of CUDA {RELEASE}", found=str(error), fix=f"pip install --force-reinstall '{WHEEL}'"
        ) from error
    version = _RELEASE.search(said)
    if version is None or version[1] != RELEASE:
        found = version[2] if version is not None else said.strip()[:200]
        raise ResourceError(f"expected ptxas of CUDA {RELEASE}", found=found, fix=f"pip install '{WHEEL}'")
    return version[2]


def targeted(ptx: str, sm: int) -> str:
    """The PTX of one kernel with its `.target` set to the chip or family of `ARCH`."""
    return _TARGET.sub(f".target {ARCH[sm]}", ptx, count=1)


def assemble(ptx: str, sm: int) -> tuple[bytes, str]:
    """(cubin, output of the assembler) of a kernel's PTX.

    Raises:
        RuntimeError: the assembler refuses; says why.
    """
    with tempfile.TemporaryDirectory() as folder:
        source, made = Path(folder, "kernel.ptx"), Path(folder, "kernel.cubin")
        source.write_text(ptx)
        command = [assembler(), *_FLAGS, f"--gpu-name={ARCH[sm]}", source, "-o", made]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            said = (done.stderr + done.stdout).replace(f"{folder}/", "").strip()
            raise RuntimeError(f"ptxas of CUDA {RELEASE} ended with code {done.returncode}: {said}")
        return made.read_bytes(), done.stderr + done.stdout
