"""Chat templates without transformers: rendered within a budget; special tokens spelled by a user stay plain text."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, EngineError, LlmcError, RecipeError, Unsupported
from ..guard.shortage import shortage
from .tokenizer import Tokenizer

MAX_TEMPLATE_CHARS = 64 * 1024
_DEFAULT = "default"
FUEL = 300_000
"""Units of a rendering: a node of the template that is evaluated costs one, a text one per 16 characters."""
FUEL_PER_CHAR = 10
PLACEHOLDERS = range(0xF0000, 0x10FFFE)
"""Private-use code points that hide special tokens in a user's text."""
WORD = re.compile(r"[A-Za-z0-9_.-]{1,64}")
"""Values of WORD_KEYS that stay unchanged: templates compare them or join them into special tokens ('<|' + role)."""
WORD_KEYS = ("role", "type")
_TRIAL = ({"role": "user", "content": "hello"},)


def no_template() -> Unsupported:
    """The refusal to chat with a model that has no chat template."""
    fix = "a template of your own: llmc build or llmc run with --chat-template FILE"
    return Unsupported("cannot chat with this engine", found="no chat template in the checkpoint", fix=fix)


def named_templates(config: Mapping[str, Any]) -> dict[str, str]:
    """`chat_template` of tokenizer_config.json by name: a string is "default", a list or an object has names.

    Raises:
        CheckpointError: it has another type.
    """
    value = config.get("chat_template")
    if value is None or isinstance(value, str):
        return {} if value is None else {_DEFAULT: value}
    if isinstance(value, dict):
        value = [{"name": name, "template": template} for name, template in value.items()]
    if not isinstance(value, list):
        found = type(value).__name__
        raise CheckpointError("expected chat_template of tokenizer_config.json as a string", found=found)
    texts = all(isinstance(entry, dict) and isinstance(entry.get("template"), str) for entry in value)
    if not texts or not all(isinstance(entry.get("name", ""), str) for entry in value):
        found = f"a list with an entry {'whose name is no text' if texts else 'that has no template text'}"
        raise CheckpointError("cannot read chat_template of tokenizer_config.json", found=found)
    return {entry.get("name", ""): entry["template"] for entry in value}


def chat_template_source(config: Mapping[str, Any], jinja_text: str | None) -> str | None:
    """The chat template of a checkpoint: chat_template.jinja, else of `named_templates` "default", else the only one;
    None if there is none.

    Raises the errors of `named_templates`.
    """
    if jinja_text is not None:
        return jinja_text
    named = named_templates(config)
    return named.get(_DEFAULT, next(iter(named.values())) if len(named) == 1 else None)


