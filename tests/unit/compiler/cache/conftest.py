"""A cache of its own for each test, and a checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.engines import small_checkpoint


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache's folder of engines."""
    monkeypatch.setenv("LLMC_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "engines"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return small_checkpoint(tmp_path / "checkpoint", tokenizer=False)  # a tokenizer is tried in a process of its own
