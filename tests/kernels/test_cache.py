"""The kernel cache by itself: what its keys cover, which folder it takes, and that nobody sees half an entry."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from llmc.compiler.targets.cuda.cubins import cache
from llmc.compiler.targets.cuda.cubins.cache import KernelCache, Tools
from llmc.runtime.errors import EngineError


def test_the_key_has_the_installed_tools(monkeypatch: pytest.MonkeyPatch):
    before = KernelCache(None).tools
    assert before == Tools.installed() and (before.ptxas, before.nvrtc) == ("V13.0.88", "13.0.88")
    monkeypatch.setattr(cache, "assembler_version", lambda: "99")
    monkeypatch.setattr(cache, "compiler_version", lambda: "98")
    monkeypatch.setattr(cache.importlib.metadata, "version", lambda name: "4.0")
    assert KernelCache(None).tools == Tools("4.0", "99", "98")


def test_sources_are_followed_through_imports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = tmp_path / "compiler" / "targets" / "cuda" / "kernels"
    folder.mkdir(parents=True)
    files = {
        folder / "__init__.py": "",
        folder / "a.py": "from .b import f\nfrom . import d\n\n\ndef cases():\n    from . import late\n",
        folder / "b.py": "if True:\n    from ..call import X\nimport os\n",
        folder / "d.py": "",
        folder / "late.py": "",
        folder / "unrelated.py": "",
        folder.parent / "call.py": "from ....runtime import numbers\n",
        folder.parent / "worker.py": "",
        tmp_path / "runtime" / "numbers.py": "",
    }
    (tmp_path / "runtime").mkdir()
    for path, text in files.items():
        path.write_text(text)
    for name, path in (("_PACKAGE", tmp_path), ("_KERNELS", folder), ("_WORKER", folder.parent / "worker.py")):
        monkeypatch.setattr(cache, name, path)
    before, everything = cache.sources_of("a"), cache.source_digest()
    changed, all_changed = set(), set()
    for path, text in files.items():
        path.write_text(text + "# changed\n")
        changed |= {path.stem} if cache.sources_of("a") != before else set()
        all_changed |= {path.stem} if cache.source_digest() != everything else set()
        path.write_text(text)
    assert changed == {"a", "b", "d", "call", "worker", "numbers"}
    assert all_changed == {"__init__", "a", "b", "d", "late", "unrelated", "call", "numbers"}


def test_the_environment_chooses_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LLMC_CACHE", str(tmp_path))
    assert KernelCache.default().folder == tmp_path / "kernels"
    monkeypatch.setenv("LLMC_CACHE", "")
    assert KernelCache.default().folder is None
    monkeypatch.delenv("LLMC_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert KernelCache.default().folder == tmp_path / ".cache" / "llmc" / "kernels"


def test_a_damaged_pack_says_so(tmp_path: Path):
    (tmp_path / cache.TOOLS).write_text('{"triton": 3}')
    with pytest.raises(EngineError, match=r"tools\.json"):
        _ = KernelCache(tmp_path).packed


def test_writers_at_the_same_time_never_show_half_an_entry(tmp_path: Path):
    kept = KernelCache(tmp_path)
    answers = [{"data": letter * 200_000} for letter in "abc"]
    seen: list[Any] = []

    def write(answer: dict[str, str]) -> None:
        for _ in range(20):
            kept.save("key", answer)
            seen.append(kept.load("key"))

    threads = [threading.Thread(target=write, args=(answer,)) for answer in answers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) == 60
    assert all(answer in answers for answer in seen)
    assert [path.name for path in tmp_path.iterdir()] == ["key"]
