"""Gives the cpu executor's slots to sequences: a slot keeps what a finished sequence left, memory is taken as requests
come, and a request that finds too little of it waits or fails alone."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from itertools import count
from typing import Protocol

from ..errors import ResourceError
from ..scheduling.executor import Lease
from ..scheduling.kept import common_prefix, continues

_LEAST_NEW = 2
"""Tokens of a prompt that are computed at least: of one row ONNX Runtime's sums differ in their last bits from those of
several, and a prompt's numbers must not depend on what ran before it."""


class Slots(Protocol):
    """What a pool asks of slots (`SlotCaches`)."""

    def bytes(self, positions: int) -> int: ...
    def filled(self, block: int) -> int: ...
    def holds(self, block: int, length: int) -> bool: ...
    def commit(self, block: int, positions: int) -> None: ...
    def keep(self, blocks: Collection[int]) -> None: ...


class SlotPool:
    """One kind of cache, whose blocks are slots of the whole context (`executor.Pool`).

    A slot is added only while all others are in use, so memory is that of the most sequences which ran at once. An idle
    slot whose sequence the prompt continues is taken first, then the one given back first.
    """

    def __init__(self, caches: Slots, slots: int, free_memory: Callable[[], int]) -> None:
        """`free_memory` gives the bytes that this process may still take."""
        self._caches, self._slots, self._free_memory = caches, slots, free_memory
        self._idle: dict[int, tuple[int, ...]] = {}
        """The tokens that idle blocks hold; the one given back first comes first."""
        self._promised: dict[int, int] = {}
        """Positions of the sequences in use, by block."""
        self._too_large: Sequence[int] | None = None
        """A prompt for which there is too little memory until a sequence ends."""

    @property
    def free(self) -> tuple[int]:
        return (self._slots - len(self._promised),)

    def take(self, prompt: Sequence[int], length: int, *, reuse: bool = True) -> Lease | None:
        if len(self._promised) == self._slots or self._too_large is prompt:
            return None
        block, cached = self._chosen(prompt, reuse)
        refusal = self._commit(block, length)
        if refusal is not None and self._idle.keys() - {block}:
            self._give_up(self._idle.keys() - {block})
            refusal = self._commit(block, length)
        if refusal is None:
            self._idle.pop(block, None)
            self._promised[block] = length
            return Lease(((block,),), cached)
        if not self._promised:
            raise refusal
        self._too_large = prompt
        return None

    def remember(self, tokens: Sequence[int], lease: Lease) -> None:
        pass  # nobody else reads a slot before it is given back

    def give(self, tokens: Sequence[int], lease: Lease, written: int) -> None:
        ((block,),) = lease.blocks
        del self._promised[block]
        self._idle[block] = tuple(tokens)
        self._too_large = None
        if not tokens:
            self._give_up({block})  # it may hold numbers that are not finite, which masks do not hide

    def _give_up(self, blocks: Collection[int]) -> None:
        for block in blocks:
            del self._idle[block]
        self._caches.keep({*self._promised, *self._idle})

    def _chosen(self, prompt: Sequence[int], reuse: bool) -> tuple[int, int]:
        """A block, and the number of the prompt's tokens that are in its slot."""
        if not self._idle:
            return next(block for block in count() if block not in self._promised), 0
        shared = {
            block: common_prefix(prompt[:-_LEAST_NEW], tokens) if reuse else 0 for block, tokens in self._idle.items()
        }
        block = max(shared, key=lambda one: shared[one] if continues(shared[one], self._idle[one]) else 0)
        cached = shared[block]
        return block, cached if cached and self._caches.holds(block, cached) else 0

    def _commit(self, block: int, length: int) -> ResourceError | None:
        """Commits a block for a sequence, or says why the memory for it and for what others will fill is not there."""
        wanted = {**self._promised, block: length}
        needed = sum(
            max(0, self._caches.bytes(positions) - self._caches.bytes(self._caches.filled(one)))
            for one, positions in wanted.items()
        )
        free = self._free_memory() if needed else 0
        if needed > free:
            size = self._caches.bytes(length)
            return ResourceError(
                f"cannot run a request of {length} tokens, prompt and answer: its cache takes {size / 1e9:.2f} GB",
                found=f"{free / 1e9:.2f} GB of memory free",
                fix="a shorter prompt or a smaller max_tokens",
            )
        try:
            self._caches.commit(block, length)
        except ResourceError as error:
            return error
        return None
