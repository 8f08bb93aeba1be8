"""Prices the choice of a token from compiled instructions, without a GPU: what top-k and top-p add to a decode step.

python benchmarks/sampling_price.py [--out FILE.json]

Both kernels are compiled for sm_90 and disassembled. A program's instructions are issued by the four schedulers of a
multiprocessor, one a clock each; a search takes its most steps, all other instructions count once, those of other kinds
of rows too. Added are waits that nothing hides: 0.8 us for each access to memory that depends on the one before, and 30
clocks for each shuffle, reduction, barrier and load from shared memory of the one program of a row. `BEFORE` are the
loops of the kernel that passed over the row for every threshold, of its disassembly.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llmc.compiler.targets.cuda.cubins.compile import Specialization, compile_all, specialization_of
from llmc.compiler.targets.cuda.cubins.elf import image_of
from llmc.compiler.targets.cuda.cubins.sass import Instruction, Listing, disassemble, disassembler
from llmc.compiler.targets.cuda.kernels import suites
from llmc.compiler.targets.cuda.kernels.sampling.candidates import BISECTIONS
from llmc.compiler.targets.cuda.kernels.sampling.whole_row import STEP
from llmc.runtime.progress import NO_PROGRESS

OUT = Path(os.environ.get("OUT", "benchmarks/results"))
VOCABULARY = 128256
"""That of the kernels' calls."""
SM, SCHEDULERS, CLOCK = 90, 4, 1.7e9
"""An H100."""
MEMORY, WAIT = 0.8e-6, 30
"""Assumed: seconds of an access to memory that depends on another, clocks of one inside a multiprocessor."""
WAITING = {"SHFL", "REDUX", "BAR", "LDS"}
SEARCHES = ("groups", "top-k", "top-p")
"""The first loops of `choose`, in order; each halves 32 bits."""
WHOLE_ROW = {"top-k": 8, "sum": 1, "top-p": 8, "kept sum": 1, "draw": 1}
"""The loops after them, of rows that the list does not serve, and how often they pass over the row."""
PASSES = {"tile_stats": 1, "choose": 5}
"""Accesses that depend on another: logits; statistics, the group's peaks, their list, its logits, parameters."""
TILES_BEFORE, STEPS_BEFORE, WARPS_BEFORE = 63, 8, 16
BEFORE = {
    "top-k": (340, STEPS_BEFORE * TILES_BEFORE, STEPS_BEFORE),
    "top-p": (272, STEPS_BEFORE * TILES_BEFORE, STEPS_BEFORE),
    "sum": (87, TILES_BEFORE, 1),
    "kept sum": (118, TILES_BEFORE, 1),
    "draw": (128, TILES_BEFORE, 2),
}
"""Of a vocabulary of 128,256: instructions a tile of 2,048 logits, tiles, passes over memory."""


@dataclass(frozen=True)
class Part:
    """A stretch of a program: instructions of a warp, how often, and what it waits for meanwhile."""

    name: str
    instructions: int
    times: int
    warps: int
    waits: int = 0
    """Waits of one time, of `WAIT` clocks."""
    passes: int = 0
    """Waits for memory altogether."""

    @property
    def seconds(self) -> float:
        clocks = self.times * (self.instructions * self.warps / SCHEDULERS + self.waits * WAIT)
        return clocks / CLOCK + self.passes * MEMORY


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=OUT / "sampling_price.json")
    options = parser.parse_args()
    made = priced()
    options.out.write_text(json.dumps(made, indent=1) + "\n")
    for name in ("before", "after", "whole row"):
        print(f"{name}: {made[name]['us']} us")
        for part in made[name]["parts"]:
            print(f"  {part['us']:8.1f} us  {part['name']}: {part['instructions']} instructions x {part['times']}")


def priced() -> dict[str, Any]:
    """What the file of results holds: microseconds of a row with top-k and top-p, before and now, and of one that the
    list does not serve."""
    served, unserved = now()
    before = [
        Part(name, instructions, times, WARPS_BEFORE, passes=passes)
        for name, (instructions, times, passes) in BEFORE.items()
    ]
    assumed = {"clock_hz": CLOCK, "schedulers": SCHEDULERS, "memory_us": 1e6 * MEMORY, "wait_clocks": WAIT}
    return {
        "chip": "H100",
        "vocabulary": VOCABULARY,
        "batch": 1,
        "assumed": {**assumed, "search_steps": BISECTIONS},
        "before": told(before),
        "after": told(served),
        "whole row": told(served + unserved),
    }


def told(parts: Sequence[Part]) -> dict[str, Any]:
    each = [{**asdict(part), "us": round(1e6 * part.seconds, 2)} for part in parts]
    return {"us": round(1e6 * sum(part.seconds for part in parts), 1), "parts": each}


def now() -> tuple[list[Part], list[Part]]:
    """The parts of both kernels as they are, and what a row adds that the list does not serve.

    Raises:
        ValueError: `choose` does not begin with its three searches, and this price is not its price.
    """
    files = suites(("sampling.tile_stats", "sampling.sample"))
    stats, choose = (specialization_of(next(iter(suite.calls(SM)))) for suite in files.values())
    listing = listing_of(choose)
    loops = inner_loops(listing)
    searches, passes = loops[: len(SEARCHES)], loops[len(SEARCHES) :][: len(WHOLE_ROW)]
    reading = [any(one.name == "LDG" for one in loop) for loop in (*searches, *passes)]
    if reading != [False] * len(SEARCHES) + [True] * len(WHOLE_ROW):
        raise ValueError(f"loops of choose that read memory: {reading}")
    inside = {one.address for loop in searches for one in loop}
    ahead = [one for one in listing.instructions if one.address < passes[0][0].address and one.address not in inside]
    served = [
        Part("tile_stats", len(listing_of(stats).instructions), 1, stats.warps, passes=PASSES["tile_stats"]),
        Part("choose, once", len(ahead), 1, choose.warps, waits(ahead), PASSES["choose"]),
        *(
            Part(f"search for {name}", len(loop), BISECTIONS, choose.warps, waits(loop))
            for name, loop in zip(SEARCHES, searches, strict=True)
        ),
    ]
    tiles = -(-VOCABULARY // STEP)
    unserved = [
        Part(f"whole row, {name}", len(loop), times * tiles, choose.warps, waits(loop), times)
        for (name, times), loop in zip(WHOLE_ROW.items(), passes, strict=True)
    ]
    return served, unserved


def waits(instructions: Sequence[Instruction]) -> int:
    return sum(one.name in WAITING for one in instructions)


def inner_loops(listing: Listing) -> list[tuple[Instruction, ...]]:
    """Loops that have no other inside, by address."""
    spans = [(loop[0].address, loop[-1].address) for loop in listing.loops]
    inner = [
        loop
        for loop, (first, last) in zip(listing.loops, spans, strict=True)
        if not any(first <= a and b <= last and (a, b) != (first, last) for a, b in spans)
    ]
    return sorted(inner, key=lambda loop: loop[0].address)


def listing_of(specialization: Specialization) -> Listing:
    cubin = compile_all([specialization], SM, progress=NO_PROGRESS)[specialization]
    program = disassembler()
    assert program is not None, "the extra 'dev' brings one"
    return disassemble([image_of(cubin.data, cubin.code.entry).code], SM, program)[0]


if __name__ == "__main__":
    main()
