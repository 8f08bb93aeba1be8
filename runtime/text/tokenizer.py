"""Text to token ids and back; a user's text never becomes a special token unless the caller asks for it."""

from __future__ import annotations

import json
import operator
import re
import secrets
import threading
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from ..errors import RecipeError, described, text_of
from ..guard.panics import panics_unprinted
from .detokenizer import Detokenizer
from .pieces import Pieces, library_errors
from .steps import check_steps

if TYPE_CHECKING:
    from tokenizers import Tokenizer as RawTokenizer


class Tokenizer:
    """A tokenizer.json with the conventions of an engine; safe to use from many threads.

    In the library, "special tokens as plain text" is a switch of the tokenizer, which cannot change while another
    thread encodes. So there are two tokenizers: one that recognizes special tokens, and one that does not, made when a
    text first needs it.
    """

    def __init__(self, raw: RawTokenizer, named: Mapping[str, str], what: str = "tokenizer.json") -> None:
        self._raw = raw
        self._what = what
        self.named = dict(named)
        """Texts of named tokens, such as bos_token: what a chat template may read."""
        self._front: tuple[int, ...] | None = None
        self._lock = threading.Lock()
        self._added = raw.get_added_tokens_decoder()
        self.special_tokens: dict[str, int] = {a.content: i for i, a in sorted(self._added.items()) if a.special}
        self.special_ids = frozenset(self.special_tokens.values())
        self.vocab_size = raw.get_vocab_size()
        self.added_ids = frozenset(self._added)
        self._never_from_text = self.special_ids - {raw.token_to_id(getattr(raw.model, "unk_token", None) or "")}
        self._pieces = Pieces(raw, self._added, what)

    @classmethod
    def from_bytes(cls, tokenizer_json: bytes, named: Mapping[str, str], what: str = "tokenizer.json") -> Tokenizer:
        """Build from the bytes of tokenizer.json, which is `what` in errors, and the texts of named tokens.

        Raises:
            EngineError: the library cannot read tokenizer.json, or its steps multiply a text without bound.
        """
        from tokenizers import Tokenizer as RawTokenizer

        check_steps(tokenizer_json, what)
        with library_errors(f"read {what}"), panics_unprinted():
            raw = RawTokenizer.from_buffer(tokenizer_json)
            raw.no_truncation()
            raw.no_padding()
        return cls(raw, named, what)

    def token_to_id(self, token: str) -> int | None:
        text_of("token", token)
        return self._raw.token_to_id(token)

    def encode(self, text: str, *, special: bool = False, bos: bool = True) -> list[int]:
        """Ids of `text`; `bos` adds the tokens that belong around a text (usually BOS in front).

        With `special` False a special token spelled in the text is split into plain pieces. With `special` True a text
        that spells BOS itself gets no second one.

        Raises:
            RecipeError: the text is not valid Unicode, or a special token in it cannot be split.
        """
        _check_text(text)
        if special or not self._may_hold_special(text):
            ids, first = self._encode(self._raw, text, bos), list(self.front)
            doubled = bos and first and ids[len(first) : 2 * len(first)] == first
            return ids[len(first) :] if doubled else ids
        plain, _ = self._plain
        self._check_plain(self._encode(plain, text, bos=False))
        return self._encode(plain, text, bos)

    def has(self, token: int) -> bool:
        """True if a token has this id."""
        return 0 <= token < 1 << 32 and self._raw.id_to_token(token) is not None

    @cached_property
    def byte_level(self) -> bool:
        """True if one of its steps is ByteLevel."""
        raw = self._raw
        steps = (raw.normalizer, raw.pre_tokenizer, raw.post_processor, raw.decoder)
        states: list[dict[str, Any]] = [json.loads(step.__getstate__()) for step in steps if step is not None]
        parts = [part for state in states for inner in state.values() if isinstance(inner, list) for part in inner]
        return any(isinstance(part, dict) and part.get("type") == "ByteLevel" for part in (*states, *parts))

    @property
    def front(self) -> tuple[int, ...]:
        """The ids in front of a text: those of the post-processor unless `begin_with` says otherwise."""
        return self.around[0] if self._front is None else self._front

    def begin_with(self, bos: int | None) -> None:
        """Put this token in front of each text, or none, where the post-processor says otherwise."""
        if self.around[0][:1] != (() if bos is None else (bos,)):
            self._front = () if bos is None else (bos,)

    @cached_property
    def around(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The ids that the post-processor puts in front of a text (usually BOS), and those that it puts behind."""
        with library_errors(f"encode a text with {self._what}"), panics_unprinted():
            plain, whole = (self._raw.encode("a", add_special_tokens=added).ids for added in (False, True))
        starts = range(len(whole) - len(plain) + 1)
        start = next((at for at in starts if whole[at : at + len(plain)] == plain), 0) if plain else len(whole)
        return tuple(whole[:start]), tuple(whole[start + len(plain) :])

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

    def decode(self, ids: Sequence[int], *, skip_special: bool = True, after: Sequence[int] = ()) -> str:
        """Text of `ids`; ids without a token give no text, bytes that are not UTF-8 give U+FFFD.

        With ids `after` which they stand, the text that they add: sentencepiece drops the space of a text's first word,
        and only of that. Equal to the tokenizers library, except for byte-fallback runs with an invalid byte: the valid
        characters of the run are kept (as in sentencepiece), since a stream has already shown them; and except for
        added tokens, which are literal text (findings/tokenizers-decodes-added-tokens-as-bytes.sh).
        """
        stream = self.detokenizer(skip_special=skip_special, after=_numbers(after))
        return "".join([*(stream.push(token) for token in _numbers(ids)), stream.finish()])

    def detokenizer(self, *, skip_special: bool = True, after: Sequence[int] = ()) -> Detokenizer:
        return self._pieces.detokenizer(self.special_ids if skip_special else frozenset(), after)

    def token_bytes(self, token: int) -> bytes:
        """The bytes one token stands for inside a text; b"" if no token has this id."""
        return self._pieces.bytes_of(token)

    def text_of(self, token: int) -> str:
        """The text that one token stands for inside a text, with U+FFFD for a part of a character; "" for no token."""
        return self.token_bytes(token).decode("utf-8", "replace")

    def require_rows(self, ids: Sequence[int], rows: int) -> None:
        """Refuse a token for which a model with so many rows in its embedding has none.

        Raises:
            RecipeError: there is one; names it.
        """
        if max(ids, default=0) < rows:
            return
        beyond = next(token for token in ids if token >= rows)
        if name := self.text_of(beyond):
            raise RecipeError(
                f"cannot run a prompt with {name!r} (id {beyond})",
                found=f"an embedding of {rows} rows, none of them for this token",
                fix="a prompt without it",
            )

    def _encode(self, raw: RawTokenizer, text: str, bos: bool) -> list[int]:
        with library_errors(f"encode a text with {self._what}"), panics_unprinted():
            ids = raw.encode(text, add_special_tokens=bos).ids
        return [*self._front, *ids[len(self.around[0]) :]] if bos and self._front is not None else ids

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
