"""What a child made by fork cannot use of its parent: threads do not come along, and waiting for them never ends."""

from __future__ import annotations

import ctypes
import os
import weakref
from typing import Protocol

from ..errors import LlmcError, RecipeError


class Held(Protocol):
    """Something that computes with threads of its own."""

    def leave(self) -> object:
        """Called in a child made by fork: refuse all work from now on. Returns what must never be freed there."""
        ...


_HELD: weakref.WeakSet[Held] = weakref.WeakSet()


def hold(one: Held) -> None:
    """Have a child made by fork leave it to its parent."""
    _HELD.add(one)


def refuse_after_fork(process: int) -> None:
    """Check that this is still the process of that number.

    Raises:
        RecipeError: it is a child, in which nothing goes on.
    """
    if os.getpid() != process:
        raise forked()


def forked() -> LlmcError:
    """The error of a request in a child."""
    return RecipeError(
        "cannot use an engine loaded before the fork",
        found=f"process {os.getpid()}, which has none of the threads of the one that loaded it",
        fix="load the engine after the fork, or start processes with spawn",
    )


def _leave_all() -> None:
    for one in list(_HELD):
        # never freed: ONNX Runtime's destructors would join threads that are not there, also at the end of the process
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(one.leave()))


if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(after_in_child=_leave_all)
