"""Bounds how much a tokenizer may make of a text: a few steps that double it each are gigabytes for one prompt.

Build and run both ask here, before the tokenizers library reads the file: it normalizes added tokens while it loads.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ..errors import EngineError

MAX_STEPS = 64
"""Of one part. Published tokenizers have at most a dozen (DeepSeek: 5 splits and ByteLevel)."""
MAX_GROWTH = 1 << 15
"""Times that a byte of text may grow in normalizer and pre-tokenizer, or in the decoder. Of published tokenizers, those
of ALBERT's kind could grow most: NFKD, lower case, characters map and Metaspace, 3,000 times together; byte-level
ones 2 times, those of sentencepiece 4 times."""
MAX_COPIES = 4
"""Times that a post-processor may repeat a text; published ones write it once."""
MAX_ADDED = 1024
"""Tokens that a post-processor may add; published ones add at most three."""
_PARTS = ("normalizer", "pre_tokenizer", "decoder", "post_processor")
_CHILDREN = ("normalizers", "pretokenizers", "decoders", "processors")
_UTF8 = 4
"""Most bytes of a character."""


def _spelled(name: str) -> str:
    return "".join(f"(?:{one}|\\\\u00{'(?i:' + format(ord(one), '02x') + ')'})" for one in name)


_KEY = re.compile('"(' + "|".join(map(_spelled, _PARTS)) + r')"[ \t\r\n]*:[ \t\r\n]*')
"""A part's key in any spelling of JSON. The whole file is not parsed: a vocabulary takes a second."""


def check_steps(tokenizer_json: bytes, what: str = "tokenizer.json") -> None:
    """Check the steps of a tokenizer; `what` names it in errors.

    Raises:
        EngineError: it has more steps than any published one, or they multiply a text without bound.
    """
    growth = {"text": 1, "decoder": 1}
    for part, value in _parts(tokenizer_json, what):
        steps = list(_flat(value, part, what))
        if part == "post_processor":
            _check_post(steps, what)
            continue
        flow = "decoder" if part == "decoder" else "text"
        for step in steps:
            growth[flow] *= max(1, _growth(step, part, what))
            if growth[flow] > MAX_GROWTH:
                asked = f"cannot use {what}: its {part} multiplies a text"
                found = f"{len(steps)} steps, which make more than {MAX_GROWTH} bytes of one"
                raise EngineError(asked, found=found, fix="the tokenizer of the model's publisher")


def _parts(tokenizer_json: bytes, what: str) -> Iterator[tuple[str, Any]]:
    """Each part's name and value; a key twice gives both, for readers differ in which one counts."""
    text = tokenizer_json.decode("utf-8", "replace")
    reader = json.JSONDecoder(object_pairs_hook=_once)
    for key in _KEY.finditer(text):
        if text.startswith("{", key.end()):
            try:
                value, _ = reader.raw_decode(text, key.end())
            except (ValueError, RecursionError) as error:
                raise EngineError(f"cannot read {what}", found=str(error) or "deep nesting") from None
            yield json.loads(f'"{key[1]}"'), value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) != len(pairs):
        raise ValueError("a key twice in a step")
    return dict(pairs)


def _flat(value: Any, part: str, what: str) -> Iterator[Mapping[str, Any]]:
    """The steps of a part, those of sequences in sequences too."""
    waiting, count = [value], 0
    while waiting:
        step = waiting.pop()
        if not isinstance(step, Mapping) or not isinstance(step.get("type"), str):
            raise EngineError(f"expected steps with a type in the {part} of {what}", found=repr(step)[:80])
        if step["type"] == "Sequence":
            for key in _CHILDREN:
                inner = step.get(key, [])
                waiting += reversed(inner) if isinstance(inner, list) else [inner]
        else:
            yield step
        count += 1
        if count > MAX_STEPS:
            asked = f"expected at most {MAX_STEPS} steps in the {part} of {what}"
            raise EngineError(asked, found="more", fix="the tokenizer of the model's publisher")


def _growth(step: Mapping[str, Any], part: str, what: str) -> int:
    """Most bytes that a step makes of one."""
    if step["type"] == "Replace":
        return _replaced(step)
    if step["type"] == "Prepend":
        return 1 + _size(step.get("prepend"))
    if step["type"] == "Precompiled":
        return _longest(step.get("precompiled_charsmap"), what)
    if step["type"] == "ByteLevel":
        return 1 if part == "decoder" else 2
    return _GROWTH.get(step["type"], _no_growth)(step)


def _no_growth(_: Mapping[str, Any]) -> int:
    return 1


_GROWTH: Mapping[str, Callable[[Mapping[str, Any]], int]] = {
    "NFC": lambda _: 3,
    "NFD": lambda _: 5,
    "NFKC": lambda _: 11,
    "NFKD": lambda _: 11,
    "Lowercase": lambda _: 2,
    "BertNormalizer": lambda _: 10,
    "Metaspace": lambda _: _UTF8,
    "WordPiece": lambda _: 2,
    "BPEDecoder": lambda _: 2,
    "CTC": lambda step: 1 + _size(step.get("word_delimiter_token")),
}
"""U+FDFA is 3 bytes and 33 decomposed for compatibility; U+1F82 is 3 and 9 decomposed by characters."""


def _size(text: Any) -> int:
    return len(text.encode("utf-8", "replace")) if isinstance(text, str) else 0


def _replaced(step: Mapping[str, Any]) -> int:
    """A literal grows from its length to that of the content; a regular expression may match between all characters."""
    content, pattern = _size(step.get("content")), step.get("pattern")
    literal = pattern.get("String") if isinstance(pattern, Mapping) else None
    return -(-content // _size(literal)) if isinstance(literal, str) and literal else content + 1


def _longest(charsmap: Any, what: str) -> int:
    """The longest text that a map of sentencepiece writes for a character: a trie after its length, then the texts."""
    try:
        data = base64.b64decode(charsmap or "", validate=True)
    except (TypeError, ValueError) as error:
        raise EngineError(f"expected a characters map in base64 in {what}", found=str(error)) from None
    texts = data[4 + int.from_bytes(data[:4], "little") :]
    return max(map(len, texts.split(b"\0")), default=0)


def _check_post(steps: list[Mapping[str, Any]], what: str) -> None:
    copies, added = 1, 0
    for step in steps:
        pieces = step.get("single")
        if step["type"] == "TemplateProcessing" and isinstance(pieces, list):
            tokens = step.get("special_tokens")
            sizes = {name: len(one.get("ids", ())) for name, one in tokens.items()} if isinstance(tokens, dict) else {}
            names = [next(iter(one.items())) for one in pieces if isinstance(one, Mapping) and one]
            copies *= max(1, sum(kind == "Sequence" for kind, _ in names))
            added += sum(sizes.get(one.get("id"), 1) for kind, one in names if kind == "SpecialToken")
        if copies > MAX_COPIES or added > MAX_ADDED:
            asked = f"cannot use {what}: its post_processor multiplies a text"
            found = f"more than {MAX_COPIES} copies or {MAX_ADDED} added tokens"
            raise EngineError(asked, found=found, fix="the tokenizer of the model's publisher")
