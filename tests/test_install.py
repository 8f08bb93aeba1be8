"""The wheel in a bare virtual environment: runs engines without torch, and with the build extra makes them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CHECKPOINT = ROOT / "examples/checkpoints/pico-python"


def _environment() -> dict[str, str]:
    """The caller's, less what would let the tree or another environment leak in."""
    return {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")}


def _call(*command: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(list(map(str, command)), cwd=cwd, env=_environment(), capture_output=True, text=True)


@pytest.mark.slow
def test_the_wheel_runs_and_builds_in_a_bare_environment(tmp_path: Path) -> None:
    wheels, venv, engine = tmp_path / "wheels", tmp_path / "venv", tmp_path / "pico.llmc"
    pip = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")
    made = _call(*pip, "wheel", "--no-deps", "--wheel-dir", wheels, ROOT, cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    (wheel,) = wheels.glob("llmc-*.whl")
    assert _call(sys.executable, "-m", "venv", venv, cwd=tmp_path).returncode == 0
    install = (venv / "bin/python", "-m", "pip", "install", "--quiet", "-c", ROOT / "constraints.txt")
    llmc = venv / "bin/llmc"

    done = _call(*install, wheel, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    heavy = ("torch", "onnx", "onnx_ir", "transformers")
    modules = f"import importlib.util as u; print([n for n in {heavy} if u.find_spec(n)])"
    assert _call(venv / "bin/python", "-c", modules, cwd=tmp_path).stdout.strip() == "[]"
    refused = _call(llmc, "build", CHECKPOINT, "-o", engine, cwd=tmp_path)
    assert refused.returncode == 4
    assert "pip install 'llmc[build]'" in refused.stderr

    here = _call(sys.executable, "-m", "llmc", "build", CHECKPOINT, "-o", engine, "--quantize", "int4", cwd=ROOT.parent)
    assert here.returncode == 0, here.stderr
    expected = _text(_call(llmc, "run", engine, "def main(", "--max-tokens", "12", "--json", cwd=tmp_path))

    done = _call(*install, f"{wheel}[build]", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    again = tmp_path / "again.llmc"
    built = _call(llmc, "build", CHECKPOINT, "-o", again, "--quantize", "int4", cwd=tmp_path)
    assert built.returncode == 0, built.stderr
    assert again.read_bytes() == engine.read_bytes(), "another environment with equal versions, the same bytes"
    assert _text(_call(llmc, "run", again, "def main(", "--max-tokens", "12", "--json", cwd=tmp_path)) == expected


def _text(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["text"]
