"""What one token of a vocabulary stands for inside a text, and the text of several where only the library knows it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING

from ..errors import EngineError, LlmcError
from ..guard.panics import panics_unprinted
from ..guard.shortage import shortage
from .detokenizer import BYTE_OF_CHARACTER, ByteDetokenizer, Detokenizer, WindowDetokenizer, byte_style

if TYPE_CHECKING:
    from tokenizers import AddedToken
    from tokenizers import Tokenizer as RawTokenizer

_NEIGHBOUR, _STAND_IN = "\U0010fff4", "\U0010fff2{}\U0010fff3"
"""Texts that no decoder changes: an ordinary token, and one in the place of an added token."""


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


class Pieces:
    """The tokens of a vocabulary as text. `added` are its added tokens by id, `what` is its file in errors."""

    def __init__(self, raw: RawTokenizer, added: Mapping[int, AddedToken], what: str) -> None:
        self._raw, self._added, self._what = raw, added, what
        self._bytes: dict[int, bytes] = {}
        self._style = byte_style(json.loads(raw.decoder.__getstate__())) if raw.decoder is not None else None

    def detokenizer(self, skipped: frozenset[int], after: Sequence[int]) -> Detokenizer:
        if self._style is None:
            return WindowDetokenizer(self.decode, skipped, after)
        return ByteDetokenizer(self.bytes_of, skipped, self._style, after)

    def bytes_of(self, token: int, first: bool = False) -> bytes:
        """The bytes one token stands for inside a text, or as the `first` token of one; b"" if no token has this id."""
        if first and (piece := self._piece(token)) is not None and not self._is_literal(token):
            return self._bytes_of_piece(token, piece.replace("▁", ""))
        known = self._bytes.get(token)
        if known is None:
            piece = self._piece(token)
            known = self._bytes[token] = b"" if piece is None else self._bytes_of_piece(token, piece)
        return known

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids` as the library decodes them, with literal tokens as they are spelled."""
        if not ids:
            return ""  # a Strip decoder that cuts at the end panics
        with self._decoding():
            if not self._changed.intersection(ids):
                return self._raw.decode(list(ids), skip_special_tokens=False)
            return self._decode([(token, self._piece(token)) for token in ids])

    @contextmanager
    def _decoding(self) -> Iterator[None]:
        with library_errors(f"decode tokens with {self._what}"), panics_unprinted():
            yield

    def _piece(self, token: int) -> str | None:
        return self._raw.id_to_token(token) if 0 <= token < 1 << 32 else None

    def _bytes_of_piece(self, token: int, piece: str) -> bytes:
        if self._style is None:
            with self._decoding():
                text = self._decode([(-1, _NEIGHBOUR), (token, piece)])
            return text[len(_NEIGHBOUR) :].encode("utf-8", "replace")
        if self._is_literal(token):
            return piece.encode()
        if not self._style.letters_are_bytes:
            byte = re.fullmatch("<0x([0-9A-Fa-f]{2})>", piece) if self._style.fallback else None
            return bytes.fromhex(byte[1]) if byte else piece.replace("▁", " ").encode()
        try:
            return bytes(BYTE_OF_CHARACTER[character] for character in piece)
        except KeyError:
            return piece.encode()

    def _is_literal(self, token: int) -> bool:
        """True for an added token that nothing but its own spelling in a text gives.

        In a byte-level vocabulary all are: they are matched before letters become bytes. Elsewhere one that the model
        knows too may come from its merges, and one that is normalized from what the normalizer wrote: Gemma's "▁▁" are
        two spaces.
        """
        model = self._added.get(token)
        if model is None or model.special or (self._style is not None and self._style.letters_are_bytes):
            return model is not None
        return not model.normalized and self._raw.model.token_to_id(model.content) is None

    def _decode(self, tokens: Iterable[tuple[int, str | None]]) -> str:
        """The text of tokens given as (id, spelling)."""
        pieces = [(token, piece) for token, piece in tokens if piece is not None]
        stand_ins = {token: _STAND_IN.format(token) for token, _ in pieces if token in self._changed}
        shown = [stand_ins.get(token, piece) for token, piece in pieces]
        text = " ".join(shown) if self._raw.decoder is None else self._raw.decoder.decode(shown)
        for token, stand_in in stand_ins.items():
            text = text.replace(stand_in, self._added[token].content)
        return text

    @cached_property
    def _changed(self) -> frozenset[int]:
        """Literal tokens whose spelling the decoder changes, such as "##a" in WordPiece."""
        if self._raw.decoder is None or self._style is not None:
            return frozenset()
        decode = self._raw.decoder.decode
        return frozenset(
            token
            for token, added in self._added.items()
            if self._is_literal(token)
            and not all(added.content in decode(near) for near in ([added.content], [_NEIGHBOUR, added.content]))
        )
