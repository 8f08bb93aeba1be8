"""The size of the chunks in which weights are read, by the memory that a build may use."""

from __future__ import annotations

import pytest

from llmc.compiler.engine import weights
from llmc.runtime.errors import ResourceError


@pytest.mark.parametrize("free", [0, 20, 100, 1 << 14])
def test_chunks_leave_room_for_the_twenty_that_are_held(monkeypatch: pytest.MonkeyPatch, free: int):
    """Beyond chunks of 1 MiB, the memory in use, what comes later and twenty chunks stay within the limit."""
    monkeypatch.setattr(weights, "resident_memory", lambda: 300 << 20)
    limit = (300 + 112 + 16 + free) << 20
    chunk = weights.chunk_bytes(limit)
    assert 1 << 20 <= chunk <= weights.CHUNK_BYTES
    assert chunk == 1 << 20 or (300 + 112 << 20) + 20 * chunk <= limit
    with pytest.raises(ResourceError, match=r"cannot build within .* MiB"):
        weights.chunk_bytes(((300 + 112 + 16) << 20) - 1)
