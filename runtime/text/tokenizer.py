"""Text to token ids and back, so that no text of a user ever becomes a special token unless it is asked for."""

from __future__ import annotations

import codecs
import json
import re
import secrets
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

from ..errors import EngineError, LlmcError, RecipeError

if TYPE_CHECKING:
    from tokenizers import Tokenizer as RawTokenizer

BYTEWISE = "llmc-bytewise"
# A decoder that is neither byte-level nor sentencepiece may hide bytes that never become a character.
WINDOW_TOKENS = 8


def _bytewise(error: UnicodeError) -> tuple[str, int]:
    """One U+FFFD for each invalid byte, as sentencepiece writes them."""
    assert isinstance(error, UnicodeDecodeError)
    return "\ufffd" * (error.end - error.start), error.end


codecs.register_error(BYTEWISE, _bytewise)


@contextmanager
def library_errors(asked: str, error: type[LlmcError] = EngineError) -> Iterator[None]:
    """Turn what a Rust library raises into `error`; a Rust panic derives from BaseException alone."""
    try:
        yield
    except (LlmcError, KeyboardInterrupt, SystemExit, GeneratorExit, MemoryError):
        raise
    except BaseException as found:
        raise error(asked, found=f"{type(found).__name__}: {found}") from found


def token_text(config: Mapping[str, Any], name: str) -> str:
    """The token string under `name` ("bos_token") of tokenizer_config.json: a string or an AddedToken; "" if none."""
    value = config.get(name)
    if isinstance(value, Mapping):
        value = value.get("content")
    return value if isinstance(value, str) else ""


class Detokenizer(Protocol):
    """Text of a growing sequence: the pushes and the finish joined are `Tokenizer.decode` of all ids."""

    def push(self, token: int) -> str: ...
    def finish(self) -> str: ...


