"""A pipeline that was dumped can be run again from any of its graphs, also from the one that a pass crashed over."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.commands import Outcome
from support.dumps import TOY

from llmc.compiler import pipeline
from llmc.compiler.checkpoint.account import open_source
from llmc.compiler.pipeline import lower, resume, start_dump
from llmc.passes import fuse_add_norm
from llmc.passes.graph.graph import Graph
from llmc.passes.graph.saved import MARK
from llmc.passes.partition import partition
from llmc.passes.rewrite.manager import PassCrash
from llmc.passes.rewrite.rule import Outcome as PassOutcome
from llmc.recipes.recipe import QuantizeRule, Recipe
from llmc.runtime.errors import RecipeError

RECIPE = Recipe(
    default_format="int4", rules=(QuantizeRule("lm_head", "int8"),), targets=("cpu", "sm_90"), activations="fp8"
)
RANKS = Recipe(default_format="fp8", parallel=("tp1", "tp2-pp2"))
Call = Callable[..., Outcome]


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    folder = tmp_path / "toy"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(TOY))
    return folder


def dumped(toy: Path, folder: Path, recipe: Recipe = RECIPE) -> dict[str, Graph]:
    return lower(open_source(toy, random_weights=0), recipe, 128, start_dump(folder, recipe))[1]


def facts(graph: Graph) -> tuple[object, ...]:
    origins = {name: (one.stored, one.group, type(one.origin)) for name, one in graph.canonical.items()}
    labels = [dict(node.metadata_props) for node in graph.nodes]
    return graph.text(), graph.weights, origins, labels, graph.serial


def test_every_saved_graph_leads_to_the_same_legal_graphs(toy: Path, tmp_path: Path):
    direct = dumped(toy, tmp_path / "dump")
    files = sorted((tmp_path / "dump").glob("[0-9]*.txt"))
    places = set()
    for file in files:
        place, legal, reports = resume(file)
        places.add((place.profile, place.phase))
        assert legal.keys() == ({place.profile} if place.profile else direct.keys()), file
        assert {name: facts(graph) for name, graph in legal.items()} == {name: facts(direct[name]) for name in legal}
        assert [one.name for one in reports][:1] == [place.next][: bool(place.next)] or not place.next
    both = {(profile, "profile") for profile in direct}
    assert places == {("", "model"), *both, ("cpu", "cpu"), ("sm_90", "cuda")}


@pytest.fixture(scope="module")
def of_ranks(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Graph]]:
    """The dump of RANKS, and the legal graphs."""
    folder = tmp_path_factory.mktemp("ranks")
    (folder / "config.json").write_text(json.dumps(TOY))
    return folder / "dump", dumped(folder, folder / "dump", RANKS)


def test_saved_graphs_of_ranks_and_of_the_model_lead_to_the_same_ranks(of_ranks: tuple[Path, dict[str, Graph]]):
    folder, direct = of_ranks
    assert len(direct) == 1 + 4
    seen = set()
    for file in sorted(folder.glob("[0-9]*.txt")):
        place, legal, _ = resume(file)
        assert legal.keys() == ({place.profile} if place.profile else direct.keys()), file
        assert {name: facts(graph) for name, graph in legal.items()} == {name: facts(direct[name]) for name in legal}
        seen.add(place.profile)
    assert seen == {"", *direct}


def in_first(key: str, value: object) -> Callable[[list[dict[str, Any]]], None]:
    return lambda placements: placements[0].update({key: value})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (in_first("stages", [[0, 1], [1, 1]]), "found: the stages .*expected 2 spans"),
        (in_first("stages", [[0, 1], [1, 2], [2, 3]]), "found: the stages .*expected 2 spans"),
        (in_first("stages", [[1, 2], [2, 3]]), "found: spans .* of which one does not begin where the last ends"),
        (in_first("stages", [[0, 1], ["1", 2]]), "found: expected an integer in at.placements.stages"),
        (in_first("stages", [[0, 1], [1]]), "found: the stages .*expected 2 spans"),
        (in_first("vocabulary", [[0, 300], [300, 513]]), "found: the partition for tp2-pp2 failed: .*513"),
        (in_first("split", {"tp": 0, "pp": 1}), "found: degrees 0 and 1: each is from 1 to 256"),
        (in_first("split", {"tp": 999, "pp": 1}), "found: degrees 999 and 1: each is from 1 to 256"),
        (in_first("cuts", {}), "found: the partition for tp2-pp2 failed: .* cannot compute some of its heads"),
        (in_first("ranks", 2), "found: expected only known keys in at.placements: 'ranks'"),
        (list.clear, "found: placements of no split, not of tp2-pp2"),
        (lambda placements: placements.append(placements[0]), "found: placements of tp2-pp2, tp2-pp2, not of tp2-pp2"),
    ],
)
def test_damaged_placements_are_refused(
    call: Call,
    of_ranks: tuple[Path, dict[str, Graph]],
    tmp_path: Path,
    change: Callable[[list[dict[str, Any]]], None],
    message: str,
):
    saved = next(of_ranks[0].glob("*-model-QuantizeWeights.txt"))
    text, mark, rest = saved.read_text().partition(MARK)
    line, _, rest = rest.partition("\n")
    at = json.loads(line.removeprefix("# "))
    change(at["placements"])
    file = tmp_path / "damaged.txt"
    file.write_text(f"{text}{mark}# {json.dumps(at)}\n{rest}")
    refused = call("passes", "--from", file)
    assert (refused.code, refused.out) == (2, ""), refused.err
    assert re.search(message, refused.err), refused.err
    assert "Traceback" not in refused.err


def test_a_partition_that_fails_is_a_crash(toy: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pipeline, "partition", crash)
    with pytest.raises(PassCrash, match=r"^the partition for tp2-pp2 failed: 'lost <in> space'$"):
        lower(open_source(toy, random_weights=0), RANKS, 128)


def test_ranks_that_do_not_meet_are_a_crash(toy: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pipeline, "partition", lambda *_: [Graph.new("empty"), *partition(*_)][:4])
    with pytest.raises(PassCrash, match=r"^the passes on cpu-tp2-pp2 failed: rank 0 is at the end when rank 1 is at "):
        lower(open_source(toy, random_weights=0), RANKS, 128)


def crash(*_: object) -> PassOutcome:
    raise KeyError("lost <in> space")


def test_a_crash_is_replayed_and_a_mended_pass_leads_on(
    call: Call, toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    direct = dumped(toy, tmp_path / "direct")
    monkeypatch.setattr(fuse_add_norm.FuseAddNorm, "run", crash)
    flags = ("--random-weights", 0, "--quantize", "int4", "--target", "cpu,sm_90", "--activations", "fp8")
    crashed = call("passes", toy, *flags, "--max-context", 128, "--dump", tmp_path / "crashed")
    file = tmp_path / "crashed" / "crash-cpu-profile-FuseAddNorm.txt"
    assert crashed.code == 70
    assert f"passes before it: MergeLinears; the graph before it is in {file}: llmc passes --from {file}" in crashed.err
    page = (tmp_path / "crashed" / "index.html").read_text()
    assert "MergeLinears" in page and file.name in page

    again = call("passes", "--from", file)
    assert (again.code, again.out) == (70, "")
    assert "pass FuseAddNorm of phase profile failed: 'lost <in> space'" in again.err
    assert "Traceback" not in again.err
    assert "Traceback" in call("passes", "--from", file, "--debug", 1).err

    monkeypatch.undo()
    place, legal, reports = resume(file)
    assert (place.profile, place.phase, place.next) == ("cpu", "profile", "FuseAddNorm")
    assert place.recipe == replace(RECIPE, max_context=128)
    assert reports[0].name == "FuseAddNorm" and reports[0].fired
    assert facts(legal["cpu"]) == facts(direct["cpu"])
    mended = call("passes", "--from", file, "--json")
    assert [one["name"] for one in mended.json["passes"]] == [one.name for one in reports]
    assert f"{file}: saved by llmc 0.1.0, cpu, phase profile" in mended.err


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (('"next": "FuseGated"', '"next": "FuseGate"'), "expected a pass of phase profile .*did you mean 'FuseGated'"),
        (('"phase": "profile"', '"phase": "back"'), "expected one of the phases profile, cpu in the saved graph"),
        (('"profile": "cpu"', '"profile": "gpu"'), "target 'gpu'"),
        (('"default_format": "int4"', '"default_format": "int5"'), "expected a weight format: 'int5'"),
        (('"next"', '"then"'), "expected a saved graph in .*only known keys|expected a saved graph in .*'next'"),
    ],
)
def test_a_place_that_is_none_is_refused(toy: Path, tmp_path: Path, damage: tuple[str, str], message: str):
    dumped(toy, tmp_path / "dump")
    file = next((tmp_path / "dump").glob("*-cpu-profile-FuseAddNorm.txt"))
    text = re.sub(r'"next": "\w+"', '"next": "FuseGated"', file.read_text())
    assert damage[0] in text
    file.write_text(text.replace(*damage))
    with pytest.raises(RecipeError) as caught:
        resume(file)
    assert re.search(message, str(caught.value), re.DOTALL), str(caught.value)


def test_a_crash_over_a_graph_changed_by_hand_is_a_refusal(call: Call, toy: Path, tmp_path: Path):
    dumped(toy, tmp_path / "dump")
    file = next((tmp_path / "dump").glob("*-model-QuantizeWeights.txt"))
    file.write_text(re.sub(r"(\w+): int = \d+", r'\1: string = "x"', file.read_text()))
    changed = call("passes", "--from", file)
    assert (changed.code, changed.out) == (2, "")
    assert f"cannot run the passes on {file}, which was changed after llmc saved it\n  found: pass " in changed.err


def test_a_changed_graph_that_passes_can_take_is_run(toy: Path, tmp_path: Path):
    dumped(toy, tmp_path / "dump")
    file = next((tmp_path / "dump").glob("*-model-QuantizeWeights.txt"))
    file.write_text(file.read_text().replace("logits_indices", "rows"))
    assert "rows" in resume(file)[1]["cpu"].text()


def test_a_dump_takes_a_new_folder(toy: Path, tmp_path: Path):
    old = tmp_path / "old"
    old.mkdir()
    assert start_dump(old, RECIPE) is not None
    (old / "mine.txt").write_text("x")
    for folder, found in ((old, "has files in it"), (old / "mine.txt", "is a file")):
        with pytest.raises(RecipeError, match=f"^expected --dump DIR to be a new or empty folder\n  found: .*{found}"):
            start_dump(folder, RECIPE)
    assert [path.name for path in old.iterdir()] == ["mine.txt"]


def test_a_file_and_flags_of_a_build_exclude_each_other(call: Call, tmp_path: Path):
    neither = call("passes")
    assert (neither.code, neither.err) == (2, "llmc: expected a CHECKPOINT or --from FILE\n  found: neither\n")
    assert "found: both" in call("passes", "x", "--from", "y").err
    assert "expected no flags of a build beside --from" in call("passes", "--from", "y", "--quantize", "int4").err
    missing = call("passes", "--from", tmp_path / "none.txt")
    assert missing.code == 2 and "No such file" in missing.err


def test_a_crash_without_a_dump_says_how_to_keep_it(toy: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(fuse_add_norm.FuseAddNorm, "run", crash)
    with pytest.raises(PassCrash, match="run again with --dump DIR to keep the graph before it"):
        lower(open_source(toy, random_weights=0), RECIPE, 128)


def test_a_dump_whose_folder_cannot_be_made_is_refused(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RecipeError, match=r"^cannot make the folder .*file/d of --dump\n  found: Not a directory$"):
        start_dump(tmp_path / "file" / "d", Recipe())
