"""Text to token ids and back; a user's text never becomes a special token unless the caller asks for it."""

from __future__ import annotations

import json
import operator
import re
import secrets
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any

from ..errors import EngineError, LlmcError, RecipeError, described, text_of
from ..guard.panics import panics_unprinted
from ..guard.shortage import shortage
from .detokenizer import BYTE_OF_CHARACTER, BYTEWISE, ByteDetokenizer, Detokenizer, WindowDetokenizer, byte_style
from .steps import check_steps

if TYPE_CHECKING:
    from tokenizers import Tokenizer as RawTokenizer


@contextmanager
def library_errors(action: str, error: type[LlmcError] = EngineError) -> Iterator[None]:
    """Turns exceptions of a Rust library into an `error` that begins with "cannot `action`".

    A Rust panic derives from BaseException directly.
    """
    try:
        yield
    except (LlmcError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as found:  # a panic, such as of a pattern that this text sets astray
        if lacking := shortage(found, f"cannot {action}"):
            raise lacking from found
        raise error(f"cannot {action}", found=f"{type(found).__name__}: {found}") from found


def token_text(config: Mapping[str, Any], name: str) -> str:
    """The token string under `name` ("bos_token") of tokenizer_config.json: a string or an AddedToken; "" if none."""
    value = config.get(name)
    if isinstance(value, Mapping):
        value = value.get("content")
    return value if isinstance(value, str) else ""


class Tokenizer:
    """A tokenizer.json with the conventions of an engine; safe to use from many threads.

    In the library, "special tokens as plain text" is a switch of the tokenizer, which cannot change while another
    thread encodes. So there are two tokenizers: one that recognizes special tokens, and one that does not, made when a
    text first needs it.
    """

    def __init__(self, raw: RawTokenizer, config: Mapping[str, Any], what: str = "tokenizer.json") -> None:
        self._raw = raw
        self._what = what
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
        self._style = byte_style(json.loads(raw.decoder.__getstate__())) if raw.decoder is not None else None

    @classmethod
    def from_bytes(cls, tokenizer_json: bytes, config: Mapping[str, Any], what: str = "tokenizer.json") -> Tokenizer:
        """Build from the bytes of tokenizer.json, which is `what` in errors, and the content of tokenizer_config.json.

        Raises:
            EngineError: the library cannot read tokenizer.json, or its steps multiply a text without bound.
        """
        from tokenizers import Tokenizer as RawTokenizer

        check_steps(tokenizer_json, what)
        with library_errors(f"read {what}"), panics_unprinted():
            raw = RawTokenizer.from_buffer(tokenizer_json)
            raw.no_truncation()
            raw.no_padding()
        return cls(raw, config, what)

    def token_to_id(self, token: str) -> int | None:
        text_of("token", token)
        return self._raw.token_to_id(token)

    def encode(self, text: str, *, special: bool = False, bos: bool = True) -> list[int]:
        """Ids of `text`; `bos` adds the tokens of the tokenizer's post-processor (usually BOS in front).

        With `special` False a special token spelled in the text is split into plain pieces.

        Raises:
            RecipeError: the text is not valid Unicode, or a special token in it cannot be split.
        """
        _check_text(text)
        if special or not self._may_hold_special(text):
            return self._encode(self._raw, text, bos)
        plain, _ = self._plain
        self._check_plain(self._encode(plain, text, bos=False))
        return self._encode(plain, text, bos)

    def encode_marked(self, text: str, plain: Sequence[tuple[int, int]]) -> list[int]:
        """Ids of a rendered template: special tokens are recognized unless they overlap a `plain` range [start, stop).

        No BOS is added. The template's own special tokens are replaced by private twins, so that one call of the plain
        tokenizer encodes the whole text and splits it where the ordinary tokenizer would.

        Raises:
            RecipeError: the text is not valid Unicode, or a special token in a plain range cannot be split.
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
        """Text of `ids`; ids without a token give no text, bytes that are not UTF-8 give U+FFFD.

        Equal to the tokenizers library, except for byte-fallback runs with an invalid byte: the valid characters of the
        run are kept (as in sentencepiece), since a stream has already shown them; and except for added tokens of
        byte-level vocabularies: they are literal text (findings/tokenizers-decodes-added-tokens-as-bytes.sh).
        """
        stream = self.detokenizer(skip_special=skip_special)
        return "".join([*(stream.push(token) for token in _numbers(ids)), stream.finish()])

    def detokenizer(self, *, skip_special: bool = True) -> Detokenizer:
        skipped = self.special_ids if skip_special else frozenset()
        if self._style is None:
            return WindowDetokenizer(self._decode_raw, skipped)
        return ByteDetokenizer(self.token_bytes, skipped, *self._style)

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
        if token in self._added:  # its letters are no bytes: it was matched before any became bytes
            return piece.encode()
        try:
            return bytes(BYTE_OF_CHARACTER[character] for character in piece)
        except KeyError:
            return piece.encode()

    def _decode_raw(self, ids: Sequence[int]) -> str:
        with library_errors(f"decode tokens with {self._what}"):
            return self._raw.decode(list(ids), skip_special_tokens=False)

    def _encode(self, raw: RawTokenizer, text: str, bos: bool) -> list[int]:
        with library_errors(f"encode a text with {self._what}"), panics_unprinted():
            return raw.encode(text, add_special_tokens=bos).ids

    def _check_plain(self, ids: Sequence[int]) -> None:
        """Refuses ids with a special token, which some vocabularies merge from ordinary pieces."""
        if hit := self._never_from_text.intersection(ids):
            name = self._added[min(hit)].content
            found = f"{name!r}, which this tokenizer cannot split into plain pieces"
            raise RecipeError("cannot encode a text without special tokens", found=found, fix="remove it from the text")

    def _may_hold_special(self, text: str) -> bool:
        # a normalized special token is compared after normalization, so its spellings are unknown here
        if any(self._added[token].normalized for token in self.special_ids):
            return True
        return bool(self.special_tokens) and self.special_pattern.search(text) is not None

    @cached_property
    def special_pattern(self) -> re.Pattern[str]:
        """Matches special tokens spelled in a text, the longest first."""
        tokens = sorted(self.special_tokens, key=len, reverse=True)
        return re.compile("|".join(map(re.escape, tokens)) if tokens else r"(?!)")

    @cached_property
    def special_fragments(self) -> tuple[frozenset[str], frozenset[str]]:
        """Proper prefixes and proper suffixes of the special tokens."""
        cuts = [(token[:cut], token[cut:]) for token in self.special_tokens for cut in range(1, len(token))]
        return frozenset(head for head, _ in cuts), frozenset(tail for _, tail in cuts)

    @property
    def _plain(self) -> tuple[RawTokenizer, dict[int, str]]:
        with self._lock:
            return self._plain_and_twins

    @cached_property
    def _plain_and_twins(self) -> tuple[RawTokenizer, dict[int, str]]:
        """A tokenizer that ignores special tokens, and for each of them an unguessable twin that it recognizes."""
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
        raise RecipeError("cannot encode a text", found=type(text).__name__, fix="a str")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        found = f"a lone surrogate at character {error.start}"
        raise RecipeError("cannot encode a text", found=found, fix="valid Unicode") from None


def _numbers(ids: Any) -> list[int]:
    try:
        return [operator.index(one) for one in ids]
    except TypeError:
        raise RecipeError("cannot decode tokens", found=described(ids), fix="a list of whole numbers") from None