class Tokenizer:
    """A tokenizer.json with the conventions of an engine; safe to use from many threads.

    The library keeps "special tokens as plain text" as a switch on the tokenizer, which cannot be changed while
    another thread encodes. So there are two: one that honours special tokens, and, made when a text first needs it,
    one that does not.
    """

    def __init__(self, raw: RawTokenizer, config: Mapping[str, Any]) -> None:
        self._raw = raw
        self._lock = threading.Lock()
        self._added = raw.get_added_tokens_decoder()
        self.special_tokens: dict[str, int] = {a.content: i for i, a in sorted(self._added.items()) if a.special}
        self.special_ids = frozenset(self.special_tokens.values())
        self.vocab_size = raw.get_vocab_size()
        self.bos_token, self.eos_token = token_text(config, "bos_token"), token_text(config, "eos_token")
        eos = raw.token_to_id(self.eos_token) if self.eos_token else None
        self.eos_ids: tuple[int, ...] = () if eos is None else (eos,)
        self._never_from_text = self.special_ids - {raw.token_to_id(getattr(raw.model, "unk_token", None) or "")}
        self._bytes: dict[int, bytes] = {}
        self._style = _byte_style(json.loads(raw.decoder.__getstate__())) if raw.decoder is not None else None

    @classmethod
    def from_bytes(cls, tokenizer_json: bytes, config: Mapping[str, Any]) -> Tokenizer:
        """Build from the bytes of tokenizer.json and the content of tokenizer_config.json (EngineError)."""
        from tokenizers import Tokenizer as RawTokenizer

        with library_errors("read the tokenizer"):
            raw = RawTokenizer.from_buffer(tokenizer_json)
            raw.no_truncation()
            raw.no_padding()
        return cls(raw, config)

    def token_to_id(self, token: str) -> int | None:
        return self._raw.token_to_id(token)

    def encode(self, text: str, *, special: bool = False, bos: bool = True) -> list[int]:
        """Ids of `text`; `bos` adds what the tokenizer's post-processor adds (usually BOS in front).

        With `special` False a special token spelled in the text is split into plain pieces.
        """
        _check_text(text)
        if special or not self._may_hold_special(text):
            return self._encode(self._raw, text, bos)
        plain, _ = self._plain
        self._check_plain(self._encode(plain, text, bos=False))
        return self._encode(plain, text, bos)

    def encode_marked(self, text: str, plain: Sequence[tuple[int, int]]) -> list[int]:
        """Ids of a rendered template: special tokens count, except where they touch a `plain` range [start, stop).

        Nothing is added. A template's own special tokens are replaced by private twins, so that one call of the
        plain tokenizer sees the whole text and splits it where the ordinary tokenizer would.
        """
        _check_text(text)
        if not plain:
            return self._encode(self._raw, text, bos=False)
        tokenizer, twins = self._plain
        mask = bytearray(len(text))
        for start, stop in plain:
            mask[start:stop] = b"\1" * (stop - start)
        lengths = sorted({len(token) for token in self.special_tokens}, reverse=True)
        parts: list[str] = []
        done = position = 0
        while found := self.special_pattern.search(text, position):
            start = found.start()
            ends = [start + length for length in lengths if mask.find(1, start, start + length) < 0]
            end = next((end for end in ends if text[start:end] in self.special_tokens), None)
            if end is not None:
                parts += (text[done:start], twins[self.special_tokens[text[start:end]]])
                done = end
            position = end or start + 1
        parts.append(text[done:])
        back = {tokenizer.token_to_id(twin): token for token, twin in twins.items()}
        ids = self._encode(tokenizer, "".join(parts), bos=False)
        self._check_plain(ids)
        return [back.get(token, token) for token in ids]

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        """Text of `ids`; ids without a token give nothing, bytes that are not UTF-8 give U+FFFD.

        Equal to the tokenizers library, but for byte-fallback runs with an invalid byte: there the valid characters
        of the run are kept (as sentencepiece does), since a stream has already shown them.
        """
        stream = self.detokenizer(skip_special=skip_special)
        return "".join([*(stream.push(token) for token in ids), stream.finish()])

    def detokenizer(self, *, skip_special: bool = True) -> Detokenizer:
        skipped = self.special_ids if skip_special else frozenset()
        if self._style is None:
            return _WindowDetokenizer(self._decode_raw, skipped)
        return _ByteDetokenizer(self.token_bytes, skipped, *self._style)

    def token_bytes(self, token: int) -> bytes:
        """The bytes one token stands for inside a text; b"" if no token has this id."""
        known = self._bytes.get(token)
        if known is None:
            piece = self._raw.id_to_token(token) if 0 <= token < 1 << 32 else None
            known = self._bytes[token] = b"" if piece is None else self._piece_bytes(token, piece)
        return known

    def _piece_bytes(self, token: int, piece: str) -> bytes:
        if self._style is None:
            return self._decode_raw([token]).encode("utf-8", "replace")
        errors, _ = self._style
        if errors == BYTEWISE:
            byte = re.fullmatch("<0x([0-9A-Fa-f]{2})>", piece)
            return bytes.fromhex(byte[1]) if byte else piece.replace("▁", " ").encode()
        try:
            return bytes(BYTE_OF_CHARACTER[character] for character in piece)
        except KeyError:
            return piece.encode()

    def _decode_raw(self, ids: Sequence[int]) -> str:
        with library_errors("decode tokens"):
            return self._raw.decode(list(ids), skip_special_tokens=False)

    def _encode(self, raw: RawTokenizer, text: str, bos: bool) -> list[int]:
        with library_errors("encode a text"):
            return raw.encode(text, add_special_tokens=bos).ids

    def _check_plain(self, ids: Sequence[int]) -> None:
        """A vocabulary may reach a special token through ordinary pieces; then the text has no plain spelling."""
        if hit := self._never_from_text.intersection(ids):
            name = self._added[min(hit)].content
            found = f"{name!r}, which this tokenizer cannot split into plain pieces"
            raise RecipeError("encode a text without special tokens", found=found, fix="remove it from the text")

    def _may_hold_special(self, text: str) -> bool:
        # A normalized special token is compared after normalization, so its spellings are not known here.
        if any(self._added[token].normalized for token in self.special_ids):
            return True
        return bool(self.special_tokens) and self.special_pattern.search(text) is not None

    @cached_property
    def special_pattern(self) -> re.Pattern[str]:
        """Finds special tokens spelled in a text, the longest first."""
        tokens = sorted(self.special_tokens, key=len, reverse=True)
        return re.compile("|".join(map(re.escape, tokens)) if tokens else r"(?!)")

    @cached_property
    def special_fragments(self) -> tuple[frozenset[str], frozenset[str]]:
        """Proper beginnings and proper ends of the special tokens."""
        cuts = [(token[:cut], token[cut:]) for token in self.special_tokens for cut in range(1, len(token))]
        return frozenset(head for head, _ in cuts), frozenset(tail for _, tail in cuts)

    @property
    def _plain(self) -> tuple[RawTokenizer, dict[int, str]]:
        with self._lock:
            return self._plain_and_twins

    @cached_property
    def _plain_and_twins(self) -> tuple[RawTokenizer, dict[int, str]]:
        """A tokenizer blind to special tokens, and for each of them an unguessable twin that it does see."""
        from tokenizers import AddedToken
        from tokenizers import Tokenizer as RawTokenizer

        nonce = secrets.token_hex(8)
        twins = {token: f"\U0010fff0{nonce}.{token}\U0010fff1" for token in sorted(self.special_ids)}
        with library_errors("copy the tokenizer"):
            plain = RawTokenizer.from_str(self._raw.to_str())
            plain.encode_special_tokens = True
            added = []
            for token, twin in twins.items():
                model = self._added[token]
                flags = {name: getattr(model, name) for name in ("single_word", "lstrip", "rstrip", "normalized")}
                added.append(AddedToken(twin, special=False, **flags))
            plain.add_tokens(added)
        return plain, twins


