"""The six errors of llmc: every refusal has an exit code and says what was asked, found, and what would work."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from itertools import islice

DISTRIBUTION = "llmc-engine"
"""The name of the package for pip; `llmc` on PyPI is another program. The import and the command are `llmc`."""
_MAX_HINT_NAME, _MAX_HINTS = 96, 400


class LlmcError(Exception):
    """Base of every error a user can cause.

    A message has three parts: `asked`, one sentence that begins with "cannot <verb>" or "expected <thing>"; what was
    `found`; and `fix`, what would work.
    """

    exit_code = 70

    def __init__(self, asked: str, *, found: str = "", fix: str = "") -> None:
        self.asked, self.found, self.fix = asked, found, fix
        parts = [asked, f"found: {found}" if found else "", f"try: {fix}" if fix else ""]
        super().__init__("\n  ".join(part for part in parts if part))


class RecipeError(LlmcError):
    """A recipe, flag or request is malformed."""

    exit_code = 2


class CheckpointError(LlmcError):
    """A checkpoint is damaged, incomplete or disagrees with itself."""

    exit_code = 3


class EngineError(LlmcError):
    """An engine file is damaged or was not written by llmc."""

    exit_code = 3


class Unsupported(LlmcError):
    """The input is valid, but llmc does not support it."""

    exit_code = 3


class VerifyError(LlmcError):
    """A check failed: a digest, a probe, a gate."""

    exit_code = 1


class ResourceError(LlmcError):
    """The environment is too small: memory, disk, device, network, a missing extra."""

    exit_code = 4


def install_hint(extra: str) -> str:
    """The line that installs an extra. DISTRIBUTION is not published yet, so it names a checkout."""
    return f"pip install '.[{extra}]' in a checkout of llmc"


def nearest(name: str, known: Iterable[str]) -> str:
    """ " (did you mean 'x'?)" for the closest known name, or "" when none is close."""
    close = closest(name, known)
    return "" if close is None else f" (did you mean {close!r}?)"


def closest(name: str, known: Iterable[str]) -> str | None:
    """The closest known name; None when none is close.

    The comparison is quadratic in the length, and both sides may be untrusted input: candidates are at most
    `_MAX_HINTS` names of about the same length.
    """
    alike = (one for one in known if abs(len(one) - len(name)) <= 4 + len(name) // 3 and len(one) <= _MAX_HINT_NAME)
    close = difflib.get_close_matches(name, list(islice(alike, _MAX_HINTS)), n=1) if len(name) <= _MAX_HINT_NAME else ()
    return close[0] if close else None
