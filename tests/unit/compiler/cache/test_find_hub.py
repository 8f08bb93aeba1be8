"""Hub ids in the cache of engines: the hub is asked only where something has to be built."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from support.engines import build_cached, find_cached

from llmc.compiler.cache import find as cache
from llmc.compiler.cache.find import Wish
from llmc.runtime.engine_file.file import EngineFile
from llmc.runtime.errors import CheckpointError, ResourceError

COMMIT, LATER = "0123456789abcdef0123456789abcdef01234567", "89abcdef0123456789abcdef0123456789abcdef"


@pytest.fixture
def hub(tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The repository org/name of a Hugging Face cache, whose hub must not be asked."""
    repository = tmp_path / "hub" / "models--org--name"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    shutil.copytree(checkpoint, repository / "snapshots" / COMMIT)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))

    def asked(*_: object, **__: object) -> None:
        raise AssertionError("the hub was asked")

    monkeypatch.setattr("huggingface_hub.snapshot_download", asked)
    return repository


def test_a_hub_id_in_the_cache_is_run_without_asking_the_hub(hub: Path, monkeypatch: pytest.MonkeyPatch):
    found = build_cached(hub / "snapshots" / COMMIT)
    for name in ("org/name", "hf://org/name@main", f"org/name@{COMMIT}"):
        assert cache.was_built(name) and find_cached(name).path == found.path
    with EngineFile.open(found.path) as engine:
        assert (engine.manifest.checkpoint.hub_id, engine.manifest.checkpoint.revision) == ("org/name", COMMIT)
    with pytest.raises(ResourceError, match="the hub was asked"):
        find_cached("org/name", Wish.of(None, quantize="int4"))
    with pytest.raises(ResourceError, match="the hub was asked"):
        find_cached("org/other")


def test_a_hub_id_that_moved_is_asked_for(hub: Path, tmp_path: Path):
    build_cached(hub / "snapshots" / COMMIT)
    shutil.copytree(hub / "snapshots" / COMMIT, hub / "snapshots" / LATER)
    (hub / "refs" / "main").write_text(LATER)
    assert not cache.was_built("org/name")
    with pytest.raises(ResourceError, match="the hub was asked"):
        find_cached("org/name")
    assert find_cached(f"org/name@{COMMIT}").ready
    (hub / "refs" / "main").write_text("../../../../checkpoint")
    with pytest.raises(ResourceError, match="the hub was asked"):
        find_cached("org/name")


def test_a_snapshot_that_is_not_whole_is_completed_by_the_hub_s_client(hub: Path):
    build_cached(hub / "snapshots" / COMMIT)
    (hub / "snapshots" / COMMIT / "model.safetensors").unlink()
    with pytest.raises(ResourceError, match="the hub was asked"):
        find_cached("org/name")
    with pytest.raises(CheckpointError, match="expected weights in"):
        find_cached(hub / "snapshots" / COMMIT)
