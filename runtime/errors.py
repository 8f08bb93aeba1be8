"""The six errors of llmc: every refusal has an exit code and says what was asked, found, and what would work."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar
from unicodedata import category

DISTRIBUTION = "llmc-engine"
"""The name of the package for pip; `llmc` on PyPI is another program. The import and the command are `llmc`."""
_MAX_HINT_NAME, _MAX_HINTS = 96, 400
_SHOWN = 80
"""Characters of a wrong value that an error shows."""
_MARGIN = re.compile(r"\n(?! )")
_T = TypeVar("_T")


class LlmcError(Exception):
    """Base of every error a user can cause.

    A message has three parts: `asked`, one sentence that begins with "cannot <verb>" or "expected <thing>"; what was
    `found`; and `fix`, what would work.
    """

    exit_code = 70

    def __init__(self, asked: str, *, found: str = "", fix: str = "") -> None:
        # Whatever texts of others they hold, no line but the first begins at the margin.
        asked, found, fix = (_MARGIN.sub(r"\\n", part) for part in (asked, found, fix))
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


@dataclass(frozen=True)
class Wrong:
    """Why a value is refused: one line where a file has it, or the parts of an error."""

    asked: str
    found: str
    known: str = ""
    """The values that would do."""

    def __str__(self) -> str:
        return f"{self.asked}, found {self.found}" + (f", known: {self.known}" if self.known else "")


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


def demand(name: str, value: object, what: str, kind: type | UnionType) -> None:
    """Check that the argument `name` of a public function is `what`, a value of `kind`.

    Raises:
        RecipeError: it is not. True is no whole number.
    """
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise RecipeError(f"expected {name} as {what}", found=described(value))


def text_of(name: str, value: Any) -> str:
    """The argument `name`, which must be a text.

    Raises:
        RecipeError: it is not.
    """
    demand(name, value, "a text", str)
    return value


def path_of(name: str, value: Any) -> Path:
    """The argument `name`, which must be a path, as one.

    Raises:
        RecipeError: it is not.
    """
    path = os.fspath(value) if isinstance(value, os.PathLike) else value
    if not isinstance(path, str):
        raise RecipeError(f"expected {name} as a path", found=described(value))
    return Path(path)


def several(name: str, value: Any, read: Callable[[str, Any], _T]) -> tuple[_T, ...]:
    """The argument `name`, which may be one text or path, or a collection of them; `read` checks each.

    Raises:
        RecipeError: it is neither.
    """
    if isinstance(value, str | os.PathLike):
        return (read(name, value),)
    if isinstance(value, bytes | Mapping):
        raise RecipeError(f"expected {name} as a list", found=described(value))
    demand(name, value, "a list", Collection)
    return tuple(read(f"each of {name}", one) for one in value)


def printable(text: str, *, lines: bool = True) -> str:
    """A text that others wrote a part of, as a terminal may show it: what is not printable becomes an escape, `\\x1b`.

    These are control characters, line separators, and what reorders or hides text (bidirectional marks, zero width).
    Spaces of any width stay, and with `lines` line ends do.
    """
    if text.isprintable():
        return text
    return "".join(
        one if is_printable(one) or (lines and one == "\n") else one.encode("unicode_escape").decode() for one in text
    )


def is_printable(character: str) -> bool:
    """True for a character that only shows itself."""
    return character.isprintable() or category(character) == "Zs"


def described(value: object) -> str:
    """A value and its type, for the `found` of an error."""
    return f"{shown(value)} ({type(value).__name__})"


def shown(value: object) -> str:
    """The beginning of a value, for the `found` of an error."""
    try:
        return f"{value!r}"[:_SHOWN]
    except ValueError:  # Python writes no integer of more than 4300 digits
        return "an integer of thousands of digits"
