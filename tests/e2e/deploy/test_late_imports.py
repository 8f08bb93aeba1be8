"""What is imported late is imported right when it is used, and the process goes on as if nothing had happened."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from support.paths import PICO


def printed(code: str) -> str:
    """What a fresh interpreter prints."""
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip()


BEGIN = "import sys\nfrom llmc.compiler.kernel_imports import late_imports\nwith late_imports():\n"
LOADED = "'sympy' in sys.modules"
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
    ],
)
def test_what_comes_late_is_the_real_module(code: str, out: str):
    assert printed(BEGIN + code) == out


def test_what_is_imported_already_stays():
    code = f"import sympy\nreal = sympy\n{BEGIN}    import sympy\nprint(sympy is real, sys.modules['sympy'] is real)"
    assert printed(code) == "True True"


def test_a_plan_loads_no_torch(tmp_path: Path):
    """Nor sympy; and a build in the same process works afterwards."""
    engine = str(tmp_path / "e.llmc")
    code = (
        "import sys\nfrom llmc.cli.app import run\n"
        f"code = run(['plan', {str(PICO / 'config.json')!r}, '--for', '2xh100', '--quantize', 'int4,none', '--json'])\n"
        "print(code, 'torch._C' in sys.modules, 'torch' in sys.modules, 'sympy' in sys.modules)\n"
        f"code = run(['build', {str(PICO)!r}, '-o', {engine!r}, '--quantize', 'int8', '--json'])\n"
        "print(code, 'torch._C' in sys.modules)"
    )
    _, said, _, after = printed(code).splitlines()
    assert said == "0 False False False"
    assert after == "0 True"
