"""Reference-counted cache blocks, and prefix sharing: a later request reads the full prompt blocks of an equal prefix
instead of computing them again (like vLLM's automatic prefix caching, but comparing tokens instead of hashes)."""

from __future__ import annotations

import itertools
from collections import Counter, OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

_Key = tuple[int, tuple[int, ...]]
"""Content of a block: the name of the prefix before it, and its tokens. Names are never reused: when a block gets new
content, the blocks after its old content become unreachable, instead of continuing another prefix."""
_ROOT = 0


@dataclass(frozen=True, slots=True)
class Allocation:
    """Blocks of one sequence; the first `cached` positions already hold the keys and values of its prompt."""

    blocks: tuple[int, ...]
    cached: int


class BlockPool:
    """Blocks of `block_tokens` positions. With `share`, full prompt blocks outlive their sequence until room is needed.

    A block is in use (by one sequence, or by several that share a prefix), or idle. Idle blocks without a remembered
    content are taken first, then the one released first; a prompt's last blocks before its first ones.
    """

    def __init__(self, count: int, block_tokens: int, *, share: bool) -> None:
        self._size, self._share = block_tokens, share
        self._idle: OrderedDict[int, None] = OrderedDict.fromkeys(range(count))
        self._users: Counter[int] = Counter()
        self._known: dict[_Key, tuple[int, int]] = {}
        self._key: dict[int, _Key] = {}
        self._names = itertools.count(_ROOT + 1)

    @property
    def available(self) -> int:
        """Blocks that no sequence uses."""
        return len(self._idle)

    def take(self, prompt: Sequence[int], positions: int, *, reuse: bool = True) -> Allocation | None:
        """Blocks for `positions` positions that begin with `prompt`, or None while there are too few.

        At least the prompt's last token is computed, for its logits; without `reuse` the whole prompt is.
        """
        shared = self._shared(prompt) if reuse and self._share else []
        wanted = -(-positions // self._size)
        fresh = wanted - len(shared)
        if fresh > self.available - sum(block in self._idle for block in shared):
            return None
        for block in shared:
            self._idle.pop(block, None)
            self._users[block] += 1
        blocks = [*shared, *(self._fresh() for _ in range(fresh))]
        return Allocation(tuple(blocks), len(shared) * self._size)

    def remember(self, tokens: Sequence[int], blocks: Sequence[int]) -> None:
        """Shares the first len(tokens) positions of `blocks`, which are computed now or before any later step."""
        if not self._share:
            return
        parent = _ROOT
        for index in range(len(tokens) // self._size):
            key = (parent, tuple(tokens[index * self._size : (index + 1) * self._size]))
            if key not in self._known:
                self._known[key] = blocks[index], next(self._names)
                self._key[blocks[index]] = key
            _, parent = self._known[key]

    def give(self, blocks: Sequence[int]) -> None:
        """Returns the blocks of a finished sequence; each loses one user."""
        for block in reversed(blocks):
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
