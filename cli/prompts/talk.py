"""A conversation as `llmc run --chat` holds it: its messages, its counts, and the commands that begin with a slash."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...runtime.errors import RecipeError, ResourceError, nearest
from ...runtime.files.outputs import FileKind, check_output, write_whole
from ..common import console

if TYPE_CHECKING:
    from ...runtime.scheduling.request import Result

SAVED = FileKind("a conversation", "", b'{"id": "llmc chat", "messages": [')
"""A line of --prompts too. Its id tells it from lines of others, such as a data set that begins with messages."""
_NONE = "-"
"""What stands for no system message."""
_STATS = """\
  answers: {answers}, of {completion_tokens} tokens at {decode_tokens_per_s:.1f} tokens/s
  prompts: {prompt_tokens} tokens, {cached_tokens} of them cached
  context: {context_used} of {context} tokens, in {messages} messages"""


@dataclass
class Talk:
    """The state of a conversation."""

    context: int
    """Tokens that the engine can hold of it."""
    messages: list[dict[str, str]] = field(default_factory=list)
    over: bool = False
    """True after /exit."""
    results: list[Result] = field(default_factory=list)
    inputs: Sequence[str | Path] = ()
    """What the command reads, which /save never replaces."""

    @property
    def system(self) -> str | None:
        """The system message."""
        first = self.messages[:1]
        return first[0]["content"] if first and first[0]["role"] == "system" else None

    def asked(self, text: str) -> list[dict[str, str]]:
        """The messages with one more of the user, which stays once it is `answered`."""
        return [*self.messages, {"role": "user", "content": text}]

    def answered(self, messages: list[dict[str, str]], result: Result) -> None:
        """Keep an answer, what an interrupted one has of it, or forget the message if that is nothing."""
        self.results.append(result)
        if result.text or result.finish_reason != "cancelled":
            self.messages = [*messages, {"role": "assistant", "content": result.text}]

    def stats(self) -> dict[str, Any]:
        """What /stats shows."""
        last = self.results[-1:]
        timed = [(one.completion_tokens - 1, one.timings.decode_tokens_per_s) for one in self.results]
        seconds = sum(count / rate for count, rate in timed if rate)
        tokens = sum(count for count, rate in timed if rate)
        counts = ("prompt_tokens", "cached_tokens", "completion_tokens")
        return {
            "answers": len(self.results),
            **{name: sum(getattr(one, name) for one in self.results) for name in counts},
            "decode_tokens_per_s": round(tokens / seconds, 2) if seconds else 0.0,
            "messages": len(self.messages),
            "context_used": sum(one.prompt_tokens + one.completion_tokens for one in last) if self.messages[1:] else 0,
            "context": self.context,
        }


def command(talk: Talk, line: str) -> None:
    """Carry out a line such as `/system be brief`; what it says goes to stderr.

    Raises:
        RecipeError: there is no such command, or its argument is missing or superfluous, or names no file to write.
        ResourceError: the file cannot be written.
    """
    name, _, argument = line.strip().partition(" ")
    known = _COMMANDS.get(name)
    if known is None:
        fix = "/help, or // at the start of a message that begins with a slash"
        raise RecipeError(
            "expected a command of this conversation", found=f"{name!r}{nearest(name, _COMMANDS)}", fix=fix
        )
    takes, _, do = known
    if argument.strip() and not takes:
        raise RecipeError(f"expected {name} alone", found=repr(argument.strip()))
    do(talk, argument.strip())


def _help(_: Talk, __: str) -> None:
    rows = [(f"{name} {takes}".rstrip(), said) for name, (takes, said, _) in _COMMANDS.items()]
    rows += [("//TEXT", "the message /TEXT"), ("Ctrl-C", "end the answer"), ("Ctrl-D", "end the conversation")]
    console.note(console.table(rows))


def _reset(talk: Talk, _: str) -> None:
    kept = talk.messages[: talk.system is not None]
    console.note(f"llmc: {len(talk.messages) - len(kept)} messages forgotten")
    talk.messages = kept


def _system(talk: Talk, text: str) -> None:
    if text:
        said = [] if text == _NONE else [{"role": "system", "content": text}]
        talk.messages = [*said, *talk.messages[talk.system is not None :]]
    console.note(f"llmc: system message: {talk.system or 'none'}")


def _save(talk: Talk, name: str) -> None:
    if not name:
        raise RecipeError("expected a file to write", found="/save", fix="/save talk.json")
    path = Path(os.path.expanduser(name))
    saved = {"id": "llmc chat", "messages": talk.messages}
    try:
        check_output(path, SAVED, talk.inputs)
    except RecipeError as error:  # which offers --force
        raise RecipeError(error.asked, found=error.found, fix="another name") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        found = getattr(error, "strerror", None) or str(error)
        raise ResourceError(f"cannot write {path}", found=found, fix="another name") from error
    write_whole(path, json.dumps(saved, ensure_ascii=False).encode() + b"\n")
    console.note(f"llmc: {len(talk.messages)} messages written to {path}")


def _stats(talk: Talk, _: str) -> None:
    console.note(console.fill(_STATS, talk.stats()))


def _exit(talk: Talk, _: str) -> None:
    talk.over = True


_COMMANDS: dict[str, tuple[str, str, Callable[[Talk, str], None]]] = {
    "/help": ("", "show this", _help),
    "/reset": ("", "forget all messages but the system message", _reset),
    "/system": ("[TEXT]", f"set the system message, remove it ({_NONE}), or show it", _system),
    "/save": ("FILE", "write the messages to a JSON file", _save),
    "/stats": ("", "show tokens, cached tokens, speed and the context used", _stats),
    "/exit": ("", "end the conversation", _exit),
}
"""By name: what it takes, what it does, and how."""
