"""Errors on their way between ranks, and the words for a rank that died, was stopped or was cut off."""

from __future__ import annotations

import signal
import sys
import traceback
from collections.abc import Mapping
from typing import Any

from .. import errors
from ..errors import LlmcError, ResourceError
from ..guard.shortage import shortage

_CLASSES = {name: one for name, one in vars(errors).items() if isinstance(one, type) and issubclass(one, LlmcError)}


def as_error(problem: BaseException) -> LlmcError:
    """Any exception as an LlmcError; of a bug, the traceback goes to stderr, as it does not travel."""
    if isinstance(problem, LlmcError):
        return problem
    if lacking := shortage(problem):
        return lacking
    if isinstance(problem, KeyboardInterrupt | SystemExit):
        return ResourceError("cannot go on: interrupted", found=type(problem).__name__)
    traceback.print_exception(problem, file=sys.stderr)
    return LlmcError(f"cannot go on: a bug in llmc: {type(problem).__name__}: {problem}".replace("\n", " "))


def told(error: LlmcError) -> dict[str, str]:
    """An error as the header of a message."""
    return {"class": type(error).__name__, "asked": error.asked, "found": error.found, "fix": error.fix}


def heard(header: Mapping[str, Any], where: str) -> LlmcError:
    """The error of a message, of the same class; `where`, the rank it is of, is said."""
    kind = _CLASSES.get(str(header.get("class")), LlmcError)
    asked, found, fix = (str(header.get(part, "")) for part in ("asked", "found", "fix"))
    if not asked.startswith(("cannot ", "expected ")):
        asked = f"cannot go on: {asked}"
    return kind(asked, found=": ".join(filter(None, (where, found))), fix=fix)


def ended(name: str, code: int | None) -> ResourceError:
    """A rank whose connection has ended; `code` is what Popen tells of a child."""
    how = "its connection ended" if code is None else f"exit code {code}"
    if code is not None and code < 0:
        try:
            how = f"killed by signal {-code} ({signal.Signals(-code).name})"
        except ValueError:
            how = f"killed by signal {-code}"
    return ResourceError(f"cannot go on without {name.partition(' (')[0]}", found=f"{name}: {how}")


def silent(name: str, seconds: float) -> ResourceError:
    """A rank that gives no sign of life."""
    return ResourceError(
        f"cannot go on without {name.partition(' (')[0]}",
        found=f"{name}: stopped or cut off, no sign of life for {seconds:.0f} s",
    )
