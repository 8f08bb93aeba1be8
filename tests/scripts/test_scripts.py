"""Every text script of this folder is a test; README.md has their format."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from scripts.forked import forked_llmc
from scripts.runner import parse, report, run, update
from support.paths import PICO

HERE = Path(__file__).resolve().parent
SCRIPTS = {str(path.relative_to(HERE).with_suffix("")): path for path in sorted(HERE.glob("*/*.txt"))}


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Files that scripts share: the bundled checkpoint, and an int8 engine of it that nobody writes to."""
    return {"CHECKPOINT": str(PICO), "ENGINE": str(tmp_path_factory.mktemp("engine") / "pico.llmc")}


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory, names: dict[str, str]) -> Iterator[dict[str, str]]:
    """Variables of a shell that finds `llmc` and `python`."""
    with forked_llmc(tmp_path_factory.mktemp("bin")) as llmc:
        path = f"{llmc.parent}:{Path(sys.executable).parent}:{os.environ['PATH']}"
        environment = {**os.environ, "PATH": path, "COLUMNS": "80", "LC_ALL": "C.UTF-8"}
        command = [llmc, "build", PICO, "-o", names["ENGINE"], "--quantize", "int8"]
        built = subprocess.run(command, env=environment, check=False, capture_output=True, text=True)
        assert built.returncode == 0, built.stderr
        yield environment


@pytest.mark.parametrize("path", SCRIPTS.values(), ids=SCRIPTS)
def test_script(
    path: Path, tmp_path: Path, environment: dict[str, str], names: dict[str, str], pytestconfig: pytest.Config
):
    script = parse(path.read_text(encoding="utf-8"))
    written = run(script, tmp_path, environment, names)
    if pytestconfig.getoption("--update-golden"):
        path.write_text(update(script, written).text(), encoding="utf-8")
    elif difference := report(script, written):
        pytest.fail(f"{path}\n{difference}\nif it should be so, --update-golden writes it", pytrace=False)
