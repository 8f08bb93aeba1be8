"""What becomes of a call's results: tables of tiles for builds, and quotients over what was predicted."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from support.paths import ROOT

sys.path.append(str(ROOT / "benchmarks"))
import gpu_predictions  # pyright: ignore[reportMissingImports]
import gpu_tactics  # pyright: ignore[reportMissingImports]
from bringup import predicted  # pyright: ignore[reportMissingImports]
from bringup.calls import CALLS  # pyright: ignore[reportMissingImports]
from bringup.journal import Journal  # pyright: ignore[reportMissingImports]

from llmc.compiler.targets.cuda.kernels.linear.tiles import Tile
from llmc.compiler.targets.cuda.tuning import tactics

FACTS = {"kernels": "a" * 64, "tools": {"triton": "3.9.0"}}
HEURISTIC, FASTER, WIDER = Tile(64, 128, 16, 8, 4, 3), Tile(64, 128, 16, 4, 4, 3), Tile(128, 128, 16, 4, 4, 3)


def candidate(tile: Tile, seconds: float | None, **more: Any) -> dict[str, Any]:
    timed = {} if seconds is None else {"seconds": seconds}
    return {"tile": vars(tile), "agrees": seconds is not None, "finite": True, **timed, **more}


def swept(tokens: int, *candidates: dict[str, Any], n: int = 4096) -> dict[str, Any]:
    key = {"kind": "small", "n": n, "k": 4096, "format": "fp8", "tokens": tokens}
    return {"result": {**key, "candidates": list(candidates)}}


def results(folder: Path, **outcomes: dict[str, Any]) -> dict[str, Any]:
    """What a call leaves, written by its own journal."""
    journal = Journal.fresh(folder, "speed")
    journal.note(card="NVIDIA H100", driver="13.0", date="2026-12-01")
    for name, outcome in outcomes.items():
        journal.end(f"sweep/{name}", outcome)
    journal.end("sweep/hung", {"error": "hangs"})
    journal.end("batches/x", {"result": {"ms": 1}})
    return json.loads((folder / "speed.json").read_text())


def test_the_fastest_right_tiles_become_a_table(tmp_path: Path):
    one = swept(1, candidate(HEURISTIC, 10e-6), candidate(FASTER, 8e-6), candidate(WIDER, None))
    eight = swept(8, candidate(HEURISTIC, 10e-6), candidate(WIDER, 9.95e-6))
    broken = swept(1, candidate(HEURISTIC, 9e-6, finite=False), candidate(FASTER, 1e-6), n=6144)
    made = gpu_tactics.table(results(tmp_path, one=one, eight=eight, broken=broken), FACTS, 90)
    tiles = {row.tokens: (row.tile, row.ns, row.heuristic_ns) for row in made.rows}
    assert tiles[1] == tiles[2] == (FASTER, 8000, 10000), "what differs from the heuristic's result has no time"
    assert tiles[4] == tiles[8] == tiles[16] == (HEURISTIC, 10000, 10000), "a hundredth is noise"
    assert {row.n for row in made.rows} == {4096}
    assert (made.gpu, made.driver, made.date) == ("NVIDIA H100", "13.0", "2026-12-01")
    path = tmp_path / "sm_90.yaml"
    made.write(path)
    assert tactics.load_table(path).tiles == made.tiles


def test_measurements_are_held_against_their_own_chips_predictions(tmp_path: Path):
    chips = {"H100": {"a/b": {"ms": 2.0, "best/tflops": 100.0}}, "H200": {"a/b": {"ms": 1.0}}}
    file = tmp_path / "predictions.json"
    file.write_text(json.dumps({"chips": chips}))
    outcomes = {"a/b": {"result": {"ms": 3.0, "best": {"tflops": 50.0}}}, "a/c": {"result": {"ms": 1.0}}, "a/d": {}}

    def ratios(card: str) -> list[float]:
        return [one.ratio for one in predicted.compared(outcomes, card, file)]

    assert ratios("NVIDIA H100 80GB HBM3") == [1.5, 0.5] and ratios("NVIDIA H200") == [3.0]
    assert ratios("another") == [1.5, 0.5]
    assert str(predicted.compared(outcomes, "NVIDIA H200", file)[0]) == " 3.00  a/b: ms 3, predicted 1"
    assert predicted.compared({"a/b": {"error": "no"}}, "NVIDIA H200", file) == []


def test_predictions_are_of_steps_that_there_are():
    known = json.loads(predicted.FILE.read_text())
    assert known["date"] == gpu_predictions.DATE == "2026-11-29"
    steps = {step.name for call in CALLS.values() for step in call.steps}
    for rows in known["chips"].values():
        assert {name.partition("/")[0] for name in rows} <= steps
    one, other = known["chips"]["H100"], known["chips"]["H200"]
    assert one.keys() == other.keys() and all(other[name]["ms"] < row["ms"] for name, row in one.items() if "ms" in row)


def test_what_is_above_the_floor_is_the_same_on_both_chips():
    row = gpu_predictions.row("a", 0.8, {"H100": 4.0, "H200": 3.0})
    assert row.ms == pytest.approx({"H100": 5.0, "H200": 4.0})
