"""What a plan costs is what its formulas say, and `llmc inspect --launches` shows it for the GPU that was named."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from support.commands import Outcome
from support.engines import PicoEngine
from support.paths import PICO
from support.plans import BINARY, KV_HEADS, LAYERS, SIZE, WEIGHT_BYTES, plan, windowed_plan, with_plans

from llmc.runtime.chips import chip
from llmc.runtime.errors import ResourceError
from llmc.runtime.plan.budget import CACHE_SHARE, aligned, budget
from llmc.runtime.plan.plan import Tensor
from llmc.runtime.plan.price import CACHE, RESERVED, Roofline, grouped, memory, price, usable

Call = Callable[..., Outcome]
SLOW = Roofline(bandwidth=1000.0, flops=500.0)
CACHED = LAYERS * 2 * KV_HEADS * SIZE
"""Numbers kept of one position."""


def priced(index: int = 0, *, context: int = 0, heads: int = KV_HEADS, **sizes: int):
    made = plan()
    program = made.programs[index]
    return price(made, program, SLOW, sizes={**program.limits, **sizes}, context=context, heads=heads)


def test_a_launch_takes_what_is_slower_of_memory_and_arithmetic():
    first, second, logits, cache = priced(2, tokens=3, rows=2).lines
    assert (first.bytes, first.operations) == (WEIGHT_BYTES + 12, 1500)
    assert first.seconds == 1500 / SLOW.flops
    assert (first.grid, first.kernel, first.code) == ((2, 3, 1), "linear_kernel", BINARY)
    assert (logits.bytes, logits.operations, logits.grid, logits.code) == (20, 140000, (2, 3, 1), None)
    assert (cache.label, cache.bytes, cache.seconds) == (CACHE, 0, 0.0)
    assert second.label == "model.layers.1.down_proj_41"
    decode = priced(0).lines[0]
    assert decode.seconds == decode.bytes / SLOW.bandwidth == 1.004


def test_a_kernel_that_multiplies_narrower_numbers_has_a_rate_of_its_own():
    made = plan()
    program = made.programs[2]
    fast = replace(SLOW, narrow={"linear_kernel": 4 * SLOW.flops})
    sizes = {**program.limits, "tokens": 3, "rows": 2}
    found = [price(made, program, one, sizes=sizes, context=9, heads=KV_HEADS).lines for one in (SLOW, fast)]
    for slow, quick in zip(*found, strict=True):
        of_it = quick.kernel == "linear_kernel"
        assert quick.seconds == max(slow.bytes / SLOW.bandwidth, slow.operations / SLOW.flops / (4 if of_it else 1))
        assert fast.is_memory_bound(quick) == (quick.seconds == quick.bytes / SLOW.bandwidth)


def test_the_cache_is_read_once_by_each_sequence_and_used_by_each_new_token():
    cache = priced(1, context=100, heads=3 * KV_HEADS).lines[-1]
    assert cache.bytes == 4 * 100 * CACHED * 2
    assert cache.operations == 4 * 100 * CACHED * 3 * 2
    prompt = priced(2, context=100, heads=3 * KV_HEADS, tokens=36, sequences=2).lines[-1]
    assert (prompt.bytes, prompt.operations) == (2 * 100 * CACHED * 2, 36 * 100 * CACHED * 3 * 2)
    half = replace(plan(), tensors={"key.0": Tensor("cache", "f32", ("blocks", "1", "64", "4"))})
    assert (
        price(half, plan().programs[0], SLOW, sizes=plan().programs[0].limits, context=1, heads=1).lines[-1].bytes == 16
    )


def test_a_window_is_all_that_is_read_of_a_longer_cache():
    made = windowed_plan()
    step = {"sizes": made.programs[0].limits, "heads": KV_HEADS}
    for context, seen in ((50, 100), (100, 200), (300, 400)):
        cache = price(made, made.programs[0], SLOW, context=context, **step).lines[-1]
        assert (cache.bytes, cache.operations) == (seen * CACHED // LAYERS * 2, seen * CACHED // LAYERS * 2)


def test_a_sequence_takes_no_more_than_its_ring():
    need, full = memory(windowed_plan(), max_batch=4), memory(plan(), max_batch=4)
    assert full.sequence - need.sequence == (8 - 3) * 64 * CACHED // LAYERS * 2
    parts = {"weights": need.weights, "state_slots": 4, "what": "p"}
    for sequences in (1.0, 1.5, 3.0):
        free = need.weights + need.buffers + math.ceil(sequences * need.sequence / CACHE_SHARE)
        found = budget(windowed_plan(), slots=9, free=free, **parts)
        assert found.blocks == {"blocks": int(8 * sequences), "blocks_100": int(3 * sequences)}
        assert found.cache <= CACHE_SHARE * (free - found.fixed)
    assert budget(windowed_plan(), slots=2, free=1 << 40, **parts).blocks == {"blocks": 16, "blocks_100": 6}
    text = r"cache of 512 positions .*cache of 192 positions in windows of 100"
    with pytest.raises(ResourceError, match=text) as refusal:
        budget(windowed_plan(), slots=1, free=need.weights + need.buffers + need.sequence * 4 // 5, **parts)
    assert refusal.value.fix == "an engine built with --max-context 320"


def test_a_step_is_the_sum_of_its_launches():
    found = priced(1, context=10)
    assert found.bytes == sum(line.bytes for line in found.lines)
    assert found.seconds == pytest.approx(sum(line.seconds for line in found.lines))
    assert found.tokens_per_s == pytest.approx(4 / found.seconds)


def test_equal_launches_of_all_layers_become_one_line():
    lines = priced(0).lines
    first, logits, cache = grouped(lines)
    assert (first.label, first.count, first.bytes) == ("model.layers.*.down_proj", LAYERS, 2 * (WEIGHT_BYTES + 4))
    assert first.seconds == pytest.approx(2 * lines[0].seconds)
    assert (logits, cache) == lines[2:]
    different = replace(lines[1], bytes=7)
    assert [line.count for line in grouped((lines[0], different))] == [1, 1]


def test_memory_is_weights_caches_and_the_largest_step():
    need = memory(plan(), max_batch=4)
    assert need.weights == aligned(WEIGHT_BYTES)
    assert need.sequence == 512 * CACHED * 2
    assert need.buffers == aligned(256 + 36 * 32) + aligned(4 * 4)
    assert need.total(3) == need.weights + need.buffers + 3 * need.sequence


@pytest.mark.parametrize("room", [200_000, 1_000_000, 5_000_000])
def test_the_largest_batch_is_what_the_device_will_hold(room: int):
    need = memory(plan(), max_batch=4)
    most = need.sequences(room)
    parts = {"weights": need.weights, "state_slots": 4, "free": room, "what": "p"}
    assert most > 0
    assert budget(plan(), slots=most, **parts).blocks == {"blocks": most * plan().max_blocks}
    assert budget(plan(), slots=most + 1, **parts).blocks["blocks"] < (most + 1) * plan().max_blocks
    assert (need.sequences(need.weights), usable(RESERVED + 5), usable(5)) == (0, 5, 0)


@pytest.fixture(scope="module")
def engine(pico_engine: PicoEngine, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Profiles cpu, sm_80 and sm_90."""
    return with_plans(pico_engine("int8"), tmp_path_factory.mktemp("price") / "e.llmc", 80, 90)


