"""The report of a build: what it says is what the engine holds, and it is checked before the build."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from support.commands import Outcome
from support.fakes.machine_facts import FACTS, MIB, WEIGHTS
from support.paths import PICO

from llmc.runtime.costs.facts import keep_facts
from llmc.runtime.engine_file.file import EngineFile

Call = Callable[..., Outcome]


@pytest.fixture
def build(call: Call, tmp_path: Path) -> Callable[..., Outcome]:
    return lambda report, *more: call("build", PICO, "-o", tmp_path / "e.llmc", "--report", tmp_path / report, *more)


def test_the_report_is_the_engine_s(build: Callable[..., Outcome], tmp_path: Path):
    printed = build("r.json", "--quantize", "int4", "--json").json
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["llmc_report"] == 1 and report["source"] == str(PICO)
    assert {key: report[key] for key in printed} == printed
    with EngineFile.open(tmp_path / "e.llmc") as engine:
        assert report["bytes"] == engine.file_bytes
        assert report["formats"] == engine.manifest.formats
        assert report["recipe"] == engine.manifest.recipe
        assert report["content_digest"] == engine.manifest.content_digest
        assert report["checkpoint"]["files"] == engine.manifest.checkpoint.files
        assert sum(row["bytes"] for row in report["weights"]) == sum(one.nbytes for one in engine.tensors.values())
    rows = {(row["name"], row["format"]): row["weights"] for row in report["weights"]}
    assert rows["model.layers.*.mlp.up_proj.weight", "int4"] == 8
    assert rows["model.embed_tokens.weight", "int8"] == 1
    assert rows["model.layers.*.input_layernorm.weight", "BF16"] == 8


def test_the_summary_has_its_facts(build: Callable[..., Outcome], tmp_path: Path):
    outcome = build("r.md", "--quantize", "int4")
    assert outcome.code == 0, outcome.err
    text = (tmp_path / "r.md").read_text()
    assert text.startswith(f"# llmc build: {tmp_path / 'e.llmc'}\n\n| | |\n|---|---|\n| checkpoint | {PICO}: Llama")
    assert outcome.out.rstrip().rpartition(" ")[2] in text, "the content digest"
    assert "\n- no chat template: `llmc run --chat` will need --chat-template\n" in text
    assert "\n| `model.layers.*.mlp.up_proj.weight` | int4 | 8 | 864.00 KiB |\n" in text
    assert "\n| golden probe | " in text and '"default": "int4"' in text


@pytest.mark.parametrize(
    ("report", "code", "said"),
    [
        ("r.txt", 2, "expected --report as a file that ends in .json or .md"),
        ("report", 2, "expected --report as a file that ends in .json or .md"),
        ("no/r.md", 4, "cannot write a build report to "),
        ("mine.md", 2, "is not a build report"),
        ("folder.json", 2, "cannot write a build report to "),
    ],
)
def test_what_cannot_be_written_is_refused_before_the_build(
    build: Callable[..., Outcome], tmp_path: Path, report: str, code: int, said: str
):
    (tmp_path / "mine.md").write_text("# my notes\n")
    (tmp_path / "folder.json").mkdir()
    outcome = build(report)
    assert (outcome.code, said in outcome.err) == (code, True), outcome.err
    assert not (tmp_path / "e.llmc").exists()
    assert (tmp_path / "mine.md").read_text() == "# my notes\n"


def test_an_older_report_is_replaced_and_inputs_never(build: Callable[..., Outcome], call: Call, tmp_path: Path):
    assert build("r.md").code == build("r.md", "--quantize", "int8").code == 0
    assert "int8" in (tmp_path / "r.md").read_text()
    (tmp_path / "mine.md").write_text("# my notes\n")
    assert build("mine.md", "--force").code == 0
    before = (PICO / "README.md").read_bytes()
    outcome = call("build", PICO, "-o", tmp_path / "e.llmc", "--report", PICO / "README.md", "--force")
    assert outcome.code == 2 and "is an input of this command" in outcome.err
    assert (PICO / "README.md").read_bytes() == before
    same = call("build", PICO, "-o", tmp_path / "e.json", "--report", tmp_path / "e.json")
    assert same.code == 2 and "cannot write the engine and the report to" in same.err


def test_engine_report_and_dump_are_three_paths(build: Callable[..., Outcome], tmp_path: Path):
    for report, dump in (("r.json", "e.llmc"), ("r.json", "r.json")):
        outcome = build(report, "--dump", tmp_path / dump)
        assert (outcome.code, "found: one path" in outcome.err) == (2, True), outcome.err
        assert not (tmp_path / dump).exists()


def test_a_build_that_fails_leaves_no_report(build: Callable[..., Outcome], tmp_path: Path):
    assert build("r.md", "--memory-limit", "1M").code == 4
    assert not (tmp_path / "r.md").exists()


def test_a_build_shows_what_facts_predict(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LLMC_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("LLMC_THREADS", raising=False)
    keep_facts(FACTS)
    found = call("build", PICO, "-o", tmp_path / "e.llmc", "--quantize", "int8", "--json").json
    predicted = found["predicted"]
    quantized = 2 * WEIGHTS
    assert predicted["stages"]["weights"] == pytest.approx(quantized * 1e-6, abs=1e-3)
    assert predicted["seconds"] == pytest.approx(quantized * 1e-6 + 0.5 + 8 * 0.25 + 0.125 + 0.25, abs=1e-3)
    assert predicted["peak_rss_bytes"] == 200 * MIB
    assert predicted["bytes"] == pytest.approx(found["bytes"], rel=0.01)
    text = call("build", PICO, "-o", tmp_path / "e.llmc", "--quantize", "int8").out
    assert text.splitlines()[-1].startswith(f"predicted / actual: {predicted['seconds']:.1f} / ")
    other = call("build", PICO, "-o", tmp_path / "e.llmc", "--quantize", "int4", "--json").json
    assert other["predicted"] is None  # a format that was not measured
