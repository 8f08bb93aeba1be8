"""Rows as text, Markdown and CSV, and which row a failed gate names."""

from __future__ import annotations

import json
import math

import pytest
import typer

from llmc.cli.judge.rows import Column, Shown, as_csv, as_markdown, form_of, show
from llmc.recipes.metrics import parse_gate
from llmc.runtime.errors import RecipeError

COLUMNS = (
    Column("engine", "engine"),
    Column("perplexity", "perplexity", "{:.1f}".format),
    Column("kl_mean", "KL", "{:.3f}".format),
)
SHOWN = Shown(COLUMNS, lambda row: f"ppl {row['perplexity']}", lambda row: row["engine"])
ROWS = (
    {"engine": "a|b.llmc", "perplexity": 2.0, "formats": {"int8": 57}},
    {"engine": "c.llmc", "perplexity": 3.0, "formats": {}},
)


def test_markdown_escapes_bars_and_leaves_out_columns_that_were_not_measured():
    assert as_markdown(ROWS, COLUMNS) == (
        "| engine | perplexity |\n| --- | --- |\n| a\\|b.llmc | 2.0 |\n| c.llmc | 3.0 |"
    )


def test_csv_has_all_keys():
    assert as_csv(ROWS) == "engine,perplexity,formats\na|b.llmc,2.0,int8:57\nc.llmc,3.0,\n"


def test_one_row_is_a_sentence_and_several_a_table(capsys: pytest.CaptureFixture[str]):
    show(ROWS[:1], (), "text", SHOWN)
    show(ROWS, (), "text", SHOWN)
    assert capsys.readouterr().out == "ppl 2.0\nengine    perplexity\na|b.llmc         2.0\nc.llmc           3.0\n"


def test_a_gate_holds_if_it_holds_for_every_row(capsys: pytest.CaptureFixture[str]):
    show(ROWS, (parse_gate("ppl<=3"),), "text", SHOWN)
    assert capsys.readouterr().out.endswith("gate perplexity<=3 passed: 3 of c.llmc\n")
    with pytest.raises(typer.Exit) as ended:
        show(ROWS, (parse_gate("ppl<=2"), parse_gate("ppl<=2.5"), parse_gate("ppl<=9")), "text", SHOWN)
    assert ended.value.exit_code == 1
    shown = capsys.readouterr()
    assert (
        "gate perplexity<=2 failed: 3 of c.llmc\ngate perplexity<=2.5 failed: 3 of c.llmc\ngate perplexity<=9 passed"
        in shown.out
    )
    found = "perplexity 3 of c.llmc; perplexity 3 of c.llmc"
    assert shown.err == f"llmc: cannot pass the gates perplexity<=2, perplexity<=2.5\n  found: {found}\n"


@pytest.mark.parametrize("order", [1, -1])
def test_nan_fails_whatever_the_other_rows_are(order: int, capsys: pytest.CaptureFixture[str]):
    rows = [{"engine": "a", "perplexity": 2.0}, {"engine": "b", "perplexity": math.nan}][::order]
    with pytest.raises(typer.Exit):
        show(rows, (parse_gate("ppl<=5"),), "csv", SHOWN)
    assert "cannot pass the gate perplexity<=5\n  found: perplexity nan of b\n" in capsys.readouterr().err


def test_json_has_the_verdicts_in_each_row(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(typer.Exit):
        show(ROWS, (parse_gate("ppl<=2"),), "json", SHOWN)
    found = json.loads(capsys.readouterr().out)
    assert [[gate["passed"] for gate in row["gates"]] for row in found["rows"]] == [[True], [False]]
    assert found["error"]["exit_code"] == 1
    show(ROWS[:1], (), "json", SHOWN)
    assert json.loads(capsys.readouterr().out) == {**ROWS[0], "gates": []}


def test_the_form_is_the_flag_s_else_json_s(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("LLMC_JSON", raising=False)
    assert [form_of(None, False), form_of(None, True), form_of("md", False), form_of("json", True)] == [
        *("text", "json", "md", "json")
    ]
    with pytest.raises(RecipeError, match="expected --format or --json, not both"):
        form_of("md", True)
    monkeypatch.setenv("LLMC_JSON", "1")
    assert form_of("md", True) == "md"
