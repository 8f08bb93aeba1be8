"""What `llmc eval` scores: texts, lists of token ids, and JSON lines with a text, token ids or a conversation."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...runtime.errors import RecipeError, Unsupported, nearest
from ..common import texts

if TYPE_CHECKING:
    from ...runtime.engine import Engine
    from ...runtime.engine_file.manifest import ModelFacts
    from ...runtime.evaluate import TextSize, Window, Windows

_MAX_TOKENS_BYTES = 64 << 20
_KEYS = ("text", "tokens", "messages")
_KNOWN = (*_KEYS, "id")
"""Corpora number their lines; an id changes no figure."""


@dataclass(frozen=True)
class Passage:
    """One text: a string, token ids, or the messages of a conversation; `where` names it in errors."""

    where: str
    text: str | None = None
    tokens: tuple[int, ...] | None = None
    messages: tuple[Mapping[str, Any], ...] | None = None

    def encode(self, engine: Engine, bos: int | None) -> list[int]:
        """Its token ids without BOS, with which each window begins anyway.

        Raises:
            RecipeError: it is not valid Unicode, or the chat template refuses the messages.
            Unsupported: the engine has no tokenizer, or no chat template for messages.
        """
        if self.text is not None:
            return engine.tokenizer.encode(self.text, bos=False)
        if self.messages is not None:
            template = engine.chat_template
            try:
                ids = template.encode(engine.tokenizer, self.messages, add_generation_prompt=False)
            except RecipeError as error:
                asked = f"{error.asked} at {self.where}"
                raise RecipeError(asked, found=error.found, fix=error.fix) from error
        else:
            ids = list(self.tokens or ())
        return ids[1:] if ids and ids[0] == bos else ids


def read(text: Sequence[str], tokens: Sequence[str], jsonl: Sequence[str]) -> list[Passage]:
    """The passages of a command line: files of --text, then of --tokens, then of --jsonl.

    Raises:
        RecipeError: there is none, or a file cannot be read or has another form; names its line.
    """
    if not (text or tokens or jsonl):
        raise RecipeError("expected a text to score", fix="--text FILE, --tokens FILE or --jsonl FILE")
    found = [Passage(path, text=texts.read_text(path)) for path in text]
    for path in tokens:
        found += _token_lists(path)
    for path in jsonl:
        found += [_of_line(value, where) for where, value in texts.json_lines(path)]
    return found


def refuse_unknown_tokens(passages: Iterable[Passage], vocabulary: int) -> None:
    """Check that the model has all token ids.

    Raises:
        RecipeError: an id is not below `vocabulary`; names its list.
    """
    for one in passages:
        if one.tokens and max(one.tokens) >= vocabulary:
            raise RecipeError(
                f"expected token ids below {vocabulary} at {one.where}", found=texts.shown(max(one.tokens))
            )


def whole_texts(passages: Sequence[Passage]) -> TextSize | None:
    """The size of all texts together; None if one is token ids or messages, whose words and bytes nobody knows."""
    from ...runtime.evaluate import TextSize

    texts = [one.text for one in passages if one.text is not None]
    return TextSize.of(texts) if len(texts) == len(passages) else None


def prefix(model: ModelFacts, engine: Engine) -> int:
    """What rolling windows read before a text: BOS, also one with which no text begins, else EOS.

    That is lm-evaluation-harness's choice: the tokenizer's bos_token, else its eos_token.

    Raises:
        RecipeError: there is neither.
    """
    named: list[int | None] = []
    with suppress(Unsupported):  # an engine without a tokenizer, for token ids
        texts = [engine.tokenizer.named.get(name) for name in ("bos_token", "eos_token")]
        named = [engine.tokenizer.token_to_id(text) for text in texts if text]
    found = next((one for one in (model.bos, *named, *model.eos_ids) if one is not None), None)
    if found is None:
        raise RecipeError("cannot cut rolling windows", found="neither BOS nor EOS", fix="--windows separate")
    return found


def cut(
    ids: Iterable[Sequence[int]], size: int, first: int | None, limit: int | None, how: Windows = "separate"
) -> Iterator[Window]:
    """Windows over one text's ids at a time, until `limit` tokens are in them to score."""
    from ...runtime.evaluate import windows

    left = limit
    for one_text in ids:
        if left is not None:
            one_text = one_text[: left + (first is None)]
            left -= max(0, len(one_text) - (first is None))
        yield from windows(one_text, size, first, how)
        if left == 0:
            return


def _token_lists(path: str) -> list[Passage]:
    from ...runtime.files.strict_json import loads

    value = loads(texts.read_text(path), what=path, error=RecipeError, max_bytes=_MAX_TOKENS_BYTES)
    if not isinstance(value, list) or not all(isinstance(one, list) for one in value):
        raise RecipeError(
            f"expected a list of lists of token ids in {path}", found=texts.shown(value), fix="[[5, 9, 2], [7, 1]]"
        )
    names = [f"{path}[{index}]" for index in range(len(value))]
    return [Passage(name, tokens=texts.token_ids(one, name)) for name, one in zip(names, value, strict=True)]


def _of_line(value: Any, where: str) -> Passage:
    named = [key for key in _KEYS if isinstance(value, dict) and key in value]
    if len(named) != 1:
        one_of = 'an object with one of "text", "tokens" and "messages"'
        raise RecipeError(f"expected {one_of} at {where}", found=texts.shown(value))
    for key in value:
        if key not in _KNOWN:
            raise RecipeError(f"expected a known key at {where}", found=f"{key!r}{nearest(key, _KNOWN)}")
    key, content = named[0], value[named[0]]
    if key == "tokens":
        return Passage(where, tokens=texts.token_ids(content, where))
    if key == "text":
        if not isinstance(content, str):
            raise RecipeError(f'expected "text" as a text at {where}', found=texts.shown(content))
        return Passage(where, text=content)
    return Passage(where, messages=texts.messages(content, where))
