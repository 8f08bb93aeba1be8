"""Turns the measured tiles of a call into a table for `llmc build --tactics`; needs Triton, and no GPU.

python benchmarks/gpu_tactics.py results/speed.json [-o recipes/tactics/sm_90.yaml] [--carry build/gpu-pack]

A linear's fastest tile counts where its result was the heuristic's and it was more than a hundredth faster. Tiles were
measured at 1 and at 8 tokens; as one kernel serves up to 16, steps in between have the nearer measurement's row.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from bringup.carry import Carry

from llmc.compiler.targets.cuda.kernels.linear.tiles import Tile
from llmc.compiler.targets.cuda.tuning.tactics import Row, Table

SERVES = {1: (1, 2), 8: (4, 8, 16)}
"""Tokens of steps by those at which tiles were measured for them; prompts' tiles are not in a table."""
STEP = "sweep/"
WORTH = 0.99
_TILE = {field.name for field in fields(Tile)}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("results", type=Path)
    parser.add_argument("-o", "--out", type=Path, default=Path("recipes/tactics/sm_90.yaml"))
    parser.add_argument("--carry", type=Path, default=Path("build/gpu-pack"), help="what was measured")
    options = parser.parse_args()
    carry = Carry(options.carry)
    made = table(json.loads(options.results.read_text()), carry.index["facts"], carry.sm)
    if not made.rows:
        parser.error(f"{options.results}: no linear was swept")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    made.write(options.out)
    faster = [row.heuristic_ns / row.ns for row in made.rows]
    print(f"{options.out}: {len(faster)} rows, {sum(one > 1 for one in faster)} faster, at most {max(faster):.2f}x")


def table(results: Mapping[str, Any], facts: Mapping[str, Any], sm: int) -> Table:
    """The table of a call's results, as its journal has written them. facts: of the carried folder."""
    outcomes = results["outcomes"]
    rows: dict[object, Row] = {}
    for name, outcome in outcomes.items():
        if name.startswith(STEP) and "result" in outcome:
            for row in rows_of(outcome["result"]):
                rows.setdefault(row.key, row)
    card, driver, date = (results[name] for name in ("card", "driver", "date"))
    return Table(sm, card, driver, date, facts["kernels"], facts["tools"]["triton"], tuple(rows.values()))


def rows_of(found: Mapping[str, Any]) -> Iterator[Row]:
    """The rows of one swept linear; none if the heuristic's tile has no time or no numbers."""
    heuristic, *others = found["candidates"]
    if "seconds" not in heuristic or not heuristic["finite"]:
        return
    best = min((one for one in others if "seconds" in one), key=lambda one: one["seconds"], default=heuristic)
    if best["seconds"] > WORTH * heuristic["seconds"]:
        best = heuristic
    tile = Tile(**{name: number for name, number in best["tile"].items() if name in _TILE})
    ns, heuristic_ns = (max(1, round(1e9 * one["seconds"])) for one in (best, heuristic))
    for tokens in SERVES.get(found["tokens"], ()):
        yield Row(found["kind"], found["n"], found["k"], found["format"], tokens, tile, ns, heuristic_ns)


if __name__ == "__main__":
    main()
