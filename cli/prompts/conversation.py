"""A conversation at the terminal or from a pipe: a line is a message, or a command that begins with a slash."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...runtime.errors import RecipeError, ResourceError
from ..common import console, texts
from . import answers
from .talk import Talk, command

if TYPE_CHECKING:
    from ...runtime.engine import Engine

_GREETING = "llmc: Ctrl-C ends an answer, Ctrl-D the conversation; /help shows the commands"
_HINT = "llmc: Ctrl-C once more, Ctrl-D or /exit ends the conversation"


def chat_loop(
    engine: Engine, given: dict[str, Any], *, system: str | None, json: bool, inputs: Sequence[str | Path]
) -> None:
    """Answer one message after the other until the input ends. `inputs` are files that /save must not replace.

    Ctrl-C ends an answer, of which the conversation keeps what was written. At a terminal an error is shown and the
    conversation goes on; from a pipe, where nobody can try again, it ends.

    Raises:
        KeyboardInterrupt: Ctrl-C while a pipe is read, or twice in a row at a terminal's prompt.
        RecipeError: an option is out of range; raised before the first line is read.
        Unsupported: the engine has no chat template; likewise.
        LlmcError: an error from a pipe, or one that ends all later requests too.
    """
    engine.check_options(**given)
    engine.chat_template  # noqa: B018  (refused before the first line)
    talk = Talk(engine.max_context, inputs=inputs)
    if system is not None:
        talk.messages.append({"role": "system", "content": system})
    terminal = texts.stdin().isatty()
    if terminal:
        console.note(_GREETING)
    for line in _lines(terminal):
        try:
            # what a terminal sends that is no UTF-8 comes as surrogates
            line = texts.decoded(line.encode("utf-8", "surrogateescape"), "the message")
            if line.startswith("/") and not line.startswith("//"):
                command(talk, line)
            elif line.strip():
                _answer(engine, talk, line.removeprefix("/") if line.startswith("//") else line, given, json)
        except (RecipeError, ResourceError) as error:
            if not terminal:
                raise
            console.note(f"llmc: {error}")
        except KeyboardInterrupt:  # before the first token, or after the last
            if not terminal:
                raise
        if talk.over:
            return


def _answer(engine: Engine, talk: Talk, text: str, given: dict[str, Any], json: bool) -> None:
    fitted = engine.fit_chat(talk.asked(text), given.get("max_tokens"))
    with engine.stream(fitted.ids, **given) as stream:
        if fitted.dropped:  # said once the request is taken: one that is refused forgets nothing
            turns = "turn is" if fitted.dropped == 1 else f"{fitted.dropped} turns are"
            console.note(f"llmc: the context of {talk.context} tokens is full: the oldest {turns} forgotten")
        try:
            result = answers.follow(stream, json)
        except KeyboardInterrupt:
            stream.cancel()
            result = stream.result()
    talk.answered([dict(message) for message in fitted.messages], result)
    answers.report(result, json, engine.profile)


def _lines(terminal: bool) -> Iterator[str]:
    if not terminal:
        yield from (texts.decoded(line, "stdin").rstrip("\r\n") for line in texts.stdin())
        return
    import readline  # noqa: F401  (gives input() editing and history)

    # input() must know the prompt, or editing wipes it out; but a stdout that is piped holds answers only
    shown = sys.stdout is not None and sys.stdout.isatty()
    interrupted = False
    while True:
        if not shown:
            console.note("> ", end="")
        try:
            yield input("> " if shown else "")
            interrupted = False
        except EOFError:
            console.note("")
            return
        except KeyboardInterrupt:
            console.note("")
            if interrupted:
                raise
            console.note(_HINT)
            interrupted = True
