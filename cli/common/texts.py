"""Texts that a user names on the command line. A file that cannot be read is a usage error: exit code 2."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import BinaryIO

from ...runtime.errors import RecipeError


def stdin() -> BinaryIO:
    """The bytes of stdin.

    Raises:
        RecipeError: the process has no stdin.
    """
    if sys.stdin is None:
        raise RecipeError("cannot read stdin", found="it is closed")
    return sys.stdin.buffer


def read_text(path: str) -> str:
    """The UTF-8 text of a file, unchanged, or of stdin for `-`.

    Raises:
        RecipeError: it cannot be read, or is not UTF-8.
    """
    name = "stdin" if path == "-" else path
    try:
        data = stdin().read() if path == "-" else Path(path).read_bytes()
    except OSError as error:
        raise RecipeError(f"cannot read {name}", found=str(error.strerror or error)) from error
    return decoded(data, name)


def decoded(data: bytes, name: str) -> str:
    """Bytes as UTF-8 text; `name` is their origin.

    Raises:
        RecipeError: they are not UTF-8.
    """
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RecipeError(f"expected UTF-8 text in {name}", found=f"byte {error.start}: {error.reason}") from error