def test_inspect_lists_every_launch(call: Call, engine: Path):
    found = call("inspect", engine, "--launches", "--json").json
    assert (found["profile"], found["chip"]["name"], found["program"]) == ("sm_90", "sm_90", 0)
    assert found["chip"]["reachable_bandwidth"] == chip(90).reachable_bandwidth
    assert (found["sizes"], found["context"]) == ({"tokens": 1, "sequences": 1, "rows": 1}, 256)
    assert [line["label"] for line in found["launches"]] == [
        "model.layers.0.down_proj_40",
        "model.layers.1.down_proj_41",
        "logits",
    ]
    first = found["launches"][0]
    assert (first["bytes"], first["operations"], first["grid"]) == (1004, 500, [1, 3, 1])
    assert (first["registers"], first["spills"], first["shared"]) == (96, 0, 2048)
    assert first["seconds"] == 1004 / chip(90).reachable_bandwidth
    assert "registers" not in found["launches"][2]
    assert found["launches"][2]["seconds"] == 70000 / chip(90).bf16
    assert found["cache"]["bytes"] == 256 * CACHED * 2
    assert found["bytes"] == 2 * 1004 + 10 + 256 * CACHED * 2
    assert found["tokens_per_s"] == pytest.approx(1 / found["seconds"])
    assert [program["tokens"] for program in found["programs"]] == [1, 4, 36]


def test_the_cache_counts_the_query_heads_of_the_model(call: Call, engine: Path):
    model = call("inspect", engine, "--json").json["model"]
    found = call("inspect", engine, "--launches", "--context", 10, "--json").json
    assert found["cache"]["operations"] == 2 * 10 * model["heads"] * SIZE * 2 * LAYERS