class ChatTemplate:
    """A compiled chat template; rendering never changes the caller's messages. Safe to use from many threads.

    `tokens` are the texts of named tokens, such as bos_token, which the template may read; as in transformers one that
    the checkpoint does not name is undefined.

    Raises:
        EngineError: the template is too long, or nests too deep.
        Unsupported: the template does not compile; names the line.
    """

    def __init__(self, source: str, **tokens: str) -> None:
        if len(source) > MAX_TEMPLATE_CHARS:
            raise EngineError(
                f"expected a chat template of at most {MAX_TEMPLATE_CHARS} characters", found=f"{len(source)}"
            )
        from .template import Template  # imports jinja2, which a prompt without a template does not need

        self._source = source
        self._tokens = tokens
        self._template = Template(source)

    def render(self, messages: Sequence[Mapping[str, Any]], **variables: Any) -> str:
        """The prompt text; `variables` are the template's, such as `tools` and `add_generation_prompt` (True).

        Raises:
            RecipeError: the messages are malformed, or the template refuses them (with its own message).
            EngineError: the template exhausts its fuel; names the line.
            Unsupported: the template uses an unknown filter, function, method or test; names the line.
        """
        return self._render(self._given(messages, variables))

    def encode(self, tokenizer: Tokenizer, messages: Sequence[Mapping[str, Any]], **variables: Any) -> list[int]:
        """The prompt's ids; special tokens come only from the template, never from messages, tools or variables.

        Raises the errors of `render`.
        """
        given = self._given(messages, variables)
        mask = _Mask(tokenizer, taken=self._source + json.dumps(given, ensure_ascii=False))
        return tokenizer.encode_marked(*mask.reveal(self._render(mask.hide(given))))

    def _given(self, messages: Any, variables: Mapping[str, Any]) -> dict[str, Any]:
        given = _checked(messages, variables)
        for message in given["messages"] if self._wants_parts else ():
            if isinstance(text := message.get("content"), str):
                message["content"] = [{"type": "text", "text": text}]
        return given

    @cached_property
    def _wants_parts(self) -> bool:
        """Whether it drops a plain text and writes one that is a part of a message, as some models of images do.

        A template that writes the part as a whole, as one that cuts texts does, does not read parts.
        """
        text, other = _TRIAL[0]["content"], "another key"
        whole = [{**_TRIAL[0], "content": [{"type": "text", "text": text, "note": other}]}]
        written = "" if text in self._trial(_TRIAL) else self._trial(whole)
        return text in written and other not in written

    def _trial(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """What it writes of a trial; nothing where it refuses it."""
        try:
            return self._render(_checked(messages, {}))
        except LlmcError:  # the render that was asked for says why
            return ""

    def _render(self, given: dict[str, Any]) -> str:
        fuel = FUEL + FUEL_PER_CHAR * len(json.dumps(given))
        return self._template.render({**self._tokens, **given}, fuel)


def checked_source(given: str | Path, **tokens: str) -> str:
    """A template that a user gives instead of the checkpoint's: jinja's text, or the Path of a file with it.

    It must write a user's message, which a text that is no template does not. A template may refuse a conversation of
    one message: then nothing is known.

    Raises:
        RecipeError: the file cannot be read; the template does not compile, does not end, or writes something else.
    """
    if not isinstance(given, str | Path):
        raise RecipeError("expected chat_template as a text or a Path", found=type(given).__name__)
    try:
        source = given.read_bytes().decode("utf-8") if isinstance(given, Path) else given
    except OSError as error:
        asked = f"cannot read the chat template {given}"
        raise shortage(error, asked) or RecipeError(asked, found=str(error.strerror or error)) from error
    except UnicodeDecodeError as error:
        raise RecipeError(f"expected UTF-8 text in {given}", found=f"byte {error.start}: {error.reason}") from error
    try:
        rendered = ChatTemplate(source, **tokens).render(_TRIAL)
    except RecipeError:
        return source
    except LlmcError as error:
        which = f"the chat template {given}" if isinstance(given, Path) else "this chat template"
        raise RecipeError(f"cannot use {which}", found=f"{error.asked}: {error.found}") from error
    if _TRIAL[0]["content"] not in rendered:
        raise RecipeError(
            f"expected a chat template that writes the messages{f', not {given}' if isinstance(given, Path) else ''}",
            found=repr(rendered)[:80],
            fix="jinja with {{ message.content }} for each message, or the Path of a file",
        )
    return source


def _checked(messages: Any, variables: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON copy of all values that a template may read; RecipeError names the message at fault."""
    if not isinstance(messages, Sequence) or isinstance(messages, str | bytes) or not messages:
        found = repr(messages)[:80]
        raise RecipeError("expected messages as a list of {role, content} that is not empty", found=found)
    for index, message in enumerate(messages):
        role = message.get("role") if isinstance(message, Mapping) else None
        if not isinstance(role, str) or not WORD.fullmatch(role):
            found = repr(role if isinstance(message, Mapping) else message)[:80]
            raise RecipeError(f"expected messages[{index}].role as a word such as user", found=found)
    given = {"add_generation_prompt": True, "tools": None, **variables, "messages": [dict(one) for one in messages]}
    try:
        # encode() refuses lone surrogates, which no tokenizer takes
        return json.loads(json.dumps(given, allow_nan=False, ensure_ascii=False).encode("utf-8"))
    except (TypeError, ValueError, RecursionError) as error:
        raise RecipeError("expected messages and tools as plain JSON values", found=str(error)) from None


class _Mask:
    """Replaces each special token in a user's values by one private character, and puts them back after rendering.

    It replaces whole special tokens and, at either end of a string, fragments of one, because a template may join two
    strings. So a special token in the rendered text that contains a replaced character came from the user. Upper and
    lower case count as the same, because a template may change them.
    """

    def __init__(self, tokenizer: Tokenizer, taken: str) -> None:
        self._taken, self._next = taken, iter(PLACEHOLDERS)
        self._private: dict[str, str] = {}
        self._pattern = re.compile(tokenizer.special_pattern.pattern, re.IGNORECASE)
        self._heads, self._tails = ({one.lower() for one in parts} for parts in tokenizer.special_fragments)
        self._longest = max(map(len, self._heads), default=0)

    def hide(self, value: Any, key: str = "") -> Any:
        if isinstance(value, str):
            return value if key in WORD_KEYS and WORD.fullmatch(value) else self._hide_text(value)
        if isinstance(value, list):
            return [self.hide(entry, key) for entry in value]
        if isinstance(value, dict):
            return {self._hide_text(name): self.hide(entry, name) for name, entry in value.items()}
        return value

    def _hide_text(self, text: str) -> str:
        text = self._pattern.sub(lambda found: self._placeholder(found[0]), text)
        cuts = range(min(self._longest, len(text)), 0, -1)
        if length := next((cut for cut in cuts if text[:cut].lower() in self._tails), 0):
            text = self._placeholder(text[:length]) + text[length:]
        cuts = range(min(self._longest, len(text)), 0, -1)
        if length := next((cut for cut in cuts if text[-cut:].lower() in self._heads), 0):
            text = text[:-length] + self._placeholder(text[-length:])
        return text

    def _placeholder(self, text: str) -> str:
        if text not in self._private:
            private = next((chr(code) for code in self._next if chr(code) not in self._taken), None)
            if private is None:
                found = "too many different special tokens in their text"
                raise RecipeError("cannot encode the messages", found=found)
            self._private[text] = private
        return self._private[text]

    def reveal(self, rendered: str) -> tuple[str, list[tuple[int, int]]]:
        """The text with all hidden parts put back, and their ranges [start, stop)."""
        if not self._private:
            return rendered, []
        hidden = {private: text for text, private in self._private.items()}
        shown, ranges = "", []
        for part in re.split(f"([{''.join(hidden)}])", rendered):
            if part in hidden:
                ranges.append((len(shown), len(shown) + len(hidden[part])))
            shown += hidden.get(part, part)
        return shown, ranges
