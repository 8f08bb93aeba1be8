"""Machine code of an engine can be made again from its sources, and code that was not made from them is found."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from support.commands import Call
from support.engines import NARROW, forge, small_checkpoint

import llmc
from llmc.compiler.targets.cuda.cubins import rebuild
from llmc.compiler.targets.cuda.cubins.cache import KernelCache
from llmc.compiler.targets.cuda.cubins.compile import Cubin, Specialization
from llmc.runtime.engine_file.file import EngineFile
from llmc.runtime.engine_file.manifest import Manifest
from llmc.runtime.errors import VerifyError
from llmc.runtime.progress import Progress

SHORT = {**NARROW, "max_position_embeddings": 64}  # no kernels of large steps
CUBINS, PTX, PLAN = (f"profiles/sm_90/{name}" for name in ("kernels.cubins", "kernels.ptx", "plan.json"))


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    return Call(capsys)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rebuild")
    checkpoint = small_checkpoint(folder / "c", tokenizer=False, num_hidden_layers=1, **SHORT)
    return llmc.build(checkpoint, folder / "e.llmc", targets=["cpu", "sm_90"], max_batch=1)


@pytest.fixture(scope="module")
def made() -> dict[Specialization, Cubin]:
    """What the compiler has made of each kernel, without any cache, since this file began."""
    return {}


@pytest.fixture(autouse=True)
def _compiled_once(
    made: dict[Specialization, Cubin], request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The compiler takes its time: the soak test asks it for all kernels, the others for three and the cache for the
    rest, once for each: that it answers the same when it is asked again is what the soak test is about."""
    whole = request.node.get_closest_marker("soak") is not None
    real = rebuild.compile_all

    def once(
        specializations: list[Specialization], sm: int, *, progress: Progress, cache: KernelCache
    ) -> dict[Specialization, Cubin]:
        assert cache.folder is None, "a cache would answer instead of the compiler"
        missing = [specialization for specialization in specializations if specialization not in made]
        fresh = len(missing) if whole else 3
        for some, answers in ((missing[:fresh], cache), (missing[fresh:], KernelCache.default())):
            made.update(real(some, sm, progress=progress, cache=answers))
        return {specialization: made[specialization] for specialization in specializations}

    monkeypatch.setattr(rebuild, "compile_all", once)


def section(path: Path, name: str) -> bytes:
    with EngineFile.open(path) as opened:
        return opened.section(name)


@pytest.mark.soak
def test_a_whole_engine_compiles_to_the_same_bytes(engine: Path, call: Call, made: dict[Specialization, Cubin]):
    made.clear()
    count = len(json.loads(section(engine, PLAN))["modules"])
    code, said = call("verify", engine, "--profile", "cpu", "--rebuild-kernels")
    assert code == 0
    assert f"profile sm_90: {count} kernels compile to the same bytes" in said
    assert len(made) == count


@pytest.mark.parametrize(("name", "prefix"), [(CUBINS, ""), (PTX, "ptx_")])
def test_code_that_was_changed_is_named(engine: Path, call: Call, tmp_path: Path, name: str, prefix: str):
    """Every digest is right: only compiling again can tell."""
    facts = json.loads(section(engine, PLAN))["modules"][0]["code"]
    code = bytearray(section(engine, name))
    code[facts[f"{prefix}offset"] + facts[f"{prefix}size"] // 2] ^= 1
    forged = forge(engine, tmp_path / "forged.llmc", sections={name: bytes(code)})
    assert call("verify", forged, "--profile", "cpu")[0] == 0
    exit_code, said = call("verify", forged, "--profile", "cpu", "--rebuild-kernels")
    assert exit_code == 1
    assert "1 of " in said and " kernels differ, first " in said
    assert "do not run it" in said


def test_what_a_kernel_is_launched_with_is_compared(engine: Path, call: Call, tmp_path: Path):
    """With less shared memory or scratch than it needs, good code would write elsewhere."""
    plan = json.loads(section(engine, PLAN))
    plan["modules"][0]["code"]["shared"] += 16
    changed = json.dumps(plan, sort_keys=True, separators=(",", ":")).encode()
    forged = forge(engine, tmp_path / "forged.llmc", sections={PLAN: changed})
    exit_code, said = call("verify", forged, "--profile", "cpu", "--rebuild-kernels")
    assert (exit_code, "first what " in said and " is launched with" in said) == (1, True), said


def test_trust_in_what_can_be_made_again_asks_the_cache_first(engine: Path, monkeypatch: pytest.MonkeyPatch):
    """So a second start compiles nothing: the keys of the cache are digests of this llmc's sources and tools."""
    asked: list[KernelCache] = []

    def never(_: object, __: int, *, progress: Progress, cache: KernelCache) -> dict[Specialization, Cubin]:
        asked.append(cache)
        raise VerifyError("cannot be reached")

    monkeypatch.setattr(rebuild, "compile_all", never)
    with EngineFile.open(engine) as opened, pytest.raises(VerifyError):
        rebuild.judge(opened, "sm_90")
    assert asked == [KernelCache.default()] and asked[0].folder is not None


@pytest.mark.parametrize("tool", ["triton", "ptxas", "kernels"])
def test_what_need_not_agree_is_refused(engine: Path, call: Call, tmp_path: Path, tool: str):
    def older(manifest: Manifest) -> Manifest:
        return replace(manifest, tools={**manifest.tools, tool: "3.0.0"})

    if tool != "kernels":
        forged = forge(engine, tmp_path / "forged.llmc", manifest=older)
        reason = f"built with {tool} 3.0.0, here is "
    else:
        plan = json.loads(section(engine, PLAN))
        changed = json.dumps({**plan, "kernels": "0" * 64}, sort_keys=True, separators=(",", ":")).encode()
        forged = forge(engine, tmp_path / "forged.llmc", sections={PLAN: changed})
        reason = "built from other sources than this llmc has"
    exit_code, said = call("verify", forged, "--profile", "cpu", "--rebuild-kernels")
    assert (exit_code, reason in said) == (3, True), said
