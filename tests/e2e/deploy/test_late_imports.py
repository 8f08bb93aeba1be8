"""What is imported late is imported right when it is used, and the process goes on as if nothing had happened."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.paths import PICO, ROOT


def printed(code: str, **variables: str) -> str:
    """What a fresh interpreter prints."""
    environment = {**os.environ, **variables}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout.strip()


BEGIN = "import sys\nfrom llmc.compiler.kernel_imports import late_imports\nwith late_imports():\n"
LOADED = "'sympy' in sys.modules"
LATE_CASES = [
    "linear.small:int4-silu-bf16-1x128x320",
    "linear.large:nvfp4-bf16-bf16-33x70x144",
    "gated:relu-bf16-2x1024",
]
IS_REAL = "is sys.modules['sympy.core']"


@pytest.mark.parametrize(
    ("code", "out"),
    [
        (f"    import sympy\nprint({LOADED}, sympy.Integer(2) + 1, sympy.__version__[:1], {LOADED})", "False 3 1 True"),
        (
            f"    import sympy\n    import sympy.core\n    print(sympy.core {IS_REAL})\nprint(sympy.core {IS_REAL})",
            "True\nTrue",
        ),
        (f"    from sympy import core\nprint(core {IS_REAL})", "True"),
        (f"    import sympy\n    late = sympy.Max\nprint({LOADED}, late(2, 3), sympy.Max is late)", "False 3 False"),
        (
            f"    import onnx_ir\nprint({LOADED})\n"
            f"import importlib.util\nprint(importlib.util.find_spec('sympy').name, {LOADED})\n"
            f"print((onnx_ir.SymbolicDim('max(n, 2)') + 1).evaluate({{'n': 5}}), {LOADED})",
            "False\nsympy False\n6 True",
        ),
        (f"    pass\nprint('torch' in sys.modules, {LOADED})", "False False"),
        (
            "    import triton\n    import triton.language as tl\n    print('triton.runtime' in sys.modules)\n"
            "print(tl.float32, triton.cdiv(3, 2), 'triton.runtime' in sys.modules)\n"
            "import triton.language as real\nprint(tl.int8 is real.int8, triton.language.int8 is real.int8)",
            "False\nfp32 2 True\nTrue True",
        ),
    ],
)
def test_what_comes_late_is_the_real_module(code: str, out: str):
    assert printed(BEGIN + code) == out


def test_what_is_imported_already_stays():
    code = f"import sympy\nreal = sympy\n{BEGIN}    import sympy\nprint(sympy is real, sys.modules['sympy'] is real)"
    assert printed(code) == "True True"


def test_late_kernels_run_as_others_do():
    """Kernels that call functions of their own and of other files, among them those that compute constants."""
    code = (
        f"{BEGIN}    import llmc.compiler.targets.cuda.emit\n"
        "    from llmc.compiler.targets.cuda.kernels.linear import small\n"
        "print('triton' in sys.modules, len(small.KERNEL.parameters) > 5, type(small.KERNEL.defined).__name__)\n"
        "from kernels.test_cases import CASES, test_case\n"
        f"for name in {LATE_CASES}:\n    test_case(name)\n"
        "print(type(small.linear_small_kernel).__name__)"
    )
    assert printed(code, PYTHONPATH=str(ROOT / "tests")) == "False True LateFunction\nInterpretedFunction"


def test_a_plan_loads_no_torch(tmp_path: Path):
    """Nor sympy or triton; and a build in the same process works afterwards."""
    engine = str(tmp_path / "e.llmc")
    code = (
        "import sys\nfrom llmc.cli.app import run\n"
        f"code = run(['plan', {str(PICO / 'config.json')!r}, '--for', '2xh100', '--quantize', 'int4,none', '--json'])\n"
        "print(code, *(name in sys.modules for name in ('torch._C', 'torch', 'sympy', 'triton')))\n"
        f"code = run(['build', {str(PICO)!r}, '-o', {engine!r}, '--quantize', 'int8', '--json'])\n"
        "print(code, 'torch._C' in sys.modules)"
    )
    _, said, _, after = printed(code).splitlines()
    assert said == "0 False False False False"
    assert after == "0 True"
