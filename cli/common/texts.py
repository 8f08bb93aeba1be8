"""Texts that a user names on the command line: a file that cannot be read is the user's to mend, so exit code 2."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import BinaryIO

from ...runtime.errors import RecipeError


def stdin() -> BinaryIO:
    """The bytes of stdin. RecipeError if the process was started without one."""
    if sys.stdin is None:
        raise RecipeError("cannot read stdin", found="it is closed")
    return sys.stdin.buffer


def read_text(path: str) -> str:
    """The UTF-8 text of a file exactly as it is, or of stdin for `-`. RecipeError if it cannot be read."""
    name = "stdin" if path == "-" else path
    try:
        data = stdin().read() if path == "-" else Path(path).read_bytes()
    except OSError as error:
        raise RecipeError(f"cannot read {name}", found=str(error.strerror or error)) from error
    return decoded(data, name)


def decoded(data: bytes, name: str) -> str:
    """UTF-8 as text; RecipeError names the bytes' origin."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RecipeError(f"{name} is not UTF-8 text", found=f"byte {error.start}: {error.reason}") from error
