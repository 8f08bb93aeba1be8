"""What needs a real GPU is skipped where there is none, and says why. The benchmarks' engines are these tests' too."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib.util import find_spec

import pytest
from support.paths import ROOT

from llmc.runtime.chips import SM
from llmc.runtime.cuda import gpus
from llmc.runtime.cuda.driver import Driver
from llmc.runtime.profiles import has_bindings

sys.path.append(str(ROOT / "benchmarks"))


@pytest.fixture(scope="session")
def gpu() -> Iterator[Driver]:
    """The first GPU, of a kind that kernels are compiled for."""
    found = gpus.detect()
    if not found.gpus:
        pytest.skip(found.problem)
    if not has_bindings():
        pytest.skip("the extra 'cuda' is not installed")
    if find_spec("triton") is None:
        pytest.skip("the extra 'cuda-build' is not installed: kernels cannot be compiled here")
    if found.gpus[0].sm not in SM.values():
        pytest.skip(f"no kernels for compute capability {found.gpus[0].sm / 10:g}")
    driver = Driver.load()
    yield driver
    driver.close()


@pytest.fixture(autouse=True)
def _context(gpu: Driver) -> None:
    """Other devices come and go in the same process: the context is made current before every test."""
    gpu.use()