def test_a_named_gpu_is_priced_with_its_own_figures_and_profile(call: Call, engine: Path):
    found = call("inspect", engine, "--launches", "--for", "a100", "--program", 1, "--context", 7, "--json").json
    assert (found["profile"], found["chip"]["name"]) == ("sm_80", "a100")
    assert (found["program"], found["sizes"]["tokens"], found["context"]) == (1, 4, 7)
    assert found["cache"]["bytes"] == 4 * 7 * CACHED * 2
    assert found["cache"]["seconds"] == found["cache"]["bytes"] / chip("a100").reachable_bandwidth
    assert found["seconds_per_token"] == found["seconds"] / 4


def test_a_prompt_wants_one_row_of_logits(call: Call, engine: Path):
    found = call("inspect", engine, "--launches", "--tokens", 20, "--json").json
    assert (found["program"], found["sizes"]) == (2, {"tokens": 20, "sequences": 1, "rows": 1})
    full = call("inspect", engine, "--launches", "--program", 2, "--json").json
    assert full["sizes"] == {"tokens": 36, "sequences": 4, "rows": 4}


def test_people_see_layers_together_and_the_limit(call: Call, engine: Path):
    shown = call("inspect", engine, "--launches", "--for", "h100", "--program", 1).out
    lines = shown.splitlines()
    assert lines[0] == (
        f"{engine}: profile sm_90, program 1 (decode): 4 tokens of 4 sequences, 256 positions of each in the cache"
    )
    assert "h100: 3.02 TB/s of 3.35 can be reached, 989 TFLOP/s" in lines[1]
    assert lines[2] == "  programs and their most tokens: 0 decode 1, 1 decode 4, 2 mixed 36"
    (row,) = [line.split() for line in lines if "down_proj" in line]
    assert row[:4] == ["2", "model.layers.*.down_proj", "linear_kernel", "2x3x1"]
    assert row[-4:] == ["memory", "96", "0", "2048"]
    (row,) = [line.split() for line in lines if " logits " in line]
    assert row[-1] == "compute"
    assert "KV cache" in shown
    assert lines[-1].startswith("  at the limit ") and lines[-1].endswith(" tokens/s")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (
            ["--for", "b200"],
            2,
            "on b200\n  found: needs compute capability 9.0, b200 has 10.0\n  try: ",
        ),
        (["--for", "b200"], 2, "or llmc build --target sm_100"),
        (["--for", "a100", "--profile", "sm_90"], 2, "needs compute capability 9.0, a100 has 8.0"),
        (["--for", "h10"], 2, "cannot find chip 'h10'\n  try: one of a100, "),
        (["--for", "cpu"], 2, "cannot find chip 'cpu'\n  try: one of a100, "),
        (["--for", "H100 PCIe"], 2, "cannot find the figures of 'H100 PCIe'\n  found: compute capability 9.0; figures"),
        (["--profile", "cpu"], 2, "\n  found: target cpu\n  try: --profile sm_90"),
        (["--profile", "sm_91"], 3, "\n  found: profiles cpu, sm_80, sm_90\n"),
        (["--program", "3"], 2, "expected --program from 0 to 2\n  found: 3"),
        (["--program", "1", "--tokens", "3"], 2, "expected --program or --tokens, not both"),
        (["--tokens", "37"], 2, "expected --tokens from 1 to 36\n  found: 37"),
        (["--context", "513"], 2, "expected --context from 0 to 512\n  found: 513"),
    ],
)
def test_what_cannot_be_priced_is_refused(call: Call, engine: Path, arguments: list[str], code: int, message: str):
    outcome = call("inspect", engine, "--launches", *arguments)
    assert (outcome.code, outcome.out) == (code, "")
    assert message in outcome.err


def test_no_plan_nothing_to_price(call: Call, pico_engine: PicoEngine):
    outcome = call("inspect", pico_engine("int8"), "--launches")
    assert outcome.code == 2
    assert outcome.err.startswith("llmc: expected a profile of a GPU in ")
    assert "\n  found: profiles cpu\n  try: llmc build --target sm_90" in outcome.err
    outcome = call("inspect", PICO, "--launches")
    assert outcome.code == 3 and outcome.err.startswith(f"llmc: expected an engine at {PICO}\n  found: a checkpoint")
    outcome = call("inspect", pico_engine("int8"), "--tokens", 3)
    assert (outcome.code, outcome.err) == (2, "llmc: expected --launches with --tokens\n")
