"""A session on a lent GPU, without one: parts keep their time, results are there whatever fails, packs are found."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.paths import ROOT

sys.path.append(str(ROOT / "benchmarks"))
import gpu_engines  # pyright: ignore[reportMissingImports]
import gpu_pack  # pyright: ignore[reportMissingImports]
import gpu_sanitize  # pyright: ignore[reportMissingImports]
import gpu_session  # pyright: ignore[reportMissingImports]
from gpu_engines import EngineSpec  # pyright: ignore[reportMissingImports]
from gpu_session import Part, Session  # pyright: ignore[reportMissingImports]

from llmc.compiler.targets.cuda.cubins import compile
from llmc.compiler.targets.cuda.cubins.cache import TOOLS, KernelCache, Tools, key_of, sources_of
from llmc.compiler.targets.cuda.cubins.compile import variant_of
from llmc.compiler.targets.cuda.cubins.pack import write_pack
from llmc.compiler.targets.cuda.kernels import suites
from llmc.runtime.errors import RecipeError
from llmc.runtime.progress import NO_PROGRESS

WRITES = "import json, sys; json.dump({'tokens_per_s': 7}, open(sys.argv[sys.argv.index('--out') + 1], 'w'))"
HANGS = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(60)'])"


def part(name: str, code: str, limit: int = 30) -> Part:
    return Part(name, "some", limit, ("-c", code))


def session(folder: Path, **changes: Any) -> Session:
    return replace(Session("some", 60, False, folder / "work", folder / "out"), **changes)


def results(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "out" / "gpu-some.json").read_text())["parts"]


def test_a_part_that_fails_costs_only_itself(tmp_path: Path):
    parts = [part("fails", "print('last words'); raise SystemExit(3)"), part("writes", WRITES)]
    assert not session(tmp_path).run(parts)
    found = results(tmp_path)
    assert (found["fails"]["exit"], found["fails"]["said"]) == (3, "last words")
    assert (found["writes"]["exit"], found["writes"]["result"]) == (0, {"tokens_per_s": 7})
    assert "last words" in (tmp_path / "out" / "gpu-some.log").read_text()


def test_a_part_that_hangs_is_ended_with_all_it_started(tmp_path: Path):
    began = time.monotonic()
    assert not session(tmp_path).run([part("hangs", HANGS, limit=1)])
    assert results(tmp_path)["hangs"]["exit"] == 124 and time.monotonic() - began < 20


def test_what_no_longer_fits_is_left_out_by_name(tmp_path: Path):
    times = iter([0.0, 1.0, 2.0, 50.0, 50.0])
    made = session(tmp_path, clock=lambda: next(times))
    assert not made.run([part("writes", WRITES), part("late", WRITES)])
    assert results(tmp_path)["late"] == {"left out": "10 s left"}
    assert gpu_session.told(part("late", ""), {"left out": "10 s left"}) == "left out, 10 s left"
    done = {"exit": 0, "seconds": 3.2, "build seconds": 40.0}
    assert gpu_session.told(part("one", ""), done) == "exit 0 after 3 s of at most 30, engine built in 40 s"


def test_results_of_an_earlier_session_are_not_this_ones(tmp_path: Path):
    assert session(tmp_path).run([part("one", WRITES)])
    assert session(tmp_path).run([part("one", "pass")])
    assert "result" not in results(tmp_path)["one"]


def test_parts_are_chosen_by_name_and_group():
    assert gpu_session.chosen([]) == list(gpu_session.PARTS)
    assert [one.name for one in gpu_session.chosen(["load_fp8", "kernels"])] == ["kernels", "load_fp8"]
    assert {one.group for one in gpu_session.chosen(["decode"])} == {"decode"}
    with pytest.raises(SystemExit, match="no part or group 'speed'"):
        gpu_session.chosen(["speed"])


def test_the_bits_of_peers_are_ours():
    decode = {"result": {"decode": [{"batch": 1, "tokens_per_s": 300.0}]}}
    peer = {"result": {"formats": {"int4": {"tokens_per_s": 200.0}, "fp8": {"not available": "ImportError"}}}}
    outcomes = {"decode_int4": decode, "decode_fp8": decode, "decode_bf16": {"exit": 124}, "peer_torchao": peer}
    assert gpu_session.ratios(outcomes) == {"decode int4 over transformers int4": 1.5}


def test_an_engines_name_tells_all_that_is_asked_for():
    spec = EngineSpec("8b", "nvfp4", 256, 2304, "fp8", "fp8")
    assert spec.path(Path("w"), 90) == Path("w/8b-nvfp4-afp8-kvfp8-b256-c2304-sm90.llmc")
    specs = {part.engine for part in gpu_session.PARTS if part.engine} | {*gpu_engines.SMALL_ENGINES}
    assert len({one.path(Path(), 90) for one in specs}) == len(specs)
    command = replace(spec, shape="pico").build_command(Path("w"), 90, "cpu,sm_{}")
    assert command[command.index("--target") + 1] == "cpu,sm_90" and "--random-weights" not in command


@pytest.mark.parametrize(
    ("said", "check", "code", "expected"),
    [
        ("x\n========= ERROR SUMMARY: 0 errors", "memcheck", 0, {"found": 0}),
        ("========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)", "racecheck", 0, {"found": 0}),
        ("========= Error: Device not supported\nERROR SUMMARY: 1 error", "memcheck", 1,
         {"not available": "========= Error: Device not supported"}),
        ("ERROR SUMMARY: 0 errors", "memcheck", 4, {"not available": "exit 4: ERROR SUMMARY: 0 errors"}),
        ("died", "memcheck", -9, {"not available": "exit -9: died"}),
    ],
)  # fmt: skip
def test_no_count_is_claimed_that_the_sanitizer_did_not_give(said: str, check: str, code: int, expected: Any):
    assert gpu_sanitize.verdict(said, check, code) == expected


def test_what_the_sanitizer_finds_is_told():
    found = gpu_sanitize.verdict("Invalid __global__ read\n========= ERROR SUMMARY: 2 errors", "memcheck", 86)
    assert found["found"] == 2 and "Invalid" in found["said"]


def packed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A pack of the cases of one kernel file, made of a user's cache in which they lie."""
    tools = Tools("3.9.0", "assembler")
    monkeypatch.setattr(Tools, "installed", staticmethod(lambda: tools))
    monkeypatch.setenv("LLMC_CACHE", str(folder / "user"))
    wanted = [variant_of(case.call) for case in suites()["sampling.tokens"].cases()]
    answer = {"sm": 90, "data": "AAAA", "entry": "e", "types": [], "warps": 1, "ctas": 1, "shared": 0}
    answer |= {"global_scratch": 0, "global_scratch_align": 1, "profile_scratch": 0, "profile_scratch_align": 1}
    answer |= {"pdl": True, "cooperative": False, "registers": 9, "spills": 0, "local": 0, "ptx": "ptx"}
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
    wanted = [variant_of(case.call) for case in suites()["sampling.tokens"].cases()]
    found = compile.compile_variants(wanted, 90, progress=NO_PROGRESS)
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


