"""Every case of every kernel by name, made once a process: the tests with and without a GPU walk through the same."""

from __future__ import annotations

from llmc.compiler.targets.cuda.call import Case
from llmc.compiler.targets.cuda.kernels import suites

CASES: dict[str, Case] = {f"{file}:{case.name}": case for file, suite in suites().items() for case in suite.cases()}
