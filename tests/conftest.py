"""Engines of the bundled checkpoint, built once per session and format, so that many files can test real ones.

What imports torch stays out of the top of this file: also the process that only hands tests to others reads it.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

# Before anything imports numpy or onnxruntime.
os.environ.setdefault("LLMC_CACHE", str(Path(__file__).parent.parent / "build" / "tests"))  # kernels: not the user's
os.environ.setdefault("LLMC_THREADS", "1")  # xdist uses the cores: second threads of small models would only spin
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # small products, and xdist uses the cores
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # torch's threads else burn their core after every small product
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # also for tests that import onnxruntime themselves

import pytest
from hypothesis import HealthCheck, settings
from support.paths import PACKAGE, PICO, ROOT

import llmc
from llmc.cli.app import run
from llmc.runtime.errors import LlmcError

if TYPE_CHECKING:
    from support.commands import Outcome
    from support.engines import PicoEngine

settings.register_profile("developer", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", settings.get_profile("developer"), derandomize=True)  # a red run is about the change
settings.load_profile("ci" if os.environ.get("CI") else "developer")

_PACKAGE = tuple(f"{ROOT / folder}/" for folder in PACKAGE)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="rewrite the golden dumps (`make golden`)")


@pytest.hookimpl(trylast=True)
def pytest_collection_finish() -> None:
    """What test files import lives to the end: collections, of which tests ask for some, need not look at it again."""
    gc.collect()
    gc.freeze()


_make, _wrong = LlmcError.__init__, list[str]()


def _checked(self: LlmcError, asked: str, **more: str) -> None:
    maker = sys._getframe(1).f_code.co_filename  # errors that tests make themselves may be short
    if maker.startswith(_PACKAGE) and not asked.startswith(("cannot ", "expected ")):
        _wrong.append(asked)
    _make(self, asked, **more)


LlmcError.__init__ = _checked


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Iterator[None]:
    """An error that the package makes begins with cannot or expected; `tests/repo/test_errors.py` reads its source."""
    _wrong.clear()
    yield
    assert _wrong == []


@pytest.fixture(scope="session")
def pico_engine(tmp_path_factory: pytest.TempPathFactory) -> PicoEngine:
    """The engine of the bundled checkpoint in a weight format ("none", "int4" ...); do not write to it."""
    folder = tmp_path_factory.mktemp("pico")

    def build(quantize: str = "none", **limits: Any) -> Path:
        path = folder / f"{'-'.join([quantize, *(f'{name}{value}' for name, value in limits.items())])}.llmc"
        return path if path.exists() else llmc.build(PICO, path, quantize=quantize, **limits)

    return build


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    from support.commands import Outcome

    def one(*arguments: object) -> Outcome:
        capsys.readouterr()
        code = run([str(argument) for argument in arguments])
        shown = capsys.readouterr()
        return Outcome(code, shown.out, shown.err)

    return one
