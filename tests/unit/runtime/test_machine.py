"""What a container may use, read from file trees laid out as Linux does."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from llmc.runtime import machine
from llmc.runtime.errors import RecipeError

GIB = 2**30


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write(tmp_path, "proc/meminfo", "MemTotal: 16777216 kB\nMemFree: 1 kB\nMemAvailable: 8388608 kB\nHugePages: 0\n")
    return tmp_path


def write(root: Path, name: str, text: str) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def affinity() -> int:
    return len(os.sched_getaffinity(0))


def test_without_limits_the_machine_is_the_limit(root: Path):
    write(root, "proc/self/cgroup", "0::/user.slice\n")
    write(root, "sys/fs/cgroup/user.slice/cpu.max", "max 100000\n")
    write(root, "sys/fs/cgroup/user.slice/memory.max", "max\n")
    write(root, "sys/fs/cgroup/user.slice/memory.current", "5\n")
    assert machine.system_memory(root) == machine.SystemMemory(16 * GIB, 8 * GIB)
    assert machine.cpu_count(root) == affinity()


def test_the_tightest_ancestor_counts_in_cgroup_2(root: Path):
    write(root, "proc/self/cgroup", "0::/a/b\n")
    write(root, "sys/fs/cgroup/a/memory.max", f"{4 * GIB}\n")
    write(root, "sys/fs/cgroup/a/memory.current", f"{3 * GIB}\n")
    write(root, "sys/fs/cgroup/a/memory.stat", f"anon 5\ninactive_file {GIB}\n")
    write(root, "sys/fs/cgroup/a/b/memory.max", f"{12 * GIB}\n")
    write(root, "sys/fs/cgroup/a/b/memory.current", "0\n")
    write(root, "sys/fs/cgroup/a/cpu.max", "50000 100000\n")
    assert machine.system_memory(root) == machine.SystemMemory(4 * GIB, 2 * GIB)
    assert machine.cpu_count(root) == 1


def test_cgroup_1_in_a_container_is_found_at_the_mount(root: Path):
    write(root, "proc/self/cgroup", "5:memory:/docker/abc\n3:cpu,cpuacct:/docker/abc\n")
    write(root, "sys/fs/cgroup/memory/memory.limit_in_bytes", f"{2 * GIB}\n")
    write(root, "sys/fs/cgroup/memory/memory.usage_in_bytes", f"{3 * GIB}\n")
    write(root, "sys/fs/cgroup/cpu/cpu.cfs_quota_us", "10000\n")
    write(root, "sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n")
    assert machine.system_memory(root) == machine.SystemMemory(2 * GIB, 0)
    assert machine.cpu_count(root) == 1


def test_a_quota_is_rounded_up_and_never_raises_the_affinity(root: Path):
    write(root, "proc/self/cgroup", "0::/\n")
    write(root, "sys/fs/cgroup/cpu.max", "1000000000 100000\n")
    assert machine.cpu_count(root) == affinity()
    write(root, "sys/fs/cgroup/cpu.max", "1 100000\n")
    assert machine.cpu_count(root) == 1


def test_this_machine_answers():
    here = machine.system_memory()
    assert 0 < here.available <= here.total
    assert 1 <= machine.cpu_count() <= (os.cpu_count() or 1)
    assert machine.cpu_name()
    assert machine.peak_memory() > 2**20


def test_the_processor_is_named_from_cpuinfo(root: Path):
    write(root, "proc/cpuinfo", "processor\t: 0\nmodel name\t: Some CPU 3000\n")
    assert machine.cpu_name(root) == "Some CPU 3000"


def test_bandwidth_is_a_plausible_number():
    assert 1e8 < machine.read_bandwidth(1, repeat=1) < 1e13


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("500M", 500_000_000),
        ("4GB", 4_000_000_000),
        ("0.5", 1 << 29),
        (0.5, 1 << 29),
        (2, 2 << 30),
        ("512MiB", 512 << 20),
        ("1 gi", 1 << 30),
        ("1.5TiB", 3 << 39),
        ("64k", 64_000),
        ("700B", 700),
    ],
)
def test_sizes_are_read_with_their_unit(text: str | float, count: int):
    assert machine.size_bytes(text) == count


@pytest.mark.parametrize("text", ["", "0", "-1", "nan", "inf", "5X", "1e3", "G", "1 2", "4BG", "1e30", True, "9" * 40])
def test_what_is_no_size_is_refused(text: str):
    with pytest.raises(RecipeError, match=r"expected an amount of memory, such as 500M, 4GB, 0\.5GiB or 0\.5\n  found"):
        machine.size_bytes(text)


def test_the_resident_size_is_at_most_the_peak():
    assert 2**20 < machine.resident_memory() <= machine.peak_memory()
