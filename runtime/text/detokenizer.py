"""Token ids to text, piece by piece: from the bytes of each token where the decoder is known, else from windows.

What precedes a text decides how it begins: sentencepiece drops the space of a text's first word only, so the first word
that follows a prompt keeps it.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

BYTEWISE = "llmc-bytewise"
"""Name of the codec error handler that replaces each invalid byte."""
UTF8_BYTES = 4
"""Most bytes of a character."""
WINDOW_TOKENS = 8
"""Most tokens held back by a decoder that is neither byte-level nor sentencepiece: their bytes may never become a
character."""


@dataclass(frozen=True)
class ByteStyle:
    """A decoder that joins the bytes of its tokens."""

    letters_are_bytes: bool
    """Each letter is a byte (byte-level); else text, in which ▁ is a space."""
    fallback: bool = False
    """Tokens such as <0x41> are bytes."""
    strip: int = 0
    """Spaces that are dropped at the beginning."""
    strip_first: bool = False
    """The spaces of the first token are dropped."""

    @property
    def errors(self) -> str:
        """The codec error handler: byte-level decoders replace a maximal part of a character at once."""
        return "replace" if self.letters_are_bytes else BYTEWISE


def _bytewise(error: UnicodeError) -> tuple[str, int]:
    """One U+FFFD for each invalid byte, as in sentencepiece."""
    assert isinstance(error, UnicodeDecodeError)
    return "\ufffd" * (error.end - error.start), error.end


codecs.register_error(BYTEWISE, _bytewise)


class Detokenizer(Protocol):
    """Text of a growing sequence: the joined results of `push` and `finish` equal `Tokenizer.decode` of all ids.

    With ids `after` which it grows, they are what those ids add to the text of `after`. A character that `after` begins
    and does not end belongs to what follows.
    """

    def push(self, token: int) -> str: ...
    def finish(self) -> str: ...


class ByteDetokenizer:
    """Decodes the bytes of the tokens with an incremental UTF-8 decoder: each token is processed once."""

    def __init__(
        self,
        token_bytes: Callable[[int, bool], bytes],
        skipped: frozenset[int],
        style: ByteStyle,
        after: Sequence[int] = (),
    ) -> None:
        """`token_bytes` gives the bytes of a token by its id; True means that it is the first one."""
        self._token_bytes, self._skipped, self._strip = token_bytes, skipped, style.strip
        self._first = style.strip_first
        self._decoder = codecs.getincrementaldecoder("utf-8")(style.errors)
        # A long prompt is not decoded: its first words tell whether a space is left to strip, its last bytes whether
        # a character is incomplete.
        for token in after:
            if not (self._strip or self._first):
                break
            self.push(token)
        self._decoder.reset()
        self._decoder.decode(self._last_bytes(after))

    def _last_bytes(self, after: Sequence[int]) -> bytes:
        last = b""
        for token in reversed(after):
            if len(last) >= UTF8_BYTES:
                break
            last = (b"" if token in self._skipped else self._token_bytes(token, False)) + last
        return last

    def push(self, token: int) -> str:
        if token in self._skipped:
            return ""
        data = self._token_bytes(token, False)
        if data and self._first:
            self._first, data = False, self._token_bytes(token, True)
        return self._text(data, final=False)

    def finish(self) -> str:
        return self._text(b"", final=True)

    def _text(self, data: bytes, final: bool) -> str:
        text = self._decoder.decode(data, final)
        if text and self._strip:
            spaces = min(self._strip, len(text) - len(text.lstrip(" ")))
            text = text[spaces:]
            self._strip = 0 if text else self._strip - spaces
        return text


class WindowDetokenizer:
    """For any other decoder: decodes the last tokens with and without the next ones, and shows the difference."""

    def __init__(
        self, decode: Callable[[Sequence[int]], str], skipped: frozenset[int], after: Sequence[int] = ()
    ) -> None:
        self._decode, self._skipped = decode, skipped
        self._shown: list[int] = []
        self._held: list[int] = []
        self._enter([token for token in after if token not in skipped])

    def _enter(self, after: list[int]) -> None:
        """Take the shortest end of `after` that has text for the left context, and hold the parts of a character that
        it begins and does not end."""
        length = 1
        while length < len(after) and self._decode(after[-length:])[:1] in ("", "\ufffd"):
            length *= 2
        # one token more: a decoder that strips the first token's blank must not strip a later one's
        self._shown = after[-length - 1 :]
        while len(self._shown) > 1 and len(self._held) < UTF8_BYTES and self._decode(self._shown).endswith("\ufffd"):
            self._held.insert(0, self._shown.pop())

    def push(self, token: int) -> str:
        if token in self._skipped:
            return ""
        self._held.append(token)
        return self._text(final=len(self._held) >= WINDOW_TOKENS)

    def finish(self) -> str:
        return self._text(final=True)

    def _text(self, final: bool) -> str:
        shown, text = self._decode(self._shown), self._decode(self._shown + self._held)
        if not self._held or (text.endswith("\ufffd") and not final):
            return ""
        if len(text) > len(shown):
            self._shown, self._held = self._held, []
            return text[len(shown) :]
        # A token without text cannot be the left context: keep the previous one. At the beginning it stays in the
        # context, because a decoder strips the leading blank of the first token and not of the next.
        self._shown, self._held = self._shown if shown else self._shown + self._held, []
        return ""


def byte_style(decoder: Mapping[str, Any]) -> ByteStyle | None:
    """The style of a decoder of tokenizer.json, or None if it is neither byte-level nor sentencepiece's."""
    parts = decoder["decoders"] if decoder["type"] == "Sequence" else [decoder]
    match parts:
        case [{"type": "ByteLevel"}]:
            return ByteStyle(letters_are_bytes=True)
        case [{"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme}]:
            return ByteStyle(False, strip_first=scheme != "never")
        case [{"type": "ByteFallback"}, {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme}]:
            return ByteStyle(False, fallback=True, strip_first=scheme != "never")
        case [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"},
            {"type": "Fuse"},
            *rest,
        ]:
            match rest:
                case []:
                    return ByteStyle(False, fallback=True)
                case [{"type": "Strip", "content": " ", "start": start, "stop": 0}]:
                    return ByteStyle(False, fallback=True, strip=start)
    return None


def _byte_alphabet() -> dict[str, int]:
    """Printable character to byte, as in byte-level vocabularies (the inverse of GPT-2's `bytes_to_unicode`)."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return {chr(byte): byte for byte in shown} | {chr(256 + i): byte for i, byte in enumerate(hidden)}


BYTE_OF_CHARACTER = _byte_alphabet()
