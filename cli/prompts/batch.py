"""Many prompts from a file: they run together, and their results come in the file's order, one JSON line each."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import typer

from ...runtime.errors import LlmcError, RecipeError
from ..common import console, texts
from . import answers

if TYPE_CHECKING:
    from ...runtime.engine import Engine
    from ...runtime.sampling.params import SamplingOptions
    from ...runtime.scheduling.request import Stream

_AHEAD = 256
"""Requests that wait inside the engine: enough for any batch, few enough for memory."""


@dataclass(frozen=True)
class PromptLine:
    """One line: a text or token ids, and the options that differ from the command line's."""

    prompt: str | tuple[int, ...]
    options: dict[str, Any]


def read(path: str) -> list[PromptLine]:
    """All lines of a file, checked before any of them runs.

    Raises:
        RecipeError: a line is wrong; the error names it.
    """
    return [
        _parse(line, f"{path}:{number}")
        for number, line in enumerate(texts.read_text(path).split("\n"), start=1)
        if line.strip()
    ]


def run_all(
    engine: Engine, lines: Sequence[PromptLine], given: SamplingOptions, *, chat: bool, system: str | None
) -> None:
    """Write one object per line; a line that fails has an `error`, and the first failure gives the exit code."""
    waiting: deque[Stream | LlmcError] = deque()
    codes: list[int] = []
    try:
        for line in lines:
            waiting.append(_start(engine, line, given, chat, system))
            if len(waiting) > _AHEAD:
                _finish(waiting.popleft(), codes)
        while waiting:
            _finish(waiting.popleft(), codes)
    finally:
        for stream in waiting:
            if not isinstance(stream, LlmcError):
                stream.close()
    if codes:
        console.note(f"llmc: {len(codes)} of {len(lines)} prompts failed")
        raise typer.Exit(codes[0])


def _start(
    engine: Engine, line: PromptLine, given: SamplingOptions, chat: bool, system: str | None
) -> Stream | LlmcError:
    merged: Any = {**given, **line.options}
    try:
        if isinstance(line.prompt, tuple):
            return engine.stream(line.prompt, **merged)
        return engine.stream(answers.prompt_ids(engine, line.prompt, chat, system, bool(merged["special"])), **merged)
    except LlmcError as error:
        return error


def _finish(request: Stream | LlmcError, codes: list[int]) -> None:
    try:
        if isinstance(request, LlmcError):
            raise request
        console.out_json(answers.as_json(request.result()))
    except LlmcError as error:
        codes.append(error.exit_code)
        console.out_json(console.error_json(error))


def _parse(line: str, where: str) -> PromptLine:
    from ...runtime.errors import nearest
    from ...runtime.files.strict_json import loads
    from ...runtime.sampling.params import SamplingOptions

    value = loads(line, what=where, error=RecipeError)
    if not isinstance(value, dict) or ("prompt" in value) == ("tokens" in value):
        raise RecipeError(f'expected an object with either "prompt" or "tokens" at {where}', found=line[:100])
    known = ("prompt", "tokens", *SamplingOptions.__annotations__)
    for key in value:
        if key not in known:
            raise RecipeError(f"expected a known key at {where}", found=f"{key!r}{nearest(key, known)}")
    prompt = value.pop("prompt", None)
    tokens = value.pop("tokens", None)
    if prompt is not None and not isinstance(prompt, str):
        raise RecipeError(f'expected "prompt" as a text at {where}', found=f"{prompt!r}"[:100])
    if prompt is None and not (isinstance(tokens, list) and all(type(token) is int for token in tokens)):
        raise RecipeError(f'expected "tokens" as a list of whole numbers at {where}', found=f"{tokens!r}"[:100])
    if isinstance(value.get("logit_bias"), dict):
        value["logit_bias"] = {_token(key, where): number for key, number in value["logit_bias"].items()}
    return PromptLine(prompt if prompt is not None else tuple(tokens), value)


def _token(key: str, where: str) -> int:
    if not key.isdecimal():
        raise RecipeError(f'expected token ids in "logit_bias" at {where}', found=repr(key[:100]))
    return int(key)
