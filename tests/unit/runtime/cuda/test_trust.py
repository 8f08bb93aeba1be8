"""Machine code that llmc would not make is refused before a driver is given it, and so is PTX."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest
from support.fakes.driver import FakeApi
from support.toy_gpu import CUBINS, IMAGES, KERNELS, PTX, TEXTS, toy_engine, toy_plan

import llmc
from llmc.compiler.targets.cuda.cubins.cache import KernelCache
from llmc.runtime import load as loading
from llmc.runtime.cuda.contents import EngineContents
from llmc.runtime.cuda.device import CudaDevice
from llmc.runtime.cuda.driver import Driver
from llmc.runtime.cuda.trust import TRUST, by_digest, judge_of
from llmc.runtime.engine import Engine
from llmc.runtime.engine_file.file import EngineFile
from llmc.runtime.errors import RecipeError, VerifyError
from llmc.runtime.plan.plan import Plan


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> KernelCache:
    """What llmc has compiled on this machine: the toy's kernels."""
    monkeypatch.setenv("LLMC_CACHE", str(tmp_path / "cache"))
    cache = KernelCache.default()
    for name in ("take", "score", "choose"):
        cache.save(name, {"data": base64.b64encode(IMAGES[name]).decode(), "ptx": TEXTS[name]})
    return cache


def make(api: FakeApi) -> Any:
    def device(engine: EngineFile, profile: str, plan: Plan, slots: int) -> CudaDevice:
        return CudaDevice(EngineContents(engine, profile), plan, slots, driver=Driver(api))

    return device


def load(path: Path, api: FakeApi, judge: Any = by_digest) -> Engine:
    return loading.load(path, make_device=make(api), judge=judge)


def changed(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


@pytest.mark.parametrize("ptx", (b"", PTX), ids=("without PTX", "with PTX"))
def test_code_that_this_machine_has_compiled_runs(ptx: bytes, tmp_path: Path):
    api = FakeApi(KERNELS)
    with load(toy_engine(tmp_path / "e.llmc", toy_plan(ptx=bool(ptx)), ptx=ptx), api) as engine:
        assert engine.generate([3, 1, 4], max_tokens=2, ignore_eos=True).token_ids == [13, 26]


FOREIGN: dict[str, dict[str, Any]] = {
    "a changed cubin": {"cubins": changed(CUBINS)},
    "foreign PTX beside good cubins": {"plan": toy_plan(ptx=True), "ptx": changed(PTX)},
}


@pytest.mark.parametrize("parts", FOREIGN.values(), ids=FOREIGN)
def test_other_code_is_refused_before_the_driver_gets_it(parts: dict[str, Any], tmp_path: Path):
    """A driver that refuses the machine code would be given the PTX: both are judged."""
    api, path = FakeApi(KERNELS), toy_engine(tmp_path / "e.llmc", **parts)
    with pytest.raises(VerifyError, match="cannot trust the machine code of profile 'sm_90'") as caught:
        load(path, api)
    assert "1 of 3 kernels were not compiled on this machine, first choose" in str(caught.value)
    assert not api.loaded and not any(api.live.values())


def test_code_that_changed_places_is_still_ours(tmp_path: Path):
    """Digests tell whose code it is, not whether the plan launches it as it should: SECURITY.md says so."""
    path = toy_engine(tmp_path / "e.llmc", toy_plan(ptx=True), ptx=PTX)
    with EngineFile.open(path) as engine:
        by_digest(engine, "sm_90")


def test_without_a_cache_nothing_is_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = toy_engine(tmp_path / "e.llmc")
    for cache in ("", str(tmp_path / "none")):
        monkeypatch.setenv("LLMC_CACHE", cache)
        with pytest.raises(VerifyError, match="3 of 3 kernels were not compiled on this machine"):
            load(path, FakeApi(KERNELS))


def test_a_damaged_entry_is_no_entry(cache: KernelCache, tmp_path: Path):
    assert cache.folder is not None
    entry = cache.folder / "take"
    entry.write_bytes(changed(entry.read_bytes()))
    (cache.folder / "strange").write_text("not an entry")
    with pytest.raises(VerifyError, match="1 of 3 kernels were not compiled on this machine, first take"):
        load(toy_engine(tmp_path / "e.llmc"), FakeApi(KERNELS))


def test_rebuild_asks_the_compiler_that_is_brought(tmp_path: Path):
    asked: list[tuple[Path, str]] = []
    judge = judge_of("rebuild", lambda engine, profile: asked.append((engine.path, profile)))
    path = toy_engine(tmp_path / "e.llmc", cubins=changed(CUBINS))
    load(path, FakeApi(KERNELS), judge).close()
    assert asked == [(path, "sm_90")]


def test_any_takes_what_is_there_and_is_the_default(tmp_path: Path):
    path = toy_engine(tmp_path / "e.llmc", cubins=CUBINS)
    for judge in (judge_of("any", by_digest), judge_of(None, by_digest)):
        load(path, FakeApi(KERNELS), judge).close()


def test_an_unknown_trust_is_refused(pico_engine: Any):
    with pytest.raises(RecipeError, match=r"expected trust as any, digest, rebuild\n  found: 'digests' \(did you mean"):
        llmc.load(pico_engine("int8"), trust="digests")  # type: ignore[arg-type]


@pytest.mark.parametrize("trust", TRUST)
def test_a_cpu_profile_has_no_machine_code_to_judge(trust: Any, pico_engine: Any):
    with pytest.raises(RecipeError, match=r"expected a profile of a GPU in .* with --trust\n  found: profile cpu"):
        llmc.load(pico_engine("int8"), trust=trust)


def test_the_commands_judge(call: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    api = FakeApi(KERNELS)
    monkeypatch.setattr("llmc.runtime.profiles._lacking", lambda *_: "")
    monkeypatch.setattr(loading, "_real_device", lambda: make(api))
    good, bad = toy_engine(tmp_path / "g.llmc"), toy_engine(tmp_path / "b.llmc", cubins=changed(CUBINS))
    lines, ids = tmp_path / "lines.jsonl", tmp_path / "ids.json"
    lines.write_text('{"tokens": [3, 1, 4]}\n')
    ids.write_text("[[3, 1, 4]]")
    for command in (
        ("run", "--prompts", lines, "--max-tokens", 2),
        ("eval", "--tokens", ids),
        ("bench", "-p", 4, "-n", 2, "--repeat", 1),
    ):
        name, *more = command
        if name != "bench":  # which needs figures that the toy has not
            said = call(name, good, *more, "--trust", "digest")
            assert said.code == 0, said.err
        outcome = call(name, bad, *more, "--trust", "digest")
        assert outcome.code == 1 and "llmc: cannot trust the machine code of profile 'sm_90' of" in outcome.err, command
