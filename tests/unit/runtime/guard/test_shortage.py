"""What the machine lacks is exit code 4 and named, whichever library says it; a file's fault stays a file's."""

from __future__ import annotations

import errno
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.fakes.executor import INFO, FakeExecutor
from support.tiny_engines import build

from llmc.cli import app
from llmc.compiler.checkpoint.folder import Folder
from llmc.passes.rewrite.manager import Phase, run_phase
from llmc.runtime.engine import Engine
from llmc.runtime.engine_file.file import EngineFile
from llmc.runtime.errors import EngineError, ResourceError
from llmc.runtime.guard import shortage as guard
from llmc.runtime.guard.public import public
from llmc.runtime.guard.shortage import lack_of, shortage
from llmc.runtime.text.tokenizer import library_errors

SAID = {
    "numpy 2.4": (lambda: np.empty(1 << 60, np.uint8), "too little memory"),
    "glibc's loader 2.36": (
        ImportError("libtorch_cpu.so: failed to map segment from shared object"),
        "too little memory",
    ),
    "ONNX Runtime 1.31": (
        RuntimeError("[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Exception during initialization: std::bad_alloc"),
        "too little memory",
    ),
    "its arena": (RuntimeError("bfc_arena.cc Failed to allocate memory for requested buffer of size 9"), "memory"),
    "its threads": (RuntimeError("env.cc:327 pthread_create failed, error code: 11"), "too few processes and threads"),
    "PyTorch 2.13": (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "too little memory"),
    "CPython 3.11": (RuntimeError("can't start new thread"), "too few processes and threads"),
    "mmap": (OSError(errno.ENOMEM, "Cannot allocate memory"), "too little memory"),
    "fork": (BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable"), "too few processes and threads"),
    "open": (OSError(errno.EMFILE, "Too many open files", "/some/file"), "too few open files"),
    "a full disk": (OSError(errno.ENOSPC, "No space left on device", "/some/file"), "no room for a file"),
    "a quota": (OSError(errno.EDQUOT, "Disk quota exceeded"), "no room for a file"),
    "ulimit -f": (OSError(errno.EFBIG, "File too large"), "no files of this size"),
    "tempfile": (FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/a']"), "TMPDIR"),
}


@pytest.mark.parametrize("case", SAID.values(), ids=SAID)
def test_a_lack_is_named(case: tuple[Any, str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    raised, named = case
    if callable(raised):
        with pytest.raises(MemoryError) as caught:
            raised()
        raised = caught.value
    error = shortage(raised)
    assert error is not None and named in str(error) and str(error).startswith("cannot go on: ")

    def fails(**_: object) -> int:
        raise raised

    monkeypatch.setattr(app, "application", lambda _: fails)
    assert app.run(["inspect", "x"]) == 4
    assert named in capsys.readouterr().err


def test_other_faults_are_no_lack():
    for error in (ValueError("9 tensors"), FileNotFoundError(errno.ENOENT, "No such file", "too many open files")):
        assert lack_of(error) is None


def test_a_users_limit_is_shown(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(guard, "limit_of", lambda name: 1_024_000_000 if name == "AS" else None)
    assert "MemoryError; ulimit -v 1000000\n" in str(shortage(MemoryError()))


def test_the_python_api_raises_it():
    @public()
    def call() -> None:
        raise MemoryError

    with pytest.raises(ResourceError, match=r"cannot finish call\(\): too little memory"):
        call()


def test_a_library_that_lacks_memory_is_not_the_files_fault():
    with (
        pytest.raises(ResourceError, match="cannot read the tokenizer: too little memory"),
        library_errors("read the tokenizer"),
    ):
        raise MemoryError


def test_a_pass_without_memory_is_no_crash():
    class Hungry:
        name = reason = "hungry"

        def run(self, _: object) -> None:
            raise MemoryError

    phase: Any = Phase("model", (Hungry(),), frozenset())  # type: ignore[arg-type]
    with pytest.raises(ResourceError, match="too little memory"):
        run_phase(phase, None, None)  # type: ignore[arg-type]


def test_too_many_open_files_blame_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Seen with `ulimit -n 5`: exit 3, "cannot read folder"."""
    path = tmp_path / "a.llmc"
    build(path)

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr("os.open", refuse)
    monkeypatch.setattr("os.listdir", refuse)
    with pytest.raises(ResourceError, match="open files"):
        EngineFile.open(path)
    with pytest.raises(ResourceError, match="open files"):
        Folder(tmp_path).names()


def test_a_thread_that_cannot_start_leaves_no_request_waiting(monkeypatch: pytest.MonkeyPatch):
    """The first request stayed in the inbox of a thread that never ran, and the second waited for ever."""

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with Engine(FakeExecutor(), None, INFO) as engine:
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", refuse)
            with pytest.raises(ResourceError, match="too few processes and threads"):
                engine.generate([1, 2], max_tokens=1)
        assert len(engine.generate([1, 2], max_tokens=1).token_ids) == 1


def test_engine_error_is_not_changed():
    assert shortage(EngineError("expected a header")) is None
