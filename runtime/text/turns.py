"""Keeps a conversation within a context: when it is full, its oldest turns are dropped and its system message stays."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Message = Mapping[str, Any]


@dataclass(frozen=True)
class Fitted:
    """A conversation that fits."""

    messages: tuple[Message, ...]
    ids: tuple[int, ...]
    """Its tokens, ready for an answer."""
    dropped: int
    """Turns that were left out: a turn is a message of the user with all that follows it."""


def fit(
    messages: Sequence[Message], encode: Callable[[Sequence[Message]], Sequence[int]], context: int, max_tokens: int
) -> Fitted:
    """The conversation without its oldest turns, if it leaves less room for an answer than a quarter of the context
    and than `max_tokens`. Then half of the context is freed, so that the next turns find their beginning in the cache
    instead of losing a turn each. The last turn always stays.

    Raises the errors of `encode`.
    """
    ids = encode(messages)  # it refuses what is no conversation
    starts = [index for index, message in enumerate(messages) if message["role"] == "user"]
    if len(ids) <= context - min(max_tokens, context // 4):
        return Fitted(tuple(messages), tuple(ids), 0)
    kept, dropped = tuple(messages), 0
    while len(ids) > context // 2 and dropped < len(starts) - 1:
        dropped += 1
        kept = (*messages[: starts[0]], *messages[starts[dropped] :])
        ids = encode(kept)
    return Fitted(kept, tuple(ids), dropped)
