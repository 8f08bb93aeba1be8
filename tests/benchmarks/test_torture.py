"""The campaign of `make torture`: what it should find is found, and all readers are rehearsed with few cases."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.paths import ROOT

sys.path.append(str(ROOT / "benchmarks"))
from campaign import crowd, damage, tokenizers_like  # pyright: ignore[reportMissingImports]

BENCHMARKS = ROOT / "benchmarks"
READERS = """
import os, sys, time
from pathlib import Path
sys.path.append(sys.argv[1])
from campaign import watch
from campaign.targets import Target
from llmc.runtime.errors import EngineError
watch.HANG_S, watch.GROWTH, watch.MEMORY = 1.0, 20 << 20, 100 << 20
held = []

def read(data):
    case = int(data)
    if case == 3: raise KeyError("a")
    if case == 5: os.abort()
    if case == 6: time.sleep(100)
    if case == 8: raise EngineError("expected a number", found="none")
    if case == 9: raise EngineError("number", found="none")
    if case == 11: held.append(b"1" * (50 << 20))
    if case == 12: held.append(b"1" * (1 << 30))

class Numbers(Target):
    def case(self, seed, index): return b"%d" % index

target = Numbers("numbers", (), None, read)
found = watch.hunt(target, 0, [range(0, 14, 2), range(1, 14, 2)], Path(sys.argv[2]), time.monotonic() + 50)
import json
print(json.dumps([found.to_json(), found.wrong]))
"""


def test_what_is_wrong_is_found_and_the_rest_is_read(tmp_path: Path):
    """A foreign exception, a death, a hang, an error of another form, much memory and too much of it; 8 is refused."""
    done = subprocess.run(
        [sys.executable, "-c", READERS, BENCHMARKS, tmp_path / "notes"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    facts, wrong = json.loads(done.stdout)
    kinds = {note["case"]: {*note} - {"case", "target", "said", "at"} for note in wrong}
    assert kinds == {3: {"foreign"}, 5: {"death"}, 6: {"hang"}, 9: {"message"}, 11: {"memory"}, 12: {"foreign"}}
    assert (facts["cases"], facts["accepted"]) == (14, 8)
    assert next(note["foreign"] for note in wrong if note["case"] == 12) == "MemoryError"


@pytest.mark.parametrize(
    ("made", "seed"),
    [
        (damage.of_json, tokenizers_like.SEEDS[0]),
        (damage.of_template, tokenizers_like.TEMPLATES[1]),
        (damage.of_bytes, b"abcdef"),
    ],
    ids=["json", "template", "bytes"],
)
def test_damage_is_the_same_for_a_number_and_seldom_for_two(made: damage.Damage, seed: bytes):
    first, second = ([made(random.Random(case), seed) for case in range(100)] for _ in range(2))
    assert first == second
    assert len({*first}) > 60 and sum(one == seed for one in first) < 20


def test_requests_are_of_every_kind_and_none_begins_with_another_s_answer():
    asked = crowd.requests(400, 0)
    assert asked == crowd.requests(400, 0)
    assert {one.kind for one in asked} == {"generate", "stream", "chat", "cancel", "bad"}
    assert all((one.cancel_after > 0) == (one.kind == "cancel") for one in asked)
    options = {name for one in asked for name in one.options}
    assert {"stop", "seed", "logprobs", "repetition_penalty", "logit_bias", "min_p"} < options


def rehearse(out: Path, share: str, *more: str) -> dict[str, Any]:
    command = [sys.executable, BENCHMARKS / "torture.py", "--share", share, "--out", out, *more]
    done = subprocess.run(command, capture_output=True, text=True)
    assert out.exists(), done.stderr
    found = json.loads(out.read_text())
    assert (found["wrong"], done.returncode) == ([], 0), done.stderr
    return found


@pytest.mark.slow
def test_every_reader_is_rehearsed(tmp_path: Path):
    """Case 0 of each is whole input, which is accepted."""
    found = rehearse(tmp_path / "t.json", "0.0005", "--only", "parsers")
    targets = found["parts"]["parsers"]["targets"]
    assert {*targets} == {"safetensors", "manifest", "engine", "shard", "onnx", "plan", "tokenizer", "template"}
    assert all(0 < one["accepted"] < one["cases"] for one in targets.values())
    assert found["commit"] and found["share"] == 0.0005


@pytest.mark.soak
def test_the_whole_campaign_is_rehearsed(tmp_path: Path):
    found = rehearse(tmp_path / "t.json", "0.05")
    parts = found["parts"]
    assert [*parts] == ["seeds", "kills", "crowd", "parsers", "guided", "surroundings"]
    assert {*parts["kills"]["stages"]} > {"weights", "finish file"} and parts["surroundings"]["builds"] == 2
