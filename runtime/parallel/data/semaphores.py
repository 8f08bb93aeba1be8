"""POSIX semaphores in memory that processes share: they order reads and writes on any CPU, and sleep in the kernel."""

from __future__ import annotations

import ctypes
import errno
import time
from collections.abc import Callable
from functools import cache

from .communicator import Check

STRIDE = 128
"""Bytes from one semaphore to the next: more than a sem_t, and no two in the lines that a CPU fetches together."""
_SLICE_NS = 50_000_000
"""A wait sleeps for so long before it looks at the job's error."""
_SPINS = 8000
"""Looks at a semaphore before a wait sleeps, each about 0.3 us. With 400 two ranks of the 1B shape decoded 5 to 10 %
slower: one waits about 0.2 ms for the other in each layer, and a virtual CPU that sleeps wakes late."""
_BILLION = 1_000_000_000


class _Time(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


@cache
def _library() -> tuple[Callable[..., int], Callable[..., int], Callable[..., int], Callable[..., int]]:
    """sem_init, sem_post, sem_trywait, and a wait for one slice that returns 0 or an error number."""
    quick = ctypes.PyDLL(None)  # these return at once: they keep the interpreter's lock
    slow = ctypes.CDLL(None, use_errno=True)
    quick.sem_init.argtypes = (ctypes.c_void_p, ctypes.c_int, ctypes.c_uint)
    for function in (quick.sem_post, quick.sem_trywait):
        function.argtypes = (ctypes.c_void_p,)
    clock = time.CLOCK_MONOTONIC
    try:
        timed, more = slow.sem_clockwait, (clock,)
        timed.argtypes = (ctypes.c_void_p, ctypes.c_int, ctypes.POINTER(_Time))
    except AttributeError:  # musl, and glibc before 2.30
        timed, clock, more = slow.sem_timedwait, time.CLOCK_REALTIME, ()
        timed.argtypes = (ctypes.c_void_p, ctypes.POINTER(_Time))

    def wait_a_slice(at: int) -> int:
        until = time.clock_gettime_ns(clock) + _SLICE_NS
        return (
            0 if timed(at, *more, ctypes.byref(_Time(until // _BILLION, until % _BILLION))) == 0 else ctypes.get_errno()
        )

    return quick.sem_init, quick.sem_post, quick.sem_trywait, wait_a_slice


class Semaphores:
    """An array of semaphores at an address."""

    def __init__(self, address: int, check: Check, *, spin: bool) -> None:
        """`spin`: look for a while before sleeping, which is of use only if every rank has a CPU of its own."""
        self._address, self._check = address, check
        self._spins = range(_SPINS if spin else 1)
        _, self._post, self._try, self._wait = _library()

    def create(self, index: int, value: int) -> None:
        """Make a semaphore; done once, before any process uses it."""
        if _library()[0](self._address + index * STRIDE, 1, value) != 0:
            raise OSError(errno.EINVAL, "sem_init")

    def post(self, index: int) -> None:
        self._post(self._address + index * STRIDE)

    def wait(self, index: int) -> None:
        """Take one; raises the job's error if the job ends first."""
        at = self._address + index * STRIDE
        look = self._try
        for _ in self._spins:
            if look(at) == 0:
                return
        while (error := self._wait(at)) != 0:
            if error not in (errno.ETIMEDOUT, errno.EINTR):
                raise OSError(error, "sem_clockwait")
            self._check()
