"""Blocks of a cache whose sequences may share them: a later request reads the full blocks of an equal beginning instead
of computing them again (like vLLM's automatic prefix caching, but comparing tokens instead of hashes)."""

from __future__ import annotations

import itertools
from collections import Counter, OrderedDict
from collections.abc import Sequence

from .executor import CacheKind, Lease

_Key = tuple[int, tuple[int, ...]]
"""Content of a block: the name of the prefix before it, and its tokens. Names are never reused: when a block gets new
content, the blocks after its old content become unreachable, instead of continuing another prefix."""
_ROOT = 0


class SharedPool:
    """One kind of cache, of all positions (`executor.Pool`). Full blocks outlive their sequence until room is needed.

    A block is in use (by one sequence, or by several that share a prefix), or idle. Idle blocks without a remembered
    content are taken first, then the one released first; a sequence's last blocks before its first ones.
    """

    def __init__(self, kind: CacheKind, block_tokens: int) -> None:
        assert kind.positions is None, "only a cache of all positions is shared"
        self._size = block_tokens
        self._idle: OrderedDict[int, None] = OrderedDict.fromkeys(range(kind.blocks))
        self._users: Counter[int] = Counter()
        self._known: dict[_Key, tuple[int, int]] = {}
        self._key: dict[int, _Key] = {}
        self._names = itertools.count(_ROOT + 1)

    @property
    def free(self) -> tuple[int]:
        return (len(self._idle),)

    def take(self, prompt: Sequence[int], length: int, *, reuse: bool = True) -> Lease | None:
        shared = self._shared(prompt) if reuse else []
        fresh = -(-length // self._size) - len(shared)
        if fresh > len(self._idle) - sum(block in self._idle for block in shared):
            return None
        for block in shared:
            self._idle.pop(block, None)
            self._users[block] += 1
        blocks = [*shared, *(self._fresh() for _ in range(fresh))]
        return Lease((tuple(blocks),), len(shared) * self._size)

    def remember(self, tokens: Sequence[int], lease: Lease) -> None:
        (blocks,) = lease.blocks
        parent = _ROOT
        for index in range(len(tokens) // self._size):
            key = (parent, tuple(tokens[index * self._size : (index + 1) * self._size]))
            if key not in self._known:
                self._known.pop(self._key.get(blocks[index], key), None)  # after another beginning, of equal tokens
                self._known[key] = blocks[index], next(self._names)
                self._key[blocks[index]] = key
            _, parent = self._known[key]

    def give(self, tokens: Sequence[int], lease: Lease, written: int) -> None:
        self.remember(tokens, lease)
        for block in reversed(lease.blocks[0]):
            self._users[block] -= 1
            if self._users[block]:
                continue
            self._idle[block] = None
            if block not in self._key:
                self._idle.move_to_end(block, last=False)

    def _shared(self, prompt: Sequence[int]) -> list[int]:
        found: list[int] = []
        parent = _ROOT
        for index in range((len(prompt) - 1) // self._size):
            known = self._known.get((parent, tuple(prompt[index * self._size : (index + 1) * self._size])))
            if known is None:
                break
            block, parent = known
            found.append(block)
        return found

    def _fresh(self) -> int:
        block, _ = self._idle.popitem(last=False)
        if block in self._key:
            del self._known[self._key.pop(block)]
        self._users[block] = 1
        return block
