"""The six errors of llmc: so that every refusal has one exit code and says asked, found and what would work."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from itertools import islice

_MAX_HINT_NAME, _MAX_HINTS = 96, 400


class LlmcError(Exception):
    """Base of every error a user can cause.

    A message has three parts: what was asked (`asked`), what was `found`, and what would work (`fix`).
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
    """An engine file is damaged or not one of ours."""

    exit_code = 3


class Unsupported(LlmcError):
    """The input is sound, but llmc does not do this."""

    exit_code = 3


class VerifyError(LlmcError):
    """A check says no: a digest, a probe, a gate."""

    exit_code = 1


class ResourceError(LlmcError):
    """The environment is too small: memory, disk, device, network, a missing extra."""

    exit_code = 4


def nearest(name: str, known: Iterable[str]) -> str:
    """ " (did you mean 'x'?)" for the closest known name, or "" when none is close.

    Comparing is quadratic in the length and both sides may be a stranger's: only names of about the same length are
    candidates, and only so many.
    """
    alike = (one for one in known if abs(len(one) - len(name)) <= 4 + len(name) // 3 and len(one) <= _MAX_HINT_NAME)
    close = difflib.get_close_matches(name, list(islice(alike, _MAX_HINTS)), n=1) if len(name) <= _MAX_HINT_NAME else ()
    return f" (did you mean {close[0]!r}?)" if close else ""