def _check_text(text: object) -> None:
    if not isinstance(text, str):
        raise RecipeError("encode a text", found=type(text).__name__, fix="a str")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        found = f"a lone surrogate at character {error.start}"
        raise RecipeError("encode a text", found=found, fix="valid Unicode") from None


class _ByteDetokenizer:
    """Bytes of the tokens through an incremental UTF-8 decoder: each token is looked at once."""

    def __init__(self, token_bytes: Callable[[int], bytes], skipped: frozenset[int], errors: str, strip: int) -> None:
        self._token_bytes, self._skipped, self._strip = token_bytes, skipped, strip
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors)

    def push(self, token: int) -> str:
        return "" if token in self._skipped else self._text(self._token_bytes(token), final=False)

    def finish(self) -> str:
        return self._text(b"", final=True)

    def _text(self, data: bytes, final: bool) -> str:
        text = self._decoder.decode(data, final)
        if text and self._strip:
            spaces = min(self._strip, len(text) - len(text.lstrip(" ")))
            text = text[spaces:]
            self._strip = 0 if text else self._strip - spaces
        return text


class _WindowDetokenizer:
    """Any other decoder: what the next tokens add to a decode of the last ones, so that a token has its neighbour."""

    def __init__(self, decode: Callable[[Sequence[int]], str], skipped: frozenset[int]) -> None:
        self._decode, self._skipped = decode, skipped
        self._shown: list[int] = []
        self._held: list[int] = []

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
        # A token that shows nothing is no left neighbour: keep the one before it. At the beginning it still is the
        # first token, whose leading blank a decoder strips, so that the next one is not.
        self._shown, self._held = self._shown if shown else self._shown + self._held, []
        return ""


def _byte_style(decoder: Mapping[str, Any]) -> tuple[str, int] | None:
    """How a decoder of tokenizer.json treats bytes: (error handler, leading spaces to strip), or None if it is neither
    byte-level nor sentencepiece with byte fallback."""
    parts = decoder["decoders"] if decoder["type"] == "Sequence" else [decoder]
    match parts:
        case [{"type": "ByteLevel"}]:
            return "replace", 0
        case [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"},
            {"type": "Fuse"},
            *rest,
        ]:
            match rest:
                case []:
                    return BYTEWISE, 0
                case [{"type": "Strip", "content": " ", "start": start, "stop": 0}]:
                    return BYTEWISE, start
    return None


def _byte_alphabet() -> dict[str, int]:
    """The printable character each byte is written as in byte-level vocabularies (GPT-2's `bytes_to_unicode`)."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return {chr(byte): byte for byte in shown} | {chr(256 + i): byte for i, byte in enumerate(hidden)}


BYTE_OF_CHARACTER = _byte_alphabet()
