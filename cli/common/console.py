"""The two streams: results on stdout, everything else on stderr, so that output can be piped and parsed.

Names and messages of strangers (files, checkpoints, engines, templates, libraries) pass here on their way to a
terminal: `printable` is applied to everything but the model's own text, and JSON has escapes of its own.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import string
import sys
import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ...runtime.environment import dumb_terminal
from ...runtime.errors import LlmcError, ResourceError, is_printable, printable
from ...runtime.machine import UNKNOWN
from .exits import PIPE_CLOSED


class _Starting:
    """A word on a terminal's stderr while a command imports what it needs; the first output takes its place."""

    def __init__(self) -> None:
        self._lock, self._timer, self._shown = threading.Lock(), threading.Timer(_PATIENCE_S, self._show), False
        self._timer.daemon = True
        self._timer.start()

    def _show(self) -> None:
        with self._lock, contextlib.suppress(OSError):
            if self._timer is not None:
                print(_STARTING, end="", file=sys.stderr, flush=True)
                self._shown = True

    def over(self) -> None:
        with self._lock, contextlib.suppress(OSError):
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
                if self._shown:
                    print(_ERASE, end="", file=sys.stderr, flush=True)


_PATIENCE_S = 0.15
"""Together with what was imported before, less than the half second after which a user wonders."""
_STARTING = "llmc: starting ..."
_ERASE = "\r\x1b[K"
_starting: _Starting | None = None


def starting(typed: bool = False) -> None:
    """Say soon on a terminal that the command has begun, unless it says something itself before.

    `typed`: it reads stdin. A terminal's user may type at once, and the words would mix with that, and erase it.
    """
    global _starting
    if at_terminal() and not (typed and sys.stdin is not None and sys.stdin.isatty()):
        _starting = _Starting()


def begin() -> None:
    """Called before anything else than `out` and `note` writes to a terminal or reads from it."""
    if _starting is not None:
        _starting.over()


def at_terminal() -> bool:
    """True if stderr is a terminal that can erase what it shows."""
    return sys.stderr is not None and sys.stderr.isatty() and not dumb_terminal()


def out(text: str, end: str = "\n") -> None:
    """Write a result and flush it. Ends the program silently if the reader closed the pipe."""
    _write(printable(text), end)


def out_model(text: str) -> None:
    """Write what a model has generated, as it is: a terminal shows what a file of it would hold."""
    _write(text, "")


def out_json(value: Mapping[str, Any]) -> None:
    """Write one object on one line; with --json this is the last line of stdout.

    What is not printable is escaped as JSON does, so that every value is exact.
    """
    utf8 = sys.stdout is None or (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
    text = json.dumps(value, ensure_ascii=not utf8, allow_nan=False)
    if not text.isprintable():
        text = "".join(one if is_printable(one) else json.dumps(one)[1:-1] for one in text)
    _write(text, "\n")


def _write(text: str, end: str) -> None:
    begin()
    try:
        print(text, end=end, flush=True)
    except BrokenPipeError:
        # the interpreter flushes stdout once more at exit: let that succeed
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(PIPE_CLOSED) from None
    except OSError as error:
        raise ResourceError("cannot write to stdout", found=str(error)) from error


def facts(of: Any, *names: str) -> dict[str, Any]:
    """Attributes of a value by name, for JSON."""
    return {name: getattr(of, name) for name in names}


def show(found: Mapping[str, Any], text: str, json: bool) -> None:
    """Write a command's result: its facts as JSON, or the text for people."""
    if json:
        out_json(found)
    else:
        out(text)


def on_lines(value: Any) -> Any:
    """Facts for people: texts of them, keys too, are printable and end no line."""
    if isinstance(value, str):
        return printable(value, lines=False)
    if isinstance(value, Mapping):
        return {on_lines(key): on_lines(one) for key, one in value.items()}
    return [on_lines(one) for one in value] if isinstance(value, list | tuple) else value


class _Filler(string.Formatter):
    """`{bytes!b}` is written as a size; `!g` and `!t` count in units of 10^9 and 10^12; `thread{threads!s}` has an s
    unless it is 1. A text stays on its line."""

    def format_field(self, value: Any, format_spec: str) -> Any:
        return super().format_field(on_lines(value), format_spec)

    def convert_field(self, value: Any, conversion: str | None) -> Any:
        if conversion == "b":
            return size(value)
        if conversion == "s":
            return _plural(value)
        return value / {"g": 1e9, "t": 1e12}[conversion] if conversion else value


def fill(template: str, facts: Mapping[str, Any], **more: Any) -> str:
    """Fill a template with facts, so that text and JSON show the same ones."""
    return _Filler().vformat(template, (), {**facts, **more})


def error_json(error: LlmcError) -> dict[str, Any]:
    """An error as JSON."""
    return {"error": {"class": type(error).__name__, "message": str(error), "exit_code": error.exit_code}}


def note(text: str, end: str = "\n") -> None:
    """Write a remark to stderr; ignored if stderr is closed."""
    begin()
    with contextlib.suppress(OSError):
        print(printable(text), end=end, file=sys.stderr, flush=True)


def warn(text: str) -> None:
    """Write a warning to stderr, on one line."""
    note(f"warning: {on_lines(text)}")


def prepare_streams() -> None:
    """Write characters that the terminal's encoding lacks as escapes, instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def table(rows: Iterable[Sequence[str]], indent: str = "  ") -> str:
    """Rows as text with aligned columns; columns of numbers are written to the right."""
    cells = [on_lines(row) for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    right = [all(cell[:1].isdigit() or not cell for cell in column[1:]) for column in zip(*cells, strict=True)]
    lines = []
    for row in cells:
        fitted = [c.rjust(w) if r else c.ljust(w) for c, w, r in zip(row, widths, right, strict=True)]
        lines.append((indent + "  ".join(fitted)).rstrip())
    return "\n".join(lines)


def counted(number: int, noun: str) -> str:
    """A number of things, as "1 layer" or "2 layers"."""
    return f"{number} {noun}{_plural(number)}"


def _plural(number: int) -> str:
    return "" if number == 1 else "s"


def size(count: int) -> str:
    """Bytes for people, in binary units; "unknown" for UNKNOWN."""
    if count == UNKNOWN:
        return "unknown"
    power = min((max(count, 1).bit_length() - 1) // 10, 3)
    return f"{count / 1024**power:.2f} {'KMG'[power - 1]}iB" if power else f"{count} B"
