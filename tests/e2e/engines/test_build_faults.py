"""Builds that meet a full disk, a kill, a changing checkpoint or little memory: the old engine stays and is alone."""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from support.engines import PICO, PicoEngine, build_engine, small_checkpoint
from support.warm import warm

import llmc
from llmc.cli.app import run as run_command
from llmc.compiler.engine import weights
from llmc.recipes.recipe import with_flags
from llmc.runtime.engine_file.file import EngineFile, verify_engine
from llmc.runtime.errors import CheckpointError, ResourceError
from llmc.runtime.machine import SystemMemory
from llmc.runtime.probe import Probe

GIB = 1 << 30


@pytest.fixture
def engine(pico_engine: PicoEngine, tmp_path: Path) -> Path:
    """An engine that a build is about to replace."""
    return Path(shutil.copy(pico_engine("int4"), tmp_path / "e.llmc"))


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def touch(file: Path) -> None:
    os.utime(file, ns=(0, 0))


def append(file: Path) -> None:
    with file.open("ab") as opened:
        opened.write(b"x")


def rewrite_with_the_old_mtime(file: Path) -> None:
    before, data = file.stat(), file.read_bytes()
    file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def replace_by_itself(file: Path) -> None:
    other = file.with_suffix(".part")
    shutil.copy2(file, other)
    other.replace(file)


def remove(file: Path) -> None:
    file.unlink()


@pytest.mark.parametrize("change", [touch, append, rewrite_with_the_old_mtime, replace_by_itself, remove])
@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_file_that_changes_while_building_stops_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Path], None], name: str
):
    source, real = small_checkpoint(tmp_path / "c", tokenizer=False), weights.write

    def write(*arguments: Any, **options: Any) -> tuple[str, ...]:
        notes = real(*arguments, **options)
        change(source / name)
        return notes

    monkeypatch.setattr(weights, "write", write)
    with pytest.raises(CheckpointError, match=f"^expected .*{name} to stay unchanged while the engine is built"):
        llmc.build(source, tmp_path / "e.llmc")
    assert names(tmp_path) == ["c"]


def test_a_changed_file_is_exit_3_and_the_old_engine_stays(
    engine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    source, before = small_checkpoint(tmp_path / "c"), engine.read_bytes()
    monkeypatch.setattr(weights, "write", lambda *_, **__: touch(source / "model.safetensors") or ())
    monkeypatch.setattr("llmc.compiler.oracle.probe.measure_probe", lambda *_, **__: Probe((), ()))
    assert run_command(["build", str(source), "-o", str(engine)]) == 3
    assert "it was changed, replaced or removed" in capsys.readouterr().err
    assert (engine.read_bytes(), names(tmp_path)) == (before, ["c", "e.llmc"])


@contextmanager
def limited(nbytes: int) -> Iterator[None]:
    """No file of this process may grow beyond a size; Python has the signal ignored that says so."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_no_space_at_any_stage_is_exit_4_and_the_old_engine_stays(
    engine: Path, pico_engine: PicoEngine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """The limit is met when space is reserved, by the first section, by the last one."""
    with EngineFile.open(pico_engine("int8")) as whole:
        end = max(info.offset + info.nbytes for info in whole.tensors.values())
        limits = (1 << 20, end + 100, whole.file_bytes - 1, whole.file_bytes)
    before = engine.read_bytes()
    codes = []
    for limit in limits[:3]:
        with limited(limit):
            codes.append(run_command(["build", str(PICO), "-o", str(engine), "--quantize", "int8"]))
    said = capsys.readouterr().err
    assert codes == [4, 4, 4], said
    assert said.count("a higher limit on file sizes (ulimit -f)") == 3
    assert said.count("bytes free in") == 3
    assert (engine.read_bytes(), names(tmp_path)) == (before, ["e.llmc"])


COMPILER = """
import llmc.compiler.build  # all that a build imports, before the children are forked
from llmc.cli.app import run
"""
BUILD = 'return run(["build", *sys.argv[1:2], "-o", sys.argv[2], "--quantize", "none"])'


@pytest.mark.slow
def test_kill_9_at_any_moment_leaves_the_old_or_the_new_engine(engine: Path, pico_engine: PicoEngine, tmp_path: Path):
    """Kills fall between the temporary file's birth and the end of the build."""
    old, new = engine.read_bytes(), pico_engine("none").read_bytes()
    moments, killed, deadline = random.Random(0), 0, time.monotonic() + 18
    with warm(COMPILER, BUILD, PICO, engine) as child:

        def born() -> float:
            """Start a build; when it has its temporary file."""
            before = set(names(tmp_path))
            child.start()
            while not child.ended() and set(names(tmp_path)) <= before:
                time.sleep(0.005)
            return time.monotonic()

        began = born()
        while not child.ended():
            time.sleep(0.005)
        whole = time.monotonic() - began
        assert child.kill() == 0 and engine.read_bytes() == new, "nobody has killed the first one"
        while time.monotonic() < deadline and killed < 6:
            engine.write_bytes(old)
            born()
            time.sleep(moments.uniform(0, whole))
            killed += child.kill() == -signal.SIGKILL
            verify_engine(engine).close()
            assert engine.read_bytes() in (old, new)
    assert killed > 0
    engine.write_bytes(old)
    build_engine(PICO, engine, with_flags(None, quantize="none"))
    assert engine.read_bytes() == new
    assert names(tmp_path) == ["e.llmc"], "leftovers are swept"


@pytest.mark.parametrize(("available", "fits"), [(0.1, False), (0.25, True)])
def test_without_a_limit_the_free_memory_is_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, available: float, fits: bool
):
    monkeypatch.setattr(
        "llmc.compiler.engine.weights.system_memory", lambda: SystemMemory(64 * GIB, int(available * GIB))
    )
    source = small_checkpoint(tmp_path / "c", tokenizer=False)
    if fits:
        llmc.build(source, tmp_path / "e.llmc")
        return
    with pytest.raises(
        ResourceError, match=r"cannot build within \d+ MiB\n  found: \d+ MiB in use before the first weight"
    ):
        llmc.build(source, tmp_path / "e.llmc")
    assert names(tmp_path) == ["c"]


TWO_BUILDS = """
import sys
from llmc.cli.app import run
for checkpoint in sys.argv[2:]:
    run(["build", checkpoint, "-o", sys.argv[1], "--quantize", "int4", "--memory-limit", "560MiB", "--json"])
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_largest_tensor(tmp_path: Path):
    """An embedding of 246 MB, 492 MB as float32, after a small model that has taken what llmc itself needs."""
    sizes = {"vocab_size": 120_000, "hidden_size": 1024, "intermediate_size": 512}
    small = small_checkpoint(tmp_path / "small", tokenizer=False)
    large = small_checkpoint(tmp_path / "large", tokenizer=False, **sizes)
    command = [sys.executable, "-c", TWO_BUILDS, str(tmp_path / "e.llmc"), str(small), str(large)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    first, second = (json.loads(line) for line in done.stdout.splitlines())
    assert second["bytes"] > 120_000_000
    assert second["peak_rss_bytes"] < 0.65 * GIB
    assert second["peak_rss_bytes"] - first["peak_rss_bytes"] < 128 << 20
