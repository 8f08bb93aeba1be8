"""`llmc plan`: what it prints, as text and as JSON, its exit codes, and what it refuses."""

from __future__ import annotations

import json
import math
import xml.etree.ElementTree as xml
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.commands import Outcome
from support.paths import PICO

import llmc
from llmc.recipes.goal import parse_goal
from llmc.recipes.machines.table import machine_named
from llmc.runtime.files.records import plain
from llmc.runtime.plan.price import usable

Call = Callable[..., Outcome]
LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "torch_dtype": "bfloat16",
}
"""Llama 3 70B."""
FEW = ("--for", "2xh200", "--quantize", "fp8,none")
FP8 = ("--for", "2xh200", "--quantize", "fp8")


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "seventy.json"
    path.write_text(json.dumps(LLAMA))
    return path


def numbers(value: Any) -> Iterator[float]:
    if isinstance(value, dict):
        value = [*value.values()]
    if isinstance(value, list):
        for one in value:
            yield from numbers(one)
    elif isinstance(value, float):
        yield value


def test_the_json_of_a_plan(call: Call, config: Path):
    done = call("plan", config, *FEW, "--goal", "throughput, tpot<=60ms", "--json")
    assert done.code == 0, done.err
    found = done.json
    assert found["goal"] == "throughput,tpot<=60ms"
    assert found["load"] == {"input_tokens": 1024, "output_tokens": 1024, "context": 2048, "batch": None}
    assert found["model"]["parameters"] == 70_553_706_496
    best, candidates = found["best"], found["candidates"]
    assert best == candidates[0] and best["lost"] == "" and all(one["lost"] for one in candidates[1:])
    splits = {(one["quantize"], one["parallel"]) for one in candidates}
    assert splits == {(format, split) for format in ("fp8", "none") for split in ("tp1", "tp2", "pp2")}
    for one in candidates:
        assert one.keys() == best.keys()
        assert one["profile"] == ("sm_90" if one["parallel"] == "tp1" else f"sm_90-{one['parallel']}")
        assert one["copies"] * one["tp"] * one["pp"] == 2
        assert one["fits"] == (one["requests"] is not None) == (one["tpot_s"] is not None) == (one["max_requests"] > 0)
        assert (one["activations"], one["kv"]) == (("fp8", "fp8") if one["quantize"] == "fp8" else ("none", "none"))
        if one["fits"]:
            memory, requests = one["memory"], one["requests_per_copy"]
            held = memory["weights_bytes"] + memory["workspace_bytes"] + requests * memory["cache_bytes_per_request"]
            assert held <= memory["usable_bytes"] == usable(machine_named("2xh200").chip.memory, one["tp"] * one["pp"])
            assert sum(one["shares"].values()) == pytest.approx(1)
            assert one["requests"] == requests * one["copies"] <= one["max_requests"]
    assert best["tpot_s"] <= 0.06
    assert {one["quantize"]: one["build"]["disk_bytes"] for one in candidates}.keys() == {"none", "fp8"}
    assert len({(one["quantize"], one["build"]["disk_bytes"]) for one in candidates}) == 2
    assert all(one["build"]["seconds"] is one["build"]["peak_bytes"] is None for one in candidates)
    assert all(map(math.isfinite, numbers(found)))


def test_the_frontier_is_of_points_that_nothing_beats(call: Call, config: Path):
    found = call("plan", config, *FEW, "--json").json
    line = [(one["tokens_per_s_of_request"], one["decode_tokens_per_s"]) for one in found["frontier"]]
    assert line == sorted(line, key=lambda pair: -pair[0]) and [y for _, y in line] == sorted(y for _, y in line)
    for one in found["candidates"]:
        if one["fits"]:
            speed = 1 / one["tpot_s"], one["decode_tokens_per_s"]
            assert any(x >= speed[0] and y >= speed[1] for x, y in line)
    for one in found["frontier"]:
        assert one["tokens_per_s_of_request"] == pytest.approx(1 / one["tpot_s"])


def test_what_people_see(call: Call, config: Path):
    facts = call("plan", config, *FP8, "--goal", "latency", "--json").json
    best = facts["best"]
    lines = call("plan", config, *FP8, "--goal", "latency").out.splitlines()
    assert lines[0] == f"{config}: LlamaForCausalLM, 70.6 billion parameters, 80 layers, BF16"
    assert lines[2] == (
        f"best: sm_90-tp2 on 2xh200 at $8.93 an hour, weights fp8 ({best['bits_per_weight']:.3g} bits), "
        "activations fp8, KV cache fp8"
    )
    assert lines[3].startswith(f"  1 request at once: {best['tpot_s'] * 1e3:.3g} ms per token, first token after ")
    assert lines[4].startswith(f"  the time is {100 * best['shares'][best['bound']]:.0f} % {best['bound']}, ")
    memory = best["memory"]
    assert f"weights {memory['weights_bytes'] / 1e9:.1f} GB, 1 x cache of " in lines[5]
    assert lines[7] == f"  the engine takes {best['build']['disk_bytes'] / 1e9:.1f} GB of disk"
    assert lines[6] == (
        "  llmc build CHECKPOINT -o model.llmc --target sm_90 --quantize fp8 --activations fp8 --kv fp8 "
        "--parallel tp2 --max-context 2048 --max-batch 1"
    )
    text = "\n".join(lines)
    assert "frontier of 2xh200: no other gives both a request and the machine more tokens/s" in text
    assert "llmc's own kernels have not been measured on a GPU" in text and "accuracy is not priced" in text


