"""--debug and --dump on real builds and runs: what each level adds goes to stderr, and a dump's files are all there."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from support.commands import Outcome
from support.engines import NARROW, NARROW_BATCH, PicoEngine, small_checkpoint

from llmc.runtime.engine_file.file import EngineFile
from llmc.runtime.plan.listing import plan_text
from llmc.runtime.plan.plan import Plan

Call = Callable[..., Outcome]
GREEDY = ("--max-tokens", 2, "--temperature", 0)


def levels(err: str) -> set[str]:
    return set(re.findall(r"^debug (\d): ", err, re.MULTILINE))


def words(text: str) -> list[list[str]]:
    """Of each line, in any order: the engine sorts a kernel's constants."""
    return [sorted(line.split()) for line in text.splitlines()]


@pytest.mark.slow
def test_a_build_for_a_gpu_tells_and_dumps_all(call: Call, tmp_path: Path):
    checkpoint = small_checkpoint(tmp_path / "small", max_position_embeddings=NARROW["max_position_embeddings"])
    engine, dump = tmp_path / "e.llmc", tmp_path / "dump"
    flags = ("--target", "cpu,sm_90", "--max-batch", NARROW_BATCH)
    built = call("build", checkpoint, "-o", engine, *flags, "--dump", dump, "--debug", 4, "--json")
    assert built.code == 0, built.err
    assert built.json["path"] == str(engine)
    assert levels(built.err) == {"1", "2", "3", "4"}
    assert "debug 1: pass cpu/profile MergeLinears: fired" in built.err
    assert "debug 2:   nearest miss of FuseAddNorm: want Add, found Embedding (at " in built.err
    assert "profile sm_90, program 0 (decode): 1 token of 1 sequence" in built.err

    with EngineFile.open(engine) as opened:
        plan = Plan.from_json(opened.section("profiles/sm_90/plan.json"), what="plan")
        ptx = opened.section("profiles/sm_90/kernels.ptx").decode()
    assert words((dump / "sm_90.launches.txt").read_text()) == words(plan_text(plan))
    kernels = json.loads((dump / "sm_90.kernels.json").read_text())
    assert [one["kernel"] for one in kernels] == [module.kernel for module in plan.modules]
    for index, (one, module) in enumerate(zip(kernels, plan.modules, strict=True)):
        assert module.code is not None
        assert (one["registers"], one["spills"]) == (module.code.registers, module.code.spills)
        source = (dump / f"sm_90.{one['ptx']}").read_text()
        assert f".entry {module.code.entry}(" in source and source in ptx
        assert f"kernel {index}: {module.kernel}\n{source.expandtabs()}" in built.err
    assert {"bytes", "shared", "local", "instr_per_weight", "mma"} <= kernels[0].keys()
    page = (dump / "index.html").read_text()
    linked = set(re.findall(r"href='([^#'][^']*)'", page))
    files = {str(path.relative_to(dump)) for path in dump.rglob("*") if path.is_file()}
    assert linked == files - {"index.html"}
    assert {"cpu.graph.txt", "sm_90.graph.txt"} <= files

    simulated = call("run", engine, "def", "--simulate", *GREEDY, "--debug", 3)
    assert simulated.code == 0, simulated.err
    assert "profile sm_90\n  cpu: not looked at: a profile is simulated" in simulated.err
    launches = re.findall(r"^debug 3: (.*) \((\w+)\), grid (\d+x\d+x\d+), interpreted: [\d.]+ ms$", simulated.err, re.M)
    decode = [launch.label for launch in plan.programs[0].launches]
    assert [label for label, _, _ in launches][-len(decode) :] == decode


def test_each_level_of_a_run_adds_to_those_below(call: Call, pico_engine: PicoEngine):
    engine = pico_engine("int8")
    outs, err = [], ""
    for level, shown in enumerate((set(), {"1"}, {"1"}, {"1", "3"}, {"1", "3"})):
        outcome = call("run", engine, "def", *GREEDY, "--debug", level)
        assert outcome.code == 0
        assert levels(outcome.err) == shown
        outs.append(outcome.out)
        err = outcome.err
    assert len(set(outs)) == 1, "nothing of it is on stdout"
    assert f"debug 1: {engine}: profile cpu\n" in err
    steps = re.findall(r"^debug 3: a step of (\d+) tokens of each of 1 sequences: [\d.]+ ms$", err, re.M)
    assert steps[1:] == ["1"] * len(steps[1:]) and len(steps) >= 2
    kernels = dict(re.findall(r"^debug 3: (\w+): (\d+) kernels, [\d.]+ ms, [\d.]+ %$", err, re.M))
    assert int(kernels["GroupQueryAttention"]) == 8 * len(steps)


@pytest.mark.parametrize("command", ["verify", "bench", "eval"])
def test_the_profile_is_told_by_what_runs_engines(call: Call, pico_engine: PicoEngine, tmp_path: Path, command: str):
    (tmp_path / "t.txt").write_text("def main():\n")
    more = {
        "verify": (),
        "bench": ("--prompt-tokens", 4, "--new-tokens", 2, "--repeat", 1),
        "eval": ("--text", tmp_path / "t.txt"),
    }[command]
    outcome = call(command, pico_engine("int8"), *more, "--json", "--debug", 1)
    assert outcome.code == 0, outcome.err
    assert outcome.err.count(": profile cpu\n") == 1
    assert outcome.json


def test_the_variable_is_as_good_as_the_flag(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LLMC_DEBUG", "1")
    assert "Traceback" in call("inspect", tmp_path / "none").err
    assert "Traceback" not in call("inspect", tmp_path / "none", "--debug", 0).err
    monkeypatch.setenv("LLMC_DEBUG", "yes")
    refused = call("inspect", tmp_path / "none")
    assert (refused.code, refused.err) == (2, "llmc: expected LLMC_DEBUG from 0 to 4\n  found: 'yes'\n")
    assert call("passes", "nothing", "--debug", "0").err.startswith("llmc: cannot "), (
        "the flag goes before the variable"
    )
    monkeypatch.delenv("LLMC_DEBUG")
    refused = call("inspect", tmp_path / "none", "--debug", 5)
    assert (refused.code, refused.err) == (2, "llmc: expected --debug from 0 to 4\n  found: '5'\n")


def test_a_dump_does_not_write_into_a_folder_with_files(call: Call, tmp_path: Path):
    (tmp_path / "mine.txt").write_text("x")
    checkpoint = small_checkpoint(tmp_path / "small")
    refused = call("build", checkpoint, "-o", tmp_path / "e.llmc", "--dump", tmp_path)
    assert refused.code == 2
    assert refused.err.endswith(
        f"expected --dump DIR to be a new or empty folder\n  found: {tmp_path} has files in it\n  try: another folder\n"
    )
    assert not (tmp_path / "e.llmc").exists()
