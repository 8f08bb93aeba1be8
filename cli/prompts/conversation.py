"""A conversation at the terminal or from a pipe: each line that is not blank is a message; the prompt keeps all."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ..common import console, texts
from . import answers

if TYPE_CHECKING:
    from ...runtime.engine import Engine
    from ...runtime.sampling.params import SamplingOptions


def chat_loop(engine: Engine, given: SamplingOptions, *, system: str | None, json: bool) -> None:
    """Answer one message after the other until the input ends.

    Raises:
        Unsupported: the engine has no chat template; raised before the first line is read.
        RecipeError: the context is full.
    """
    template = engine.chat_template
    messages = [{"role": "system", "content": system}] if system is not None else []
    for line in _lines():
        if not line.strip():
            continue
        messages.append({"role": "user", "content": line})
        result = answers.write(
            engine.stream(template.encode(engine.tokenizer, messages), **given), json, engine.profile
        )
        messages.append({"role": "assistant", "content": result.text})


def _lines() -> Iterator[str]:
    source = texts.stdin()
    if not source.isatty():
        yield from (texts.decoded(line, "stdin").rstrip("\r\n") for line in source)
        return
    import readline  # noqa: F401  (gives input() editing and history)

    # input() must know the prompt, or editing wipes it out; but a stdout that is piped holds answers only
    shown = sys.stdout is not None and sys.stdout.isatty()
    while True:
        if not shown:
            console.note("> ", end="")
        try:
            yield input("> " if shown else "")
        except EOFError:
            console.note("")
            return
