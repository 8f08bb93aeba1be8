"""Counter-based random numbers: a token depends on (seed, position) and not on batch, step or device.

Philox4x32-10 of Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3" (SC 2011); the constants and
the test vectors are those of the Random123 library. Triton's `tl.philox` is the same function.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np

Word = TypeVar("Word", int, np.ndarray)

_MASK = 0xFFFFFFFF
_MULTIPLIERS = 0xD2511F53, 0xCD9E8D57
_KEY_STEPS = 0x9E3779B9, 0xBB67AE85
_ROUNDS = 10


def philox4x32(counter: tuple[Word, Word, Word, Word], key: tuple[int, int]) -> tuple[Word, Word, Word, Word]:
    """Four random 32-bit words for a counter of four 32-bit words and a key of two.

    The counter's words are Python ints or uint64 arrays (one draw per element); the result has the same type, with
    values below 2^32.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        low = c0 * _MULTIPLIERS[0]
        high = c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (high >> 32) ^ c1 ^ k0, high & _MASK, (low >> 32) ^ c3 ^ k1, low & _MASK
        k0, k1 = (k0 + _KEY_STEPS[0]) & _MASK, (k1 + _KEY_STEPS[1]) & _MASK
    return c0, c1, c2, c3


def uniform(seed: int, position: int) -> float:
    """A number in the open interval (0, 1): (w + 1/2) / 2^32, where w is the first word of Philox.

    The key is the low and the high half of `seed` (0 <= seed < 2^64). The counter is (position low, position high, 0,
    0), where position is the index of the chosen token in its sequence. Exact in float64; 0 and 1 do not occur.
    """
    word, _, _, _ = philox4x32((position & _MASK, position >> 32, 0, 0), (seed & _MASK, seed >> 32))
    return (word + 0.5) / 4294967296.0
