"""`llmc doctor ENGINE --for GPU`: what would run on a machine that is not here, and whether it has the memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from support.commands import Outcome
from support.engines import PicoEngine
from support.fakes.toy_ranks import shards
from support.plans import plan, with_plans
from support.toy_gpu import toy_ranks

from llmc.runtime.chips import chip
from llmc.runtime.plan.plan import Tensor
from llmc.runtime.plan.price import RESERVED

Call = Callable[..., Outcome]
GIB = 1 << 30


@pytest.fixture(scope="module")
def engine(pico_engine: PicoEngine, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Profiles cpu, sm_80, sm_90 and sm_120."""
    return with_plans(pico_engine("int8"), tmp_path_factory.mktemp("doctor") / "e.llmc", 80, 90, 120)


def large(pico_engine: PicoEngine, target: Path, weights: int, per_block: int, max_batch: int) -> Path:
    """An engine whose sm_80 plan takes so many bytes; no weight is stored for it."""
    tensors = {
        **plan().tensors,
        "huge": Tensor("weight", "u8", (str(weights),)),
        "key.9": Tensor("cache", "u8", ("blocks", "1", "64", str(per_block // 64))),
    }
    return with_plans(pico_engine("int8"), target, 80, max_batch=max_batch, tensors=tensors)


@pytest.mark.parametrize(
    ("gpu", "profile", "fit", "reasons"),
    [
        ("h100", "sm_90", ["cpu", "sm_90"], {"sm_80": "needs compute capability 8.0, h100 has 9.0"}),
        ("h200", "sm_90", ["cpu", "sm_90"], {"sm_120": "needs compute capability 12.0, h200 has 9.0"}),
        ("a100", "sm_80", ["cpu", "sm_80"], {"sm_90": "needs compute capability 9.0, a100 has 8.0"}),
        ("l4", "sm_80", ["cpu", "sm_80"], {"sm_90": "needs compute capability 9.0, l4 has 8.9"}),
        ("rtx5090", "sm_120", ["cpu", "sm_120"], {"sm_90": "needs compute capability 9.0, rtx5090 has 12.0"}),
        ("b200", "cpu", ["cpu"], {"sm_90": "needs compute capability 9.0, b200 has 10.0"}),
        ("cpu", "cpu", ["cpu"], {"sm_80": "no NVIDIA GPU", "sm_90": "no NVIDIA GPU", "sm_120": "no NVIDIA GPU"}),
    ],
)
def test_the_profiles_for_a_named_machine(
    call: Call, engine: Path, gpu: str, profile: str, fit: list[str], reasons: dict[str, str]
):
    found = call("doctor", engine, "--for", gpu, "--json").json["engine"]
    assert (found["for"], found["profile"], found["fit"]) == (gpu, profile, fit)
    assert found["do_not_fit"].keys() == {"cpu", "sm_80", "sm_90", "sm_120"} - {*fit}
    assert found["do_not_fit"].items() >= reasons.items()
    assert list(found.get("memory", {})) == [name for name in fit if name != "cpu"]


def test_what_people_see(call: Call, engine: Path):
    lines = call("doctor", engine, "--for", "h100").out.splitlines()
    assert lines[0] == f"{engine} on h100: runs as sm_90"
    assert lines[1] == "  cpu: fits"
    assert lines[3].startswith(
        "    memory of h100: 79.65 GiB, 78.65 GiB of it for: weights 1.00 KiB, 4 x 512 tokens 512"
    )
    assert lines[4].startswith("    enough; the largest batch that fits is ")
    assert lines[-1] == "  sm_80: does not fit: needs compute capability 8.0, h100 has 9.0"
    assert call("doctor", engine, "--for", "cpu").out.splitlines()[0] == f"{engine} on cpu: runs as cpu"


def test_memory_for_the_whole_batch(call: Call, pico_engine: PicoEngine, tmp_path: Path):
    """13 GiB of weights and 1 GiB for each of 8 sequences of 512 tokens: for an L4, room for 8."""
    path = large(pico_engine, tmp_path / "e.llmc", 13 * GIB, GIB // 8, max_batch=8)
    memory = call("doctor", path, "--for", "l4", "--json").json["engine"]["memory"]["sm_80"]
    assert memory["usable_bytes"] == memory["gpu_bytes"] - RESERVED == chip("l4").memory - GIB
    assert memory["cache_per_sequence"] == GIB + 8 * 64 * 2 * 2 * 2 * 16 * 2
    assert memory["bytes"] == memory["weights"] + memory["buffers"] + 8 * memory["cache_per_sequence"]
    assert (memory["fits"], memory["largest_batch"]) == (True, 8)
    assert "    enough; the largest batch that fits is 8" in call("doctor", path, "--for", "l4").out


def test_memory_for_a_smaller_batch_only(call: Call, pico_engine: PicoEngine, tmp_path: Path):
    path = large(pico_engine, tmp_path / "e.llmc", 13 * GIB, GIB // 8, max_batch=16)
    found = call("doctor", path, "--for", "l4", "--json").json["engine"]
    assert (found["profile"], found["memory"]["sm_80"]["fits"]) == ("sm_80", False)
    shown = call("doctor", path, "--for", "l4").out
    assert "    too little for a batch of 16: llmc run --max-batch 8" in shown


def test_memory_for_no_sequence_at_all(call: Call, pico_engine: PicoEngine, tmp_path: Path):
    path = large(pico_engine, tmp_path / "e.llmc", 40 * GIB, GIB // 8, max_batch=8)
    found = call("doctor", path, "--for", "l4", "--json").json["engine"]
    assert (found["profile"], found["fit"]) == (None, ["cpu"])
    reason = "one sequence of 512 tokens needs 41.00 GiB, l4 has 21.49 GiB free of 22.49 GiB"
    assert found["do_not_fit"] == {"sm_80": reason}
    shown = call("doctor", path, "--for", "l4").out.splitlines()
    assert shown == [
        f"{path} on l4: runs with --profile cpu only",
        "  cpu: fits",
        f"  sm_80: does not fit: {reason}",
    ]
    assert call("doctor", path, "--for", "a100", "--json").json["engine"]["profile"] == "sm_80"


def test_the_table_of_gpus_needs_no_extra(call: Call, engine: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("llmc.cli.common.extras.find_spec", lambda name: None)
    assert call("doctor", engine, "--for", "h100").code == 0
    assert call("doctor", engine, "--for", "cpu").code == 0


def test_the_memory_of_every_rank(call: Call, tmp_path: Path):
    path = toy_ranks(tmp_path / "e.llmc", "tp2", shards())
    found = call("doctor", path, "--for", "h200", "--json").json["engine"]
    assert (found["profile"], found["fit"]) == ("sm_90-tp2", ["sm_90-tp2"])
    of_profile = found["memory"]["sm_90-tp2"]
    for rank, one in enumerate(found["ranks"]["sm_90-tp2"]):
        assert one == {"rank": rank} | {key: of_profile[key] for key in one if key != "rank"}
    lines = call("doctor", path, "--for", "h200").out.splitlines()
    assert [line.split(":")[0] for line in lines[-2:]] == ["    rank 0 on h200", "    rank 1 on h200"]