def test_all_candidates_or_the_best_of_each_kind(call: Call, config: Path):
    flags = ("--for", "8xh200", "--quantize", "fp8,int4", "--batch", 8, "--input", 64, "--output", 64)
    few, every = (call("plan", config, *flags, *more).out for more in ((), ("--all",)))
    rows = [text.partition("why not\n")[2].partition("\n\n")[0].splitlines() for text in (few, every)]
    assert len(rows[1]) == 30
    assert rows[0][-1] == f"  {31 - len(rows[0])} more: --all, or --json" and len(rows[0]) < 30
    splits = {row.split()[1] for row in rows[1]}
    assert {row.split()[1] for row in rows[0][:-1]} == splits and len(splits) == 15


def test_a_checkpoint_gives_the_command_that_builds_it(call: Call):
    done = call("plan", PICO, "--for", "1xa100", "--quantize", "int8")
    assert done.code == 0
    assert (
        f"  llmc build {PICO} -o model.llmc --target sm_80 --quantize int8 --max-context 512 --max-batch " in done.out
    )
    assert "prompts of 256 tokens, answers of 256; context 512" in done.out


def test_a_goal_that_nothing_reaches(call: Call, config: Path):
    goal = "throughput,tpot<=1ms,ttft<=10s"
    done = call("plan", config, *FP8, "--goal", goal, "--json")
    assert done.code == 1 and done.json["best"] is None
    near = done.json["nearest"]
    assert near["lost"] == "; ".join(parse_goal(goal).misses({"tpot": near["tpot_s"], "ttft": near["ttft_s"]}))
    assert near["requests"] == 1 and near["parallel"] == "tp2"
    assert all(one["tpot_s"] >= near["tpot_s"] for one in done.json["candidates"])
    text = call("plan", config, *FP8, "--goal", goal)
    assert text.code == 1
    assert f"no candidate reaches the goal; nearest: {near['profile']} on 2xh200" in text.out
    assert f"  {near['lost']}\n" in text.out


def test_what_would_fit(call: Call, config: Path, tmp_path: Path):
    path = tmp_path / "f.svg"
    done = call("plan", config, "--for", "1xa100", "--quantize", "none", "--json")
    assert done.code == 1
    assert (done.json["best"], done.json["nearest"], done.json["frontier"]) == (None, None, [])
    one, other = done.json["would_fit"]
    assert (one["machine"], one["quantize"]) == ("2xa100", "none")
    assert other["machine"] == "1xa100" and other["quantize"] != "none"
    text = call("plan", config, "--for", "1xa100", "--quantize", "none", "--chart", path)
    assert "no candidate fits: needs " in text.out
    assert f"  would fit: {one['profile']} on {one['machine']}, weights none\n" in text.out
    assert (
        f"llmc: {path} is not written: no candidate fits, so there is no frontier\n" in text.err and not path.exists()
    )


def test_more_requests_than_fit(call: Call, config: Path):
    done = call("plan", config, "--for", "1xh100", "--quantize", "int4", "--input", 60000, "--batch", 64, "--json")
    lost = done.json["candidates"][0]["lost"]
    assert done.code == 1 and lost.startswith("a copy has memory for ") and lost.endswith(" requests at once")
    assert done.json["would_fit"] == []


@pytest.mark.parametrize(
    ("flags", "code", "said"),
    [
        (("--for", "cpu"), 2, "cannot plan for cpu\n  found: plans have prices of GPUs only\n"),
        (("--for", "8xh200,native"), 2, "cannot plan for native\n"),
        (("--for", "9xh200"), 2, "cannot find a machine of 9 h200\n"),
        (("--goal", "tpot<=1ms,tpot>=2ms"), 2, "expected limits that one plan can keep\n"),
        (("--goal", "kl<=0.1"), 2, "cannot "),
        (("--quantize", "in4"), 2, "expected a weight format\n  found: 'in4' (did you mean 'int4'?)\n"),
        (("--kv", "fp4"), 2, "expected kv of none or fp8\n"),
        (("--input", 0), 2, "expected input from 1 to 16777216\n  found: 0\n"),
        (("--for", "2xh100", "--batch", 9000), 2, "expected batch from 1 to 8192\n  found: 9000\n"),
        (
            ("--input", 200000),
            2,
            "cannot plan requests of 201024 tokens\n  found: a model of 131072 positions\n"
            "  try: --input and --output, together 131072 or less\n",
        ),
        (("--context", 131073), 2, "cannot plan with a context of 131073\n  found: a model of 131072 positions\n"),
        (
            ("--context", 1000),
            2,
            "cannot plan with a context of 1000\n  found: prompts of 1024 tokens and answers of 1024\n"
            "  try: --context 2048\n",
        ),
        (("--accept-config", "absent"), 2, "cannot apply --accept-config absent\n"),
    ],
)
def test_what_is_refused(call: Call, config: Path, flags: tuple[object, ...], code: int, said: str):
    done = call("plan", config, *flags)
    assert (done.code, done.out) == (code, "")
    assert said in done.err


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"machines": []}, "expected machines as a list of at least one"),
        ({"quantize": []}, "expected quantize as a list of at least one"),
        ({"kv": ""}, "expected kv of none or fp8"),
        ({"activations": "", "quantize": "int4"}, "expected activations of none or fp8"),
    ],
)
def test_the_library_refuses_what_is_empty(config: Path, given: dict[str, Any], said: str):
    with pytest.raises(llmc.RecipeError, match=said):
        llmc.plan(config, **given)


