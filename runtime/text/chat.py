"""Chat templates without transformers: rendered with a budget, and blind to special tokens spelled by a user."""

from __future__ import annotations

import datetime
import json
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from ..errors import CheckpointError, EngineError, LlmcError, RecipeError, Unsupported
from .tokenizer import Tokenizer, library_errors

MAX_TEMPLATE_CHARS = 64 * 1024
# Measured: about 40 units a message for the usual templates and 1 unit for 13 characters; 300,000 take 12 ms. Fuel does
# not bound lists that double nor the time to compile: the build tries a template in a process that it can kill.
FUEL = 300_000
FUEL_PER_CHAR = 10
# The compiler of minijinja recurses on chains such as `a.b.b.b`, about 500 bytes a link; 64 Ki characters need 64 MiB.
COMPILE_STACK_BYTES = 128 * 1024 * 1024
MAX_INDENT = 16
PLACEHOLDERS = range(0xF0000, 0x10FFFE)
GENERATION_TAG = re.compile(r"\{%([-+]?)\s*(end)?generation\s*([-+]?)%\}")
# Values that templates compare or glue into special tokens ('<|' + role + '|>'): they stay as they are.
WORD = re.compile(r"[A-Za-z0-9_.-]{1,64}")
WORD_KEYS = ("role", "type")


def chat_template_source(config: Mapping[str, Any], jinja_text: str | None) -> str | None:
    """The chat template of a checkpoint: chat_template.jinja, else `chat_template` of tokenizer_config.json (a string,
    or a list of named ones of which "default" counts); None if there is none."""
    if jinja_text is not None:
        return jinja_text
    value = config.get("chat_template")
    if isinstance(value, list):
        if not all(isinstance(entry, dict) and isinstance(entry.get("template"), str) for entry in value):
            found = "a list with an entry that has no template text"
            raise CheckpointError("read chat_template of tokenizer_config.json", found=found)
        named = {entry.get("name"): entry["template"] for entry in value}
        return named.get("default", next(iter(named.values())) if len(named) == 1 else None)
    if value is not None and not isinstance(value, str):
        raise CheckpointError("read chat_template of tokenizer_config.json", found=type(value).__name__, fix="a string")
    return value


class ChatTemplate:
    """A compiled chat template; rendering never changes the caller's messages."""

    def __init__(self, source: str, *, bos_token: str, eos_token: str) -> None:
        if len(source) > MAX_TEMPLATE_CHARS:
            raise EngineError(
                "compile the chat template", found=f"{len(source)} characters", fix=f"at most {MAX_TEMPLATE_CHARS}"
            )
        self._source = source
        self._tokens = {"bos_token": bos_token, "eos_token": eos_token}
        # One render at a time: the fuel is a property of the environment.
        self._lock = threading.Lock()
        self._environment = _with_large_stack(lambda: _compile(source))

    def render(self, messages: Sequence[Mapping[str, Any]], **variables: Any) -> str:
        """The prompt text; variables are those of the template, such as `tools` and `add_generation_prompt` (True).

        Raises:
            RecipeError: the messages are no conversation, or the template refuses them (its own message is shown).
            EngineError, Unsupported: the template is at fault, with its line.
        """
        return self._render(_checked(messages, variables))

    def encode(self, tokenizer: Tokenizer, messages: Sequence[Mapping[str, Any]], **variables: Any) -> list[int]:
        """The prompt's ids: special tokens come from the template alone, never from messages, tools or variables."""
        given = _checked(messages, variables)
        mask = _Mask(tokenizer, taken=self._source + json.dumps(given, ensure_ascii=False))
        return tokenizer.encode_marked(*mask.reveal(self._render(mask.hide(given))))

    def _render(self, given: dict[str, Any]) -> str:
        with self._lock, _template_errors("render the chat template"):
            self._environment.fuel = FUEL + FUEL_PER_CHAR * len(json.dumps(given))
            return self._environment.render_template("chat", **self._tokens, **given)


def _compile(source: str) -> Any:
    import minijinja

    environment = minijinja.Environment(
        trim_blocks=True,
        lstrip_blocks=True,
        fuel=FUEL,
        filters={"tojson": _tojson},
        globals={"raise_exception": _raise_exception, "strftime_now": _strftime_now},
    )
    with _template_errors("compile the chat template"):
        environment.add_template("chat", _without_generation_tags(source))
    return environment


