"""Packs of kernels stand in for a user's cache and a compiler, and are never made of a pack."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from support.paths import ROOT

from llmc.compiler.targets.cuda.cubins import compile
from llmc.compiler.targets.cuda.cubins.cache import TOOLS, KernelCache, Tools, key_of, sources_of
from llmc.compiler.targets.cuda.cubins.compile import specialization_of
from llmc.compiler.targets.cuda.kernels import suites
from llmc.runtime.errors import RecipeError
from llmc.runtime.progress import NO_PROGRESS

sys.path.append(str(ROOT / "benchmarks"))

from packing.pack import write_pack  # pyright: ignore[reportMissingImports]


def packed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A pack of the cases of one kernel file, made of a user's cache in which they lie."""
    tools = Tools("3.9.0", "assembler", "NVRTC")
    monkeypatch.setattr(Tools, "installed", staticmethod(lambda: tools))
    monkeypatch.setenv("LLMC_CACHE", str(folder / "user"))
    wanted = [specialization_of(case.call) for case in suites()["sampling.tokens"].cases()]
    code = {"entry": "e", "shared": 0, "registers": 9, "spills": 0, "pdl": True}
    answer = {"sm": 90, "data": "AAAA", "ptx": "ptx", "types": [], "local": 0, "code": code}
    for one in wanted:
        user = KernelCache(folder / "user" / "kernels")
        user.save(key_of(one.request(90), sources_of(one.file), tools), {**answer, "static_shared": 0})
    write_pack(folder / "pack" / "kernels", {90: wanted})
    monkeypatch.setenv("LLMC_CACHE", str(folder / "pack"))
    return folder / "pack"


def test_cases_are_found_in_a_pack_with_no_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    packed(tmp_path, monkeypatch)
    monkeypatch.setattr(Tools, "installed", staticmethod(lambda: pytest.fail("asked which tools are here")))
    monkeypatch.setattr(compile, "find_spec", lambda name: None)
    wanted = [specialization_of(case.call) for case in suites()["sampling.tokens"].cases()]
    found = compile.compile_all(wanted, 90, progress=NO_PROGRESS)
    assert len(found) == len({*wanted}) and all(cubin.data == b"\0\0\0" for cubin in found.values())
    assert KernelCache.default().tools.triton == "3.9.0"


def test_a_pack_is_not_made_of_a_pack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    packed(tmp_path, monkeypatch)
    with pytest.raises(RecipeError, match="a cache of compiled kernels"):
        write_pack(tmp_path / "second", {})
    monkeypatch.setenv("LLMC_CACHE", "")
    with pytest.raises(RecipeError, match="a cache of compiled kernels"):
        write_pack(tmp_path / "second", {})
    assert not (tmp_path / "second" / TOOLS).exists()
