"""Unit tests start no process and import no Triton: that is what keeps `make quick` quick, so it is checked."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any, NoReturn

import pytest
from support.engines import PicoEngine

from llmc.compiler.checkpoint.checkpoint import Checkpoint
from llmc.compiler.checkpoint.tokenizer_check import Checked
from llmc.compiler.tokens.resolve import resolve
from llmc.runtime.text.tokenizer import Tokenizer

HERE = Path(__file__).resolve().parent


def _refuse(*_: Any, **__: Any) -> NoReturn:
    raise AssertionError("a unit test started a process: it belongs to tests/e2e or tests/kernels")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """A wrapper of the whole test, fixtures of wider scope included."""
    if HERE not in item.path.parents:  # this hook is called for all tests
        return (yield)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subprocess.Popen, "__init__", _refuse)
        for name in ("fork", "posix_spawn", "execv"):
            patch.setattr(os, name, _refuse)
        return (yield)


@pytest.fixture(autouse=True)
def no_triton() -> Iterator[None]:
    before = "triton" in sys.modules
    yield
    assert before or "triton" not in sys.modules, "a unit test imported Triton: it belongs to tests/kernels"


def _checked_here(checkpoint: Checkpoint) -> Future[Checked]:
    """The special tokens of a checkpoint whose tokenizer is known to be sound."""
    future: Future[Checked] = Future()
    tokenizer = Tokenizer.from_bytes(checkpoint.tokenizer["tokenizer.json"], {})
    future.set_result(Checked(resolve(checkpoint.special, tokenizer)))
    return future


@pytest.fixture
def checked_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Special tokens are resolved without the process in which a tokenizer is tried first."""
    monkeypatch.setattr("llmc.compiler.checkpoint.tokenizer_check.start_check", _checked_here)


@pytest.fixture(scope="session")
def pico_engine(pico_engine: PicoEngine) -> PicoEngine:
    """As the fixture of this name for all tests, without the process in which a build tries a tokenizer first."""

    def build(quantize: str = "none", **limits: Any) -> Path:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("llmc.compiler.build.start_check", _checked_here)
            return pico_engine(quantize, **limits)

    return build
