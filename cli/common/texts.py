"""Texts that a user names on the command line. A file that cannot be read is a usage error: exit code 2."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from ...runtime.errors import RecipeError
from ...runtime.files.mistaken import near_path
from ...runtime.guard.shortage import shortage
from . import console

_SHOWN = 100
"""Characters of a wrong value that an error shows."""


def stdin() -> BinaryIO:
    """The bytes of stdin.

    Raises:
        RecipeError: the process has no stdin.
    """
    if sys.stdin is None:
        raise RecipeError("cannot read stdin", found="it is closed")
    console.begin()  # what is typed stands on a line of its own
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
        near = near_path(Path(path)) if isinstance(error, FileNotFoundError) else ""
        asked = f"cannot read {name}"
        raise shortage(error, asked) or RecipeError(asked, found=f"{error.strerror or error}{near}") from error
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


def json_lines(path: str) -> Iterator[tuple[str, Any]]:
    """The JSON value of each line that is not blank, with its place FILE:LINE for errors.

    A number that is too large becomes one that every range refuses.

    Raises:
        RecipeError: the file cannot be read, or a line is not JSON.
    """
    from ...runtime.files.strict_json import clipped, loads

    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if line.strip():
            where = f"{'stdin' if path == '-' else path}:{number}"
            yield where, loads(line, what=where, error=RecipeError, large=clipped)


def shown(value: Any) -> str:
    """The beginning of a JSON value, for errors."""
    return json.dumps(value, ensure_ascii=False)[:_SHOWN]


def token_ids(value: Any, where: str) -> tuple[int, ...]:
    """A JSON value as token ids.

    Raises:
        RecipeError: it is no list of whole numbers from 0; names `where`.
    """
    if not isinstance(value, list) or not all(type(one) is int for one in value):
        raise RecipeError(f"expected token ids as a list of whole numbers at {where}", found=shown(value))
    if value and min(value) < 0:
        raise RecipeError(f"expected token ids from 0 at {where}", found=shown(min(value)))
    return tuple(value)


def messages(value: Any, where: str) -> tuple[Mapping[str, Any], ...]:
    """A JSON value as the messages of a conversation; their content is the template's to judge.

    Raises:
        RecipeError: it is no list of objects with a role.
    """
    if not isinstance(value, list) or not value:
        raise RecipeError(f'expected "messages" as a list that is not empty at {where}', found=shown(value))
    for one in value:
        if not isinstance(one, dict) or not isinstance(one.get("role"), str):
            raise RecipeError(f'expected messages as {{"role", "content"}} at {where}', found=shown(one))
    return tuple(value)
