"""The lines of a prompts file: what each asks for, checked before any of them runs, and how its answer is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from ...runtime.errors import LlmcError, RecipeError, nearest
from ..common import console, texts
from . import answers

if TYPE_CHECKING:
    from ...runtime.engine import Engine
    from ...runtime.scheduling.request import Result

Messages = tuple[Mapping[str, Any], ...]
_PROMPTS = ("prompt", "tokens", "messages")


@dataclass(frozen=True)
class Chat:
    """--chat and --system: whether a text is a message, and what goes before conversations without a system message."""

    wanted: bool = False
    system: str | None = None

    def messages(self, given: Messages) -> Messages:
        """The messages, after the system message if they have none of their own."""
        if self.system is None or (given and given[0].get("role") == "system"):
            return given
        return ({"role": "system", "content": self.system}, *given)


class Line(Protocol):
    """One request of a file."""

    @property
    def options(self) -> Mapping[str, Any]:
        """The options that differ from the command line's."""
        ...

    @property
    def prompt(self) -> str | None:
        """Its text; None if it is token ids or messages."""
        ...

    def heeds(self, chat: Chat) -> bool:
        """True if --chat or --system changes its prompt."""
        ...

    def templated(self, chat: Chat) -> bool:
        """True if a chat template writes its prompt."""
        ...

    def encode(self, engine: Engine, chat: Chat, special: bool) -> Sequence[int]:
        """The prompt's token ids."""
        ...

    def answer(self, engine: Engine, result: Result) -> dict[str, Any]:
        """What is written of its result."""
        ...

    def failure(self, error: LlmcError) -> dict[str, Any]:
        """What is written of its error."""
        ...


@dataclass(frozen=True)
class PromptLine:
    """A line of llmc's own: a text, token ids or messages; `index` counts lines that are not blank, from 0."""

    index: int
    prompt: str | None = None
    tokens: tuple[int, ...] | None = None
    messages: Messages | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    id: str | int | None = None

    def heeds(self, chat: Chat) -> bool:
        return self.prompt is not None or (self.messages is not None and chat.messages(self.messages) != self.messages)

    def templated(self, chat: Chat) -> bool:
        return self.messages is not None or (self.prompt is not None and chat.wanted)

    def encode(self, engine: Engine, chat: Chat, special: bool) -> Sequence[int]:
        if not self._has_readable_id:
            raise RecipeError('expected "id" between -2^63 and 2^63', found=texts.shown(self.id))
        if self.prompt is not None:
            return answers.prompt_ids(engine, self.prompt, chat.wanted, chat.system, special)
        return self.tokens or () if self.messages is None else engine.encode_chat(chat.messages(self.messages))

    def answer(self, engine: Engine, result: Result) -> dict[str, Any]:
        return {**self._name, **answers.as_json(result)}

    def failure(self, error: LlmcError) -> dict[str, Any]:
        return {**self._name, **console.error_json(error)}

    @property
    def _name(self) -> dict[str, Any]:
        shown = self.id is not None and self._has_readable_id
        return {"index": self.index, "id": self.id} if shown else {"index": self.index}

    @property
    def _has_readable_id(self) -> bool:
        """False for an id that few readers of JSON would read as it was."""
        return not isinstance(self.id, int) or abs(self.id) < 1 << 63


def prompt_line(index: int, value: Any, where: str) -> PromptLine:
    """One line's JSON as a request.

    Raises:
        RecipeError: a key or the type of a prompt is wrong; names `where`.
    """
    from ...runtime.sampling.params import SamplingOptions

    named = [key for key in _PROMPTS if isinstance(value, dict) and key in value]
    if len(named) != 1:
        one_of = 'an object with one of "prompt", "tokens", "messages" or "custom_id"'
        raise RecipeError(f"expected {one_of} at {where}", found=texts.shown(value))
    known = (*_PROMPTS, "id", *SamplingOptions.__annotations__)
    for key in value:
        if key not in known:
            raise RecipeError(f"expected a known key at {where}", found=f"{key!r}{nearest(key, known)}")
    options = {key: one for key, one in value.items() if key in SamplingOptions.__annotations__}
    if isinstance(options.get("logit_bias"), dict):
        options["logit_bias"] = biases(options["logit_bias"], where)
    if type(value.get("special", False)) is not bool:
        raise RecipeError(f'expected "special" as true or false at {where}', found=texts.shown(value["special"]))
    name = value.get("id")
    if not (name is None or type(name) in (str, int)):
        raise RecipeError(f'expected "id" as a text or a whole number at {where}', found=texts.shown(name))
    content = value[named[0]]
    if named == ["tokens"]:
        return PromptLine(index, tokens=texts.token_ids(content, where), options=options, id=name)
    if named == ["messages"]:
        return PromptLine(index, messages=texts.messages(content, where), options=options, id=name)
    if not isinstance(content, str):
        raise RecipeError(f'expected "prompt" as a text at {where}', found=texts.shown(content))
    return PromptLine(index, prompt=content, options=options, id=name)


def biases(value: Mapping[str, Any], where: str) -> dict[int, Any]:
    """The keys of a logit_bias as token ids.

    Raises:
        RecipeError: one is no whole number from 0.
    """
    from ...runtime.files.strict_json import clipped_int

    for key in value:
        if not key.isdecimal():
            raise RecipeError(f'expected token ids in "logit_bias" at {where}', found=texts.shown(key))
    return {clipped_int(key): number for key, number in value.items()}