def _with_large_stack(work: Callable[[], Any]) -> Any:
    """Run `work` on a thread whose stack the deepest template of the permitted size cannot exhaust."""
    with ThreadPoolExecutor(1, "llmc-template") as pool:
        usual = threading.stack_size(COMPILE_STACK_BYTES)
        try:
            done = pool.submit(work)
        finally:
            threading.stack_size(usual)
        return done.result()


@contextmanager
def _template_errors(asked: str) -> Iterator[None]:
    """Names the line of the template and whose fault an error is."""
    import minijinja

    with library_errors(asked):
        try:
            yield
        except minijinja.TemplateError as error:
            found = str(error).split("\n", 1)[0].replace("(in chat:", "(line ")
            raise _class_of(error.kind)(asked, found=found) from None


def _class_of(kind: str) -> type[LlmcError]:
    if kind == "OutOfFuel":
        return EngineError
    if kind in ("SyntaxError", "UnknownFilter", "UnknownFunction", "UnknownMethod", "UnknownTest"):
        return Unsupported
    return RecipeError


def _without_generation_tags(source: str) -> str:
    """`generation` marks what the assistant wrote, for training; an `if true` keeps its white space and line."""
    return GENERATION_TAG.sub(lambda m: "{%" + m[1] + (" endif " if m[2] else " if true ") + m[3] + "%}", source)


def _raise_exception(message: Any) -> None:
    raise RecipeError("render the chat template", found=str(message), fix="messages that this model's template accepts")


def _strftime_now(form: str) -> str:
    return datetime.datetime.now().strftime(form)


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """As transformers gives it to templates: json.dumps, nothing escaped for HTML."""
    if indent is not None and not 0 <= indent <= MAX_INDENT:
        raise EngineError("render the chat template", found=f"tojson(indent={indent})", fix=f"at most {MAX_INDENT}")
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _checked(messages: Any, variables: Mapping[str, Any]) -> dict[str, Any]:
    """A fresh JSON copy of all a template may see; RecipeError names the message at fault."""
    if not isinstance(messages, Sequence) or isinstance(messages, str | bytes) or not messages:
        raise RecipeError("messages", found=repr(messages)[:80], fix="a list of {role, content} that is not empty")
    for index, message in enumerate(messages):
        role = message.get("role") if isinstance(message, Mapping) else None
        if not isinstance(role, str) or not WORD.fullmatch(role):
            found = repr(role if isinstance(message, Mapping) else message)[:80]
            raise RecipeError(f"messages[{index}].role", found=found, fix="a word such as user")
    given = {"add_generation_prompt": True, "tools": None, **variables, "messages": [dict(one) for one in messages]}
    try:
        # the bytes refuse lone surrogates, which minijinja would replace without a word
        return json.loads(json.dumps(given, allow_nan=False, ensure_ascii=False).encode("utf-8"))
    except (TypeError, ValueError, RecursionError) as error:
        raise RecipeError("messages and tools", found=str(error), fix="plain JSON values") from None


class _Mask:
    """Hides special tokens in what a user gave behind one private character each, and finds them again.

    Hidden are whole special tokens and, at either end of a string, pieces of one: a template may glue two strings
    together. So a special token in the rendered text that holds a hidden character was made by the user.
    """

    def __init__(self, tokenizer: Tokenizer, taken: str) -> None:
        self._taken, self._next = taken, iter(PLACEHOLDERS)
        self._private: dict[str, str] = {}
        self._pattern = tokenizer.special_pattern
        self._heads, self._tails = tokenizer.special_fragments
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
        if length := next((cut for cut in cuts if text[:cut] in self._tails), 0):
            text = self._placeholder(text[:length]) + text[length:]
        cuts = range(min(self._longest, len(text)), 0, -1)
        if length := next((cut for cut in cuts if text[-cut:] in self._heads), 0):
            text = text[:-length] + self._placeholder(text[-length:])
        return text

    def _placeholder(self, text: str) -> str:
        if text not in self._private:
            private = next((chr(code) for code in self._next if chr(code) not in self._taken), None)
            if private is None:
                raise RecipeError("messages", found="too many different special tokens in the text")
            self._private[text] = private
        return self._private[text]

    def reveal(self, rendered: str) -> tuple[str, list[tuple[int, int]]]:
        """The text with everything hidden put back, and the ranges [start, stop) that were hidden."""
        if not self._private:
            return rendered, []
        hidden = {private: text for text, private in self._private.items()}
        shown, ranges = "", []
        for part in re.split(f"([{''.join(hidden)}])", rendered):
            if part in hidden:
                ranges.append((len(shown), len(shown) + len(hidden[part])))
            shown += hidden.get(part, part)
        return shown, ranges
