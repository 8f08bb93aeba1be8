"""Limits of a process: a user's own (`ulimit`, as on login nodes and CI), and lower ones of llmc for its workers."""

from __future__ import annotations

import sys

from ..errors import ResourceError

RUN_BYTES = 384 << 20
"""Least address space (`ulimit -v`) for an engine: with less, libraries end the process instead of raising."""
BUILD_BYTES = 3 << 29
"""The same for what imports torch and onnx: 1.3 GB on two cores, and 64 MiB for each more that allocates."""


def limit_of(name: str) -> int | None:
    """The user's limit on this process, such as "AS"; None if there is none, or the system has no such limits."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    both = [one for one in resource.getrlimit(getattr(resource, f"RLIMIT_{name}")) if one != resource.RLIM_INFINITY]
    return min(both, default=None)


def demand_address_space(least: int, action: str) -> None:
    """Check that the user's limit of address space leaves room for libraries that cannot fail in order.

    Raises:
        ResourceError: it does not.
    """
    most = limit_of("AS")
    if most is not None and most < least:
        fix = f"ulimit -v {least >> 10}, or unlimited"
        raise ResourceError(f"cannot {action}: too little memory", found=f"ulimit -v {most >> 10}", fix=fix)


def lower_limit(name: str, soft: int, hard: int) -> bool:
    """Lower a limit of this process, such as "AS", and raise none; True if the user's own soft limit is the lower one.

    A process may not raise a hard limit, nor keep a soft limit above it.
    """
    try:
        import resource
    except ImportError:  # Windows
        return False
    kind = getattr(resource, f"RLIMIT_{name}")
    users = [sys.maxsize if most == resource.RLIM_INFINITY else most for most in resource.getrlimit(kind)]
    resource.setrlimit(kind, (min(soft, *users), min(hard, users[1])))
    return users[0] < soft


def leave_time_to_end() -> int | None:
    """The user's limit of processor time in seconds (`ulimit -t`), which kills; SIGXCPU then comes a second before.

    A limit of one second leaves no room.
    """
    most = limit_of("CPU")
    if most is None:
        return None
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_CPU)
    if hard != resource.RLIM_INFINITY and soft == hard > 1:
        resource.setrlimit(resource.RLIMIT_CPU, (hard - 1, hard))
    return most