def test_small_engines_are_the_packs_where_it_has_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    carried, other = gpu_engines.CARRIED[0], gpu_engines.SMALL_ENGINES[0]
    built: list[EngineSpec] = []
    monkeypatch.setattr(EngineSpec, "built", lambda spec, work, sm, _: built.append(spec) or spec.path(work, sm))
    monkeypatch.setenv("LLMC_CACHE", str(tmp_path / "user"))
    assert gpu_engines.carried() is None
    pack = packed(tmp_path, monkeypatch)
    assert gpu_engines.carried() == pack
    path = carried.path(pack / "engines", 90)
    path.parent.mkdir()
    path.touch()
    assert gpu_engines.small_engine(carried, tmp_path, 90) == path
    assert gpu_engines.small_engine(carried, tmp_path, 80) == carried.path(tmp_path, 80)
    assert gpu_engines.small_engine(other, tmp_path, 90) == other.path(tmp_path, 90)
    assert built == [carried, other]


def test_a_pack_has_every_case_that_the_chip_can_run():
    wanted = {*gpu_pack.of_kernels(90)}
    cases = [case.call for suite in suites().values() for case in suite.cases()]
    assert {variant_of(call) for call in cases if call.kernel.minimum_sm <= 90} <= wanted
    assert len({*gpu_pack.of_kernels(80)}) < len(wanted)
