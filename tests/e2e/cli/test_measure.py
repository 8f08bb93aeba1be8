"""The commands that judge an engine, on the bundled checkpoint: eval and bench."""

from __future__ import annotations

import difflib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from support.commands import Outcome
from support.engines import PicoEngine
from support.paths import PICO as CHECKPOINT

import llmc
from llmc.recipes.metrics import METRICS

CHAT_TEMPLATE = "{{ bos_token }}{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end_of_turn|>{% endfor %}"
Call = Callable[..., Outcome]


@pytest.fixture
def engine(pico_engine: PicoEngine) -> Path:
    return pico_engine("int8")


@pytest.fixture(scope="module")
def chat_engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chat")
    shutil.copytree(CHECKPOINT, folder / "c")
    (folder / "c/chat_template.jinja").write_text(CHAT_TEMPLATE)
    return llmc.build(folder / "c", folder / "chat.llmc", quantize="int8")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "difflib.txt"
    shutil.copy(difflib.__file__, path)
    return path


def test_eval_measures_perplexity_and_distance(call: Call, engine: Path, text: Path):
    alone = call("eval", engine, "--text", text, "--max-tokens", 600, "--json").json
    assert set(alone) == {"engine", "bytes", "profile", "formats", "tokens", "perplexity", "gates"}
    assert (alone["tokens"], alone["bytes"]) == (600, engine.stat().st_size)
    assert (alone["formats"], alone["gates"]) == ({"int8": 57}, [])
    assert 5 < alone["perplexity"] < 120
    outcome = call("eval", engine, "--text", text, "--max-tokens", 200, "--baseline", CHECKPOINT, "--json")
    assert set(outcome.json) == {*alone, "ppl_ratio", "kl_mean", "kl_p99", "top1"}
    assert 0 < outcome.json["kl_mean"] < 0.01
    assert outcome.json["top1"] > 0.9
    same = call("eval", engine, "--text", text, "--max-tokens", 100, "--baseline", engine)
    assert "perplexity 1.0000 times, KL mean 0.000000" in same.out


def test_several_engines_are_scored_as_each_alone(call: Call, pico_engine: PicoEngine, text: Path):
    engines = [pico_engine("int8"), pico_engine("int4")]
    more = ("--text", text, "--max-tokens", 100, "--baseline", CHECKPOINT, "--json")
    alone = [call("eval", engine, *more).json for engine in engines]
    assert call("eval", *engines, *more).json == {"rows": alone}
    assert alone[0]["kl_mean"] < alone[1]["kl_mean"]


def test_the_ratio_is_of_two_perplexities(call: Call, pico_engine: PicoEngine, text: Path):
    more = ("--text", text, "--max-tokens", 100, "--json")
    one, other = (call("eval", pico_engine(name), *more).json["perplexity"] for name in ("int4", "int8"))
    found = call("eval", pico_engine("int4"), *more, "--baseline", pico_engine("int8")).json
    assert found["ppl_ratio"] == pytest.approx(one / other)


def test_a_gate_is_judged_by_the_figure_that_is_printed(call: Call, engine: Path, text: Path):
    more = ("--text", text, "--max-tokens", 50, "--baseline", CHECKPOINT, "--json")
    measured = call("eval", engine, *more).json["kl_mean"]
    for limit, code in ((measured * 1.01, 0), (measured * 0.99, 1)):
        outcome = call("eval", engine, *more, "--gate", f"kl <= {limit}")
        (gate,) = outcome.json["gates"]
        assert (outcome.code, gate["passed"], gate["measured"]) == (code, code == 0, measured)
        assert ("error" in outcome.json) is (code == 1)
    assert outcome.json["error"]["class"] == "VerifyError"
    assert outcome.json["error"]["message"].startswith("cannot pass the gate kl_mean<=")


def test_conversations_are_scored_as_their_template_writes_them(call: Call, chat_engine: Path, tmp_path: Path):
    messages = [{"role": "user", "content": "def f("}, {"role": "assistant", "content": "x):\n    return x"}]
    with llmc.load(chat_engine) as loaded:
        ids = loaded.chat_template.encode(loaded.tokenizer, messages, add_generation_prompt=False)
    (tmp_path / "chat.jsonl").write_text(json.dumps({"messages": messages}) + "\n")
    (tmp_path / "ids.json").write_text(json.dumps([ids]))
    found = call("eval", chat_engine, "--jsonl", tmp_path / "chat.jsonl", "--json").json
    assert found["tokens"] == len(ids) - 1, "all tokens after BOS"
    assert found == call("eval", chat_engine, "--tokens", tmp_path / "ids.json", "--json").json


def test_bench_reports_every_speed(call: Call, engine: Path):
    arguments = ("bench", engine, "--prompt-tokens", 16, "--new-tokens", 4, "--batch", 2, "--repeat", 1)
    found = call(*arguments, "--json").json
    assert found["prefill"] > 0 < found["decode"]
    assert found["prefill"] == pytest.approx(2 * 16 / found["ttft"], rel=0.05)  # ttft has four decimals
    assert 7 * 2**20 < found["weight_bytes_per_step"] < 10 * 2**20
    assert found["memory_share"] > 0
    assert "prefill" in call(*arguments).out


def test_every_metric_is_a_key_of_its_command(call: Call, engine: Path, text: Path):
    short = text.with_name("short")
    short.write_text(text.read_text()[:60])
    found = {
        "eval": call("eval", engine, "--text", short, "--windows", "rolling", "--baseline", engine, "--json").json,
        "bench": call("bench", engine, "-p", 4, "-n", 2, "--repeat", 1, "--json").json,
    }
    for metric in METRICS.values():
        assert isinstance(found[metric.command][metric.name], float), metric.name


def test_a_bench_sweeps_over_every_combination(call: Call, engine: Path):
    found = call("bench", engine, "-p", "4,8", "-n", "2,3", "-b", "1,2", "--repeat", 1, "--json").json["rows"]
    loads = [(row["prompt_tokens"], row["new_tokens"], row["batch"]) for row in found]
    assert loads == [(4, 2, 1), (4, 2, 2), (4, 3, 1), (4, 3, 2), (8, 2, 1), (8, 2, 2), (8, 3, 1), (8, 3, 2)]


def test_llmc_json_yields_to_a_format(call: Call, engine: Path, text: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LLMC_JSON", "1")
    arguments = ("eval", engine, "--text", text, "--max-tokens", 5)
    assert call(*arguments).json["tokens"] == 5
    assert call(*arguments, "--format", "csv").out.startswith("engine,bytes,profile,formats,tokens,perplexity\n")
