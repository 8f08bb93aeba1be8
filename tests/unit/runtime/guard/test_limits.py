"""A limit of llmc's is the lower of what is wanted and what the user allows."""

from __future__ import annotations

import resource

import pytest

from llmc.runtime.errors import ResourceError
from llmc.runtime.guard import limits

INFINITE = resource.RLIM_INFINITY


@pytest.mark.parametrize(
    ("users", "set_to", "lower"),
    (
        ((INFINITE, INFINITE), (60, 61), False),
        ((100, 100), (60, 61), False),
        ((100, INFINITE), (60, 61), False),
        ((30, 30), (30, 30), True),
        ((30, INFINITE), (30, 61), True),
        ((60, 60), (60, 60), False),
    ),
)
def test_the_lower_limit_counts(
    users: tuple[int, int], set_to: tuple[int, int], lower: bool, monkeypatch: pytest.MonkeyPatch
):
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: users)
    monkeypatch.setattr(resource, "setrlimit", lambda _, both: asked.append(both))
    assert limits.lower_limit("CPU", 60, 61) is lower
    assert asked == [set_to]


@pytest.mark.parametrize(
    ("users", "found", "set_to"),
    (
        ((INFINITE, INFINITE), None, []),
        ((9, 9), 9, [(8, 9)]),
        ((5, 9), 5, []),
        ((1, 1), 1, []),
    ),
)
def test_the_processor_time_ends_a_second_early(
    users: tuple[int, int], found: int | None, set_to: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
):
    """Linux kills at the hard limit without SIGXCPU, and `ulimit -t` sets both limits."""
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: users)
    monkeypatch.setattr(resource, "setrlimit", lambda _, both: asked.append(both))
    assert limits.leave_time_to_end() == found
    assert asked == set_to


def test_a_limit_that_leaves_no_room_is_refused_before_libraries_end_the_process(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(limits, "limit_of", lambda _: 1 << 30)
    limits.demand_address_space(limits.RUN_BYTES, "load x")
    with pytest.raises(ResourceError, match=r"cannot load x: too little memory\n  found: ulimit -v 1048576\n  try: "):
        limits.demand_address_space(limits.BUILD_BYTES, "load x")
