"""Many prompts from a file: they run together, and their results come in the file's order, one JSON line each."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import typer

from ...runtime.errors import LlmcError, RecipeError
from ..common import console, progress, texts
from .idle import cut_short, refuse_idle_special
from .lines import Chat, Line, prompt_line
from .openai import BatchLine, batch_line, one_model

if TYPE_CHECKING:
    from ...runtime.engine import Engine
    from ...runtime.sampling.params import SamplingOptions
    from ...runtime.scheduling.request import Stream

_AHEAD = 256
"""Requests that wait inside the engine: enough for any batch, few enough for memory."""


def read(path: str, *, engine: str, chat: Chat) -> list[Line]:
    """All lines of a file, checked before any of them runs; those with a custom_id are OpenAI's.

    Raises:
        RecipeError: a line is wrong, and the error names it; or no line is for --chat.
    """
    found: list[Line] = []
    batch: list[tuple[str, BatchLine]] = []
    for index, (where, value) in enumerate(texts.json_lines(path)):
        if isinstance(value, dict) and "custom_id" in value:
            batch.append((where, batch_line(index, value, where)))
            found.append(batch[-1][1])
        else:
            line = prompt_line(index, value, where)
            refuse_idle_special(line, chat, where)
            found.append(line)
    model = one_model(batch) or engine
    found = [replace(line, model=model) if isinstance(line, BatchLine) else line for line in found]
    if chat.wanted and not any(line.heeds(chat) for line in found):
        fix = 'no --chat: lines with "messages" are conversations anyway'
        raise RecipeError(f'expected a "prompt" in {path} with --chat', found=f"{len(found)} other lines", fix=fix)
    return found


def run_all(engine: Engine, lines: Sequence[Line], given: SamplingOptions, chat: Chat, *, quiet: bool) -> None:
    """Write one object per line; a line that fails has an error, and the first failure gives the exit code."""
    waiting: deque[tuple[Line, Stream | LlmcError]] = deque()
    tally = _Tally()
    shown = progress.for_terminal(quiet or _at_a_terminal())
    try:
        with shown.stage("prompts", len(lines), unit="prompts") as advance:
            for line in lines:
                waiting.append((line, _start(engine, line, given, chat)))
                if len(waiting) > _AHEAD:
                    _finish(engine, *waiting.popleft(), given, tally)
                    advance(1)
            while waiting:
                _finish(engine, *waiting.popleft(), given, tally)
                advance(1)
    finally:
        for _, stream in waiting:
            if not isinstance(stream, LlmcError):
                stream.close()
    if tally.cut:
        of = f"{tally.cut} of {len(lines)} answers end"
        console.note(f"llmc: {of} before max_tokens, where the context of {engine.max_context} tokens is full")
    if tally.failures:
        first = tally.failures[0]
        console.note(f"llmc: {len(tally.failures)} of {len(lines)} prompts failed, the first: {first.asked}")
        raise typer.Exit(first.exit_code)


@dataclass
class _Tally:
    """What is said at the end."""

    failures: list[LlmcError] = field(default_factory=list)
    """Of the prompts that failed, in the file's order."""
    cut: int = 0
    """Answers that the context ended."""


def _at_a_terminal() -> bool:
    """True if results come to a terminal, where they show by themselves how far it is."""
    return sys.stdout is not None and sys.stdout.isatty()


def _start(engine: Engine, line: Line, given: SamplingOptions, chat: Chat) -> Stream | LlmcError:
    merged: Any = {**given, **line.options}
    special = bool(merged.pop("special"))
    try:
        return engine.stream(line.encode(engine, chat, special), **merged)
    except LlmcError as error:
        return error


def _finish(engine: Engine, line: Line, request: Stream | LlmcError, given: SamplingOptions, tally: _Tally) -> None:
    try:
        if isinstance(request, LlmcError):
            raise request
        result = request.result()
        answer = line.answer(engine, result)
        merged: Any = {**given, **line.options}
        tally.cut += cut_short(result, merged)
    except LlmcError as error:
        tally.failures.append(error)
        answer = line.failure(error)
    console.out_json(answer)
