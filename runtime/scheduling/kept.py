"""Blocks of caches with windows: they cannot be shared, but a finished sequence's are kept for a request that continues
it, such as the next turn of a conversation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .executor import CacheKind, Lease


def common_prefix(one: Sequence[int], other: Sequence[int]) -> int:
    """The number of first tokens that are equal."""
    pairs = zip(one, other, strict=False)
    return next((index for index, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def continues(length: int, tokens: Sequence[int]) -> bool:
    """Whether a request with the first `length` tokens of a finished sequence belongs to its conversation.

    Equal system messages are no reason to give up the rest of a sequence.
    """
    return 0 < len(tokens) <= 2 * length


@dataclass(frozen=True, slots=True, eq=False)
class _Kept:
    """A finished sequence."""

    tokens: tuple[int, ...]
    blocks: tuple[tuple[int, ...], ...]
    written: int
    """Positions that were computed: in a ring they have overwritten older ones, also those beyond `tokens`."""


class KeptPool:
    """Any kinds of cache (`executor.Pool`). The sequence that was given back first is dropped first, as a whole."""

    def __init__(self, kinds: Sequence[CacheKind], block_tokens: int) -> None:
        self._kinds, self._size = tuple(kinds), block_tokens
        self._unused = [list(range(kind.blocks)) for kind in kinds]
        self._kept: list[_Kept] = []

    @property
    def free(self) -> tuple[int, ...]:
        return tuple(self._room(index, self._kept) for index in range(len(self._kinds)))

    def take(self, prompt: Sequence[int], length: int, *, reuse: bool = True) -> Lease | None:
        cached, source = self._continued(prompt) if reuse else (0, None)
        own = [list(blocks) for blocks in source.blocks] if source else [[] for _ in self._kinds]
        wanted = [-(-kind.kept(length) // self._size) for kind in self._kinds]
        others = [one for one in self._kept if one is not source]
        if any(count - len(own[index]) > self._room(index, others) for index, count in enumerate(wanted)):
            return None
        self._kept = others
        while any(count - len(own[index]) > len(self._unused[index]) for index, count in enumerate(wanted)):
            self._free(self._kept.pop(0).blocks)
        for index, (blocks, count) in enumerate(zip(own, wanted, strict=True)):
            self._unused[index] += blocks[count:]
            del blocks[count:]
            while len(blocks) < count:
                blocks.append(self._unused[index].pop(0))
        return Lease(tuple(map(tuple, own)), cached)

    def remember(self, tokens: Sequence[int], lease: Lease) -> None:
        pass  # nobody else reads the blocks before they are given back

    def give(self, tokens: Sequence[int], lease: Lease, written: int) -> None:
        if tokens:
            self._kept.append(_Kept(tuple(tokens), lease.blocks, written))
        else:
            self._free(lease.blocks)

    def _free(self, blocks: Sequence[Sequence[int]]) -> None:
        for unused, own in zip(self._unused, blocks, strict=True):
            unused += own

    def _room(self, kind: int, kept: Sequence[_Kept]) -> int:
        return len(self._unused[kind]) + sum(len(one.blocks[kind]) for one in kept)

    def _continued(self, prompt: Sequence[int]) -> tuple[int, _Kept | None]:
        """The longest beginning of a prompt that a finished sequence has; the one given back last, if several have."""
        best: tuple[int, _Kept | None] = 0, None
        for one in self._kept:
            length = common_prefix(prompt[:-1], one.tokens)
            if continues(length, one.tokens) and length >= best[0] and self._holds(one, length):
                best = length, one
        return best

    def _holds(self, one: _Kept, length: int) -> bool:
        """Whether the rings still hold what the token after the first `length` reads: later ones overwrite it."""
        for kind, blocks in zip(self._kinds, one.blocks, strict=True):
            if kind.positions is None:
                continue
            room, reads = len(blocks) * self._size, kind.positions if kind.window is None else kind.window
            if one.written > room and one.written - length > room - reads:
                return False
        return True
