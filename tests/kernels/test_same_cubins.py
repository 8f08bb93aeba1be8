"""Cubins of equal kernels are equal bytes, whatever the folder, order, environment and number of compilers."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.paths import ROOT

SCRIPT = """
import hashlib, json, sys
import llmc
from llmc.compiler.targets.cuda.kernels import gated
from llmc.compiler.targets.cuda.call import Operand
from llmc.compiler.targets.cuda.cubins.compile import compile_all, specialization_of
from llmc.runtime.progress import NO_PROGRESS
specializations = []
for width, activation in ((96, "relu"), (1500, "silu"), (96, "gelu")):
    x, y = Operand("x", "bf16", ("tokens", 2 * width)), Operand("y", "bf16", ("tokens", width))
    specializations.append(specialization_of(gated.gated(x, y, activation=activation)))
if sys.argv[1] == "backwards":
    specializations.reverse()
found = [compile_all(specializations, sm, progress=NO_PROGRESS, jobs=int(sys.argv[2])) for sm in (80, 90)]
texts = {f"{v} {c[v].sm}": [c[v].data.hex(), c[v].ptx, c[v].code.registers] for c in found for v in specializations}
print(llmc.__file__)
print(hashlib.sha256(json.dumps(texts, sort_keys=True).encode()).hexdigest())
"""


@pytest.mark.soak
def test_bytes_are_equal_in_any_folder_order_environment_and_number_of_workers(tmp_path: Path):
    """One run is of this tree, the other of a copy, elsewhere, at once, and with variables that Triton obeys."""
    elsewhere = tmp_path / "a copy" / "llmc"
    skip = shutil.ignore_patterns("build", "tests", "examples", ".*", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, elsewhere, ignore=skip)
    (tmp_path / "t").mkdir()
    hostile = {"TRITON_DISABLE_LINE_INFO": "0", "DISABLE_PTXAS_OPT": "1", "TRITON_DEFAULT_FP_FUSION": "0"}
    hostile |= {"PYTHONPATH": str(elsewhere.parent), "TMPDIR": str(tmp_path / "t"), "PYTHONHASHSEED": "7"}
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, order, str(jobs)],
            cwd=folder,
            env={**os.environ, "LLMC_CACHE": str(tmp_path / order), **environment},
            stdout=subprocess.PIPE,
            text=True,
        )
        for order, jobs, folder, environment in (
            ("forwards", 1, tmp_path, {}),
            ("backwards", 2, ROOT, hostile),
        )
    ]
    here, there = (run.communicate()[0].split("\n") for run in runs)
    assert here[0] != there[0] == str(elsewhere / "__init__.py")
    assert here[1] == there[1] != ""
    entries = [
        sorted(path.name for path in (tmp_path / order / "kernels").iterdir()) for order in ("forwards", "backwards")
    ]
    assert entries[0] == entries[1]
    assert len(entries[0]) == 6
