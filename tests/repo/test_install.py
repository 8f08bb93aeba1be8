"""The wheel in a bare virtual environment: runs engines without torch, and with the build extra makes them.

pip resolves what the wheel asks for, and would fetch it. To unpack and compile a gigabyte costs a minute though, so
links to what is installed here already are put in its place first; pip then finds that it is what was asked for.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterable
from email.parser import Parser
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from support.engines import PicoEngine
from support.paths import PICO, ROOT


def _environment() -> dict[str, str]:
    """The caller's, less what would let the tree or another environment leak in."""
    return {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")}


def _call(*command: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(list(map(str, command)), cwd=cwd, env=_environment(), capture_output=True, text=True)


def _asked(requirements: Iterable[str], extras: frozenset[str], found: set[tuple[str, frozenset[str]]]) -> None:
    """Adds the distributions of this environment that fulfil requirements, each with its extras, and what they need."""
    for requirement in map(Requirement, requirements):
        if requirement.marker and not any(requirement.marker.evaluate({"extra": extra}) for extra in {"", *extras}):
            continue
        key = requirement.name, frozenset(requirement.extras)
        try:
            installed = metadata.distribution(requirement.name)
        except metadata.PackageNotFoundError:
            continue  # pip fetches it
        if key not in found and requirement.specifier.contains(installed.version, prereleases=True):
            found.add(key)
            _asked(installed.requires or (), key[1], found)


def _link(wheel: Path, venv: Path, *extras: str) -> None:
    """Put links to what the wheel asks for, with these extras, into the environment's folder of packages."""
    with zipfile.ZipFile(wheel) as opened:
        (name,) = (name for name in opened.namelist() if name.endswith(".dist-info/METADATA"))
        asked = Parser().parsestr(opened.read(name).decode()).get_all("Requires-Dist") or []
    found: set[tuple[str, frozenset[str]]] = set()
    _asked(asked, frozenset(extras), found)
    (site,) = venv.glob("lib/python*/site-packages")
    for name in {name for name, _ in found}:
        installed = metadata.distribution(name)
        for top in {file.parts[0] for file in installed.files or ()} - {"..", "__pycache__"}:
            if not (site / top).exists():
                (site / top).symlink_to(Path(str(installed.locate_file(top))).resolve())


@pytest.mark.slow
def test_the_wheel_runs_and_builds_in_a_bare_environment(pico_engine: PicoEngine, tmp_path: Path) -> None:
    wheels, venv = tmp_path / "wheels", tmp_path / "venv"
    pip = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")
    made = _call(*pip, "wheel", "--no-deps", "--wheel-dir", wheels, ROOT, cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    (wheel,) = wheels.glob("llmc_engine-*.whl")
    assert _call(sys.executable, "-m", "venv", "--without-pip", venv, cwd=tmp_path).returncode == 0
    install = (*pip, "--python", venv / "bin/python", "install", "-c", ROOT / "constraints.txt")
    llmc = venv / "bin/llmc"

    _link(wheel, venv)
    done = _call(*install, wheel, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    heavy = ("torch", "onnx", "onnx_ir", "transformers")
    modules = f"import importlib.util as u; print([n for n in {heavy} if u.find_spec(n)])"
    assert _call(venv / "bin/python", "-c", modules, cwd=tmp_path).stdout.strip() == "[]"
    refused = _call(llmc, "build", PICO, "-o", tmp_path / "pico.llmc", cwd=tmp_path)
    assert refused.returncode == 4
    assert "pip install '.[build]' in a checkout of llmc" in refused.stderr

    engine = pico_engine("int4")
    expected = _text(_call(llmc, "run", engine, "def main(", "--max-tokens", "12", "--json", cwd=tmp_path))

    fits = _call(llmc, "doctor", engine, "--for", "h200", "--json", cwd=tmp_path)
    assert fits.returncode == 0 and json.loads(fits.stdout)["engine"]["fit"] == ["cpu"], fits.stderr

    _link(wheel, venv, "build")
    done = _call(*install, f"{wheel}[build]", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    again = tmp_path / "again.llmc"
    built = _call(llmc, "build", PICO, "-o", again, "--quantize", "int4", cwd=tmp_path)
    assert built.returncode == 0, built.stderr
    assert again.read_bytes() == engine.read_bytes(), "another environment with equal versions, the same bytes"
    assert _text(_call(llmc, "run", again, "def main(", "--max-tokens", "12", "--json", cwd=tmp_path)) == expected


def _text(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["text"]
