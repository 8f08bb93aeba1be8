"""Gates: what the parser takes and refuses, and that a figure is judged by its limit, NaN included."""

from __future__ import annotations

import math
import re

import pytest
from support.paths import ROOT

from llmc.recipes.metrics import METRICS, SHORT, Gate, Metric, Verdict, gates_for, judge, parse_gate
from llmc.runtime.errors import RecipeError


@pytest.mark.parametrize(
    ("text", "gate"),
    [
        ("kl_mean<=0.01", Gate("kl_mean", "<=", 0.01)),
        (" kl <= 1e-2 ", Gate("kl_mean", "<=", 0.01)),
        ("kl_p99<.5", Gate("kl_p99", "<", 0.5)),
        ("ppl<=20", Gate("perplexity", "<=", 20.0)),
        ("ppl_ratio<=1.05", Gate("ppl_ratio", "<=", 1.05)),
        ("top1 >= 0.95", Gate("top1", ">=", 0.95)),
        ("top1>=1", Gate("top1", ">=", 1.0)),
        ("decode>=30", Gate("decode", ">=", 30.0)),
        ("prefill>100", Gate("prefill", ">", 100.0)),
        ("ttft<=0.2", Gate("ttft", "<=", 0.2)),
        ("ttft<=200ms", Gate("ttft", "<=", 0.2)),
    ],
)
def test_a_gate_is_read(text: str, gate: Gate):
    assert parse_gate(text) == gate
    assert parse_gate(str(gate)) == gate


@pytest.mark.parametrize(
    ("text", "asked", "more"),
    [
        ("", "expected a gate NAME<=NUMBER or NAME>=NUMBER", "found: ''"),
        ("kl_mean=0.01", "expected a gate NAME<=NUMBER or NAME>=NUMBER", "'kl_mean<=0.01'"),
        ("0.01>=kl", "expected a gate NAME<=NUMBER or NAME>=NUMBER", "'kl_mean<=0.01' or 'decode>=30', in quotes"),
        ("decode", "expected a gate NAME<=NUMBER or NAME>=NUMBER", "--gate 'decode>=...' in quotes"),
        ("kl", "expected a gate NAME<=NUMBER or NAME>=NUMBER", "--gate 'kl_mean<=...' in quotes"),
        (
            "kl_men<=1",
            "cannot find the metric 'kl_men' (did you mean 'kl_mean'?)",
            "try: one of perplexity, ppl_ratio, kl_",
        ),
        ("perplexty<=1", "cannot find the metric 'perplexty'", "did you mean 'perplexity'"),
        ("top1>=95", "expected a limit of top1 from 0 to 1", "found: 95"),
        ("top1>=95%", "expected a number in the gate of top1", "try: a share from 0 to 1"),
        ("ttft<=200m", "expected a number in the gate of ttft", "try: 40ms, 200us, 0.2s or 0.2 (seconds)"),
        ("kl<=nan", "expected a number in the gate of kl_mean", "a plain number, in nats"),
        ("kl<=inf", "expected a number in the gate of kl_mean", "'inf'"),
        ("ppl<=1e999", "expected a limit of perplexity from 1", "1e999"),
        ("ppl<=0.5", "expected a limit of perplexity from 1", "0.5"),
        ("kl<=-1", "expected a limit of kl_mean from 0", "-1"),
        ("kl<0", "expected a gate that can pass", "'kl<0': no kl_mean is better\n  try: kl_mean<=0"),
        ("top1 > 1", "expected a gate that can pass", "try: top1>=1"),
        ("ppl<1.0", "expected a gate that can pass", "try: perplexity<=1"),
        ("decode>=0", "expected a gate that can fail", "'decode>=0': every decode passes"),
        ("top1>0", "expected a gate that can fail", "every top1 passes"),
        ("ppl>=20", "expected a gate perplexity<=NUMBER: a lower perplexity is better", "found:"),
        ("decode<=30", "expected a gate decode>=NUMBER: a higher decode is better", "found:"),
        ("top1<0.9", "expected a gate top1>=NUMBER: a higher top1 is better", "found:"),
    ],
)
def test_what_is_no_gate_is_refused(text: str, asked: str, more: str):
    with pytest.raises(RecipeError) as refused:
        parse_gate(text)
    assert refused.value.asked.startswith(asked)
    assert more in str(refused.value)


def test_a_metric_of_another_command_names_the_command():
    with pytest.raises(RecipeError, match="cannot gate llmc eval by decode") as refused:
        gates_for("eval", ["decode>=30"], baseline=True)
    assert refused.value.fix == "llmc bench ... --gate 'decode>=30'"
    with pytest.raises(RecipeError, match="cannot gate llmc bench by kl_mean"):
        gates_for("bench", ["kl<=1"])


def test_what_compares_needs_a_baseline():
    for name in ("kl<=1", "kl_p99<=1", "ppl_ratio<=1", "top1>=0.5"):
        with pytest.raises(RecipeError, match="expected --baseline with the gate"):
            gates_for("eval", ["ppl<=20", name])
        assert len(gates_for("eval", ["ppl<=20", name], baseline=True)) == 2
    assert gates_for("eval", ["ppl<=20"]) == (Gate("perplexity", "<=", 20.0),)


def test_what_counts_words_or_bytes_needs_whole_texts():
    for name in ("word_perplexity<=9", "byte_perplexity<=3", "bits_per_byte<=1"):
        with pytest.raises(RecipeError, match=f"expected --windows rolling over whole texts with the gate {name}"):
            gates_for("eval", [name])
        assert len(gates_for("eval", [name], whole=True)) == 1


@pytest.mark.parametrize(
    ("gate", "measured", "passed"),
    [
        ("kl<=0.01", 0.01, True),
        ("kl<0.01", 0.01, False),
        ("kl<=0.01", 0.0101, False),
        ("decode>=30", 30.0, True),
        ("decode>30", 30.0, False),
        ("decode>=30", math.inf, True),
        ("kl<=0.01", math.nan, False),
        ("decode>=30", math.nan, False),
        ("perplexity<=20", math.inf, False),
    ],
)
def test_a_figure_is_judged_by_its_limit(gate: str, measured: float, passed: bool):
    (verdict,) = judge([parse_gate(gate)], {parse_gate(gate).name: measured})
    assert verdict.passed is passed
    assert verdict.to_json()["passed"] is passed


def test_a_verdict_as_json_has_no_nan():
    verdict = Verdict(parse_gate("kl <= 0.01"), math.nan)
    assert verdict.to_json() == {
        "gate": "kl_mean<=0.01",
        "name": "kl_mean",
        "measured": None,
        "limit": 0.01,
        "passed": False,
    }


def test_every_short_name_is_a_metric():
    assert {*SHORT.values()} <= {*METRICS} and not {*SHORT} & {*METRICS}


def _needs(one: Metric) -> str:
    return " --baseline" if one.compares else " --windows rolling" if one.whole else ""


def test_the_page_has_the_same_table():
    page = (ROOT / "docs" / "ci.md").read_text(encoding="utf-8")
    rows = [row.replace("\\|", "|") for row in re.findall(r"^\| (`.+) \|$", page, re.MULTILINE)]
    shown = [
        (f"`{one.name}`", f"`{one.command}{_needs(one)}`", one.unit, one.better, one.meaning)
        for one in METRICS.values()
    ]
    assert rows == [" | ".join(row).replace(" |  | ", " | | ") for row in shown]
