"""What a container may use, read from file trees laid out as Linux does."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from llmc.runtime import machine

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
