"""Tells the machine's fault from a file's: what a library or the system raises for lack of something is exit code 4."""

from __future__ import annotations

import errno
from dataclasses import dataclass

from ..errors import LlmcError, ResourceError
from .limits import limit_of


@dataclass(frozen=True)
class Lack:
    """What a machine, or a user's limit on a process (`ulimit`), may have too little of."""

    what: str
    """Such as "too little memory"."""
    fix: str
    numbers: tuple[int, ...] = ()
    """Error numbers of the system that say so."""
    words: tuple[str, ...] = ()
    """Of glibc's loader, CPython, ONNX Runtime, PyTorch and Rust, which say it as text alone."""
    limits: tuple[tuple[str, str, int], ...] = ()
    """Of the module `resource`; flag and unit of `ulimit`."""

    @property
    def limited(self) -> str:
        """The limits that are set, as `ulimit -v 1000000`; "" if none is."""
        found = ((flag, unit, limit_of(name)) for name, flag, unit in self.limits)
        return ", ".join(f"ulimit {flag} {most // unit}" for flag, unit, most in found if most is not None)


MEMORY = Lack(
    "too little memory",
    "a higher limit, a smaller model or batch, or a machine with more memory",
    (errno.ENOMEM,),
    (
        *("bad_alloc", "allocate memory", "memory allocation of", "out of memory", "failed to map segment"),
        *("cannot map zero-fill pages", "cannot create shared object descriptor"),
    ),
    (("AS", "-v", 1024), ("DATA", "-d", 1024)),
)
_LACKS = (
    MEMORY,
    Lack(
        "too few processes and threads",
        "a higher limit, or --threads 1",
        (errno.EAGAIN,),
        ("can't start new thread", "pthread_create", "resource temporarily unavailable"),
        (("NPROC", "-u", 1), *MEMORY.limits),
    ),
    Lack(
        "too few open files",
        "a higher limit (ulimit -n 1024)",
        (errno.EMFILE, errno.ENFILE),
        ("too many open files",),
        (("NOFILE", "-n", 1),),
    ),
    Lack(
        "no room for a file",
        "free some space, or a folder on another disk",
        (errno.ENOSPC, errno.EDQUOT),
        ("no space left on device",),
    ),
    Lack("no files of this size", "a higher limit (ulimit -f)", (errno.EFBIG,), (), (("FSIZE", "-f", 1024),)),
    Lack(
        "no folder for temporary files",
        "TMPDIR=FOLDER, one that can be written",
        (),
        ("no usable temporary directory",),
    ),
)


def lack_of(error: BaseException) -> Lack | None:
    """What an exception, or one of its causes, says that this machine has too little of; None if nothing."""
    if isinstance(error, MemoryError):
        return MEMORY
    known = None if isinstance(error, LlmcError) else lack_said(str(error))
    if isinstance(error, OSError) and error.errno is not None:
        known = next((one for one in _LACKS if error.errno in one.numbers), known if error.filename is None else None)
    return lack_of(error.__cause__) if known is None and error.__cause__ is not None else known


def lack_said(text: str) -> Lack | None:
    """What a message of a library says that this machine has too little of; None if nothing."""
    text = text.lower()
    return next((one for one in _LACKS if any(word in text for word in one.words)), None)


def shortage(error: BaseException, asked: str = "cannot go on") -> ResourceError | None:
    """The error to raise in place of an exception that the machine caused, not a file; None if it has another cause."""
    if isinstance(error, ResourceError):
        return error
    lack = lack_of(error)
    if lack is None:
        return None
    said = next(iter(str(error).splitlines()), "") or type(error).__name__
    where = f" ({error.filename})" if isinstance(error, OSError) and error.filename else ""
    said = f"{error.strerror}{where}" if isinstance(error, OSError) and error.strerror else said[:300]
    found = "; ".join(filter(None, (said, lack.limited)))
    return ResourceError(f"cannot {asked.removeprefix('cannot ')}: {lack.what}", found=found, fix=lack.fix)