def test_layers_of_two_kinds_are_priced_on_all_cores(call: Call, config: Path):
    """Graphs of such models nest too deeply to be sent to another process."""
    windows = {"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 1024, "max_window_layers": 10}
    config.write_text(json.dumps(LLAMA | windows | {"architectures": ["Qwen2ForCausalLM"], "num_hidden_layers": 28}))
    done = call("plan", config, "--for", "4xh100", "--json")
    assert done.code == 0, done.err
    assert {(one["tp"], one["pp"]) for one in done.json["candidates"]} >= {(1, 1), (2, 2), (4, 1), (1, 4)}


def test_4_bit_activations_are_tried_where_a_chip_multiplies_them(call: Call, config: Path):
    few = ("--quantize", "nvfp4,int4", "--batch", 1)
    found = call("plan", config, "--for", "1xb200,1xrtx5090,1xh200", *few, "--json").json["candidates"]
    targets = {"1xb200": "sm_100", "1xrtx5090": "sm_120", "1xh200": "sm_90"}
    tried = {(one["machine"], one["quantize"], one["activations"], one["profile"]) for one in found}
    fp8 = {(name, format, "fp8", target) for name, target in targets.items() for format in ("int4", "nvfp4")}
    assert tried == fp8 | {(name, "nvfp4", "nvfp4", targets[name]) for name in ("1xb200", "1xrtx5090")}
    on_b200 = [one for one in found if (one["machine"], one["quantize"]) == ("1xb200", "nvfp4")]
    first = {one["activations"]: one["ttft_s"] for one in on_b200}
    assert first["nvfp4"] < 0.7 * first["fp8"]


def test_a_table_names_4_bit_activations_and_a_chip_without_them_refuses(call: Call, config: Path):
    asked = ("--quantize", "nvfp4", "--batch", 1)
    told = call("plan", config, "--for", "1xb200", *asked).out
    assert "activations nvfp4" in told and "nvfp4 W4A4" in told
    assert "--target sm_100 --quantize nvfp4 --activations nvfp4" in told
    refused = call("plan", config, "--for", "1xh200", *asked, "--activations", "nvfp4").out
    assert "nvfp4 cannot be used: cannot use --activations nvfp4 on sm_90: a chip without FP4\n" in refused


def test_a_plan_without_candidates_says_why(call: Call, config: Path):
    done = call("plan", config, "--for", "4xa100", "--quantize", "int4", "--activations", "fp8")
    assert done.code == 1
    assert "no candidate is legal\n" in done.out
    assert "int4 cannot be used: cannot use --activations fp8 on sm_80: a chip without FP8\n" in done.out
    assert "candidates:" not in done.out and "not priced, as" not in done.out


def test_the_library_returns_what_the_command_prints(call: Call, config: Path):
    found = llmc.plan(config, "2xh200", "latency,tpot<=1s", quantize=["fp8"])
    assert isinstance(found, llmc.PlanReport) and found.best == found.candidates[0]
    assert plain(found) == call("plan", config, *FP8, "--goal", "latency,tpot<=1s", "--json").json
    with pytest.raises(llmc.RecipeError, match="expected a weight format"):
        llmc.plan(config, quantize="in4")


def test_the_picture(call: Call, config: Path, tmp_path: Path):
    path = tmp_path / "f.svg"
    assert call("plan", config, *FP8, "--chart", path).code == 0
    root = xml.fromstring(path.read_text())
    assert any(f"{config}: 1024 tokens in, 1024 out" == one.text for one in root.iter() if one.text)
    first = path.read_bytes()
    assert call("plan", config, *FP8, "--chart", path, "--json").code == 0  # an older picture may be replaced
    assert path.read_bytes() == first
    (tmp_path / "own.svg").write_text("<svg>mine</svg>")
    for name, said in {
        "own.svg": "that is not a picture of a plan\n  try: another name, or --force",
        "f.png": "expected --chart as a file that ends in .svg\n  found: ",
        "absent/f.svg": "no folder ",
    }.items():
        done = call("plan", config, *FP8, "--chart", tmp_path / name)
        assert done.code in (2, 4) and said in done.err
    assert (tmp_path / "own.svg").read_text() == "<svg>mine</svg>"
