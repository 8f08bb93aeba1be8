"""The writer in processes of its own: killed at any moment, and measured for memory."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support.paths import ROOT
from support.tiny_engines import build, build_split, names, value_of
from support.warm import warm

PRELUDE = f"""
import resource, sys
from pathlib import Path
sys.path.append({str(ROOT / "tests")!r})
import numpy as np
from support.tiny_engines import MANIFEST, EngineWriter, Stored, build, build_split
path = Path(sys.argv[1])
"""


def run_child(code: str, path: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", PRELUDE + code, str(path)], capture_output=True, text=True, timeout=60)


def test_a_limit_on_file_sizes(tmp_path: Path) -> None:
    path = build(tmp_path / "m.llmc")
    for limit in (100_000, path.stat().st_size - 1):
        done = run_child(f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit})); build(path, 2)", path)
        assert "ResourceError" in done.stderr
        assert "ulimit -f" in done.stderr
        assert names(tmp_path) == ["m.llmc"]
        assert value_of(path) == 1


def test_memory_does_not_grow_with_the_engine(tmp_path: Path) -> None:
    code = """
specs = [[Stored("w", "U8", (400, 1 << 20))]]
piece = np.zeros(4 << 20, np.uint8)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
with EngineWriter(path, specs) as writer:
    for start in range(0, 400 << 20, 4 << 20):
        writer.write("w", start, piece)
    writer.commit(MANIFEST)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""
    done = run_child(code, tmp_path / "m.llmc")
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 64


@pytest.mark.slow
@pytest.mark.parametrize(("make", "files"), [(build, 1), (build_split, 3)])
def test_kill_at_any_moment(tmp_path: Path, make: Callable[[Path, int], Path], files: int) -> None:
    path = make(tmp_path / "m.llmc", 1)
    loop = f"for turn in range(10**9):\n    {make.__name__}(path, turn % 250)"
    delays, leftovers = random.Random(0), 0
    deadline = time.monotonic() + 12
    kills = 0
    with warm(PRELUDE, loop, path) as child:
        while time.monotonic() < deadline and kills < 40:
            child.start()
            time.sleep(delays.uniform(0, 0.05))
            child.kill()
            kills += 1
            value_of(path)
            leftovers += len(names(tmp_path)) - files
            assert len(names(tmp_path)) <= {1: 2, 3: 8}[files]  # each child sweeps what the one before left
    assert leftovers > 0
    make(path, 251)
    assert len(names(tmp_path)) == files
    assert value_of(path) == 251
