"""Whether a GPU says what the interpreter said of the same engine on another machine.

python benchmarks/gpu_agree.py        needs a pack (gpu_pack.py)

Engines that the pack holds run unchanged; "none" is built here, of the same plan. Every prompt is run twice: following
the interpreter's tokens, which compares logits at every step and gives the noise between the two, and freely, over CUDA
graphs and one step ahead. Another token is right only where the interpreter's two best logits are closer than twice the
noise. Peer: the interpreter, whose run is in the pack.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gpu_common as common
from gpu_engines import SMALL_ENGINES, carried, plan_digest, small_engine
from gpu_tokens import Trace, first_difference, generate, noise, tie

from llmc.runtime.scheduling.executor import Executor
from llmc.runtime.scheduling.scheduler import Request

BOUND = 3e-2
"""Most noise, of the largest logit: what verify allows a GPU's profile."""


@dataclass(frozen=True)
class Simulated:
    """What a pack's interpreter said: of which plan, by its digest, and what followed each prompt."""

    plan: str
    traces: tuple[Trace, ...]

    @staticmethod
    def read(path: Path) -> Simulated:
        found = json.loads(path.read_text())
        kept = [Trace(tuple(t["prompt"]), tuple(map(tuple, t["ids"])), tuple(map(tuple, t["logits"])))
                for t in found["traces"]]  # fmt: skip
        return Simulated(found["plan"], tuple(kept))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("build/gpu"))
    parser.add_argument("--out", type=Path, default=common.OUT / "gpu_agree.json")
    parser.add_argument("--dry-run", action="store_true")
    options = parser.parse_args()
    if options.dry_run:
        print(json.dumps({"simulated": [path.stem for path in simulated("*")]}))
        return
    gpu = common.gpu()
    files = simulated(gpu.sm)
    if not files:
        raise SystemExit("nothing to compare with: make a pack with gpu_pack.py, and name it in LLMC_CACHE")
    rows = {path.stem: compare(path, options.work, gpu.sm) for path in files}
    common.write(options.out, {"machine": common.machine(gpu), "ok": all(r["ok"] for r in rows.values()), **rows})
    sys.exit(not all(row["ok"] for row in rows.values()))


def simulated(sm: int | str) -> list[Path]:
    """What the pack's interpreter said for a chip."""
    pack = carried()
    return sorted((pack / "simulated").glob(f"*-sm{sm}.json")) if pack is not None else []


def compare(file: Path, work: Path, sm: int) -> dict[str, Any]:
    """One engine on the GPU against what the interpreter said of it.

    SystemExit: they are of different plans.
    """
    spec = next(one for one in SMALL_ENGINES if one.path(work, sm).stem == file.stem)
    known, engine = Simulated.read(file), small_engine(spec, work, sm)
    if plan_digest(engine, sm) != known.plan:
        raise SystemExit(f"{engine}: not the plan that was simulated; make the pack again")
    loaded = common.load(engine, sm)
    try:
        return {"carried": engine.parent != work, **judge(loaded.executor, known.traces)}
    finally:
        loaded.executor.close()


def judge(executor: Executor, traces: Sequence[Trace]) -> dict[str, Any]:
    """Noise, tokens that are not the interpreter's, and whether all of them are ties."""
    found = noise(executor, traces)
    answers, _ = generate(executor, [Request(one.prompt, len(one.ids), ignore_eos=True) for one in traces])
    places = [first_difference(answer, one.tokens) for answer, one in zip(answers, traces, strict=True)]
    free = [(index, place) for index, place in enumerate(places) if place is not None]
    wrong = [traces[i].margin(step) for i, step in (*found.others, *free) if not tie(traces[i], step, found.worst)]
    return {
        "ok": not wrong and found.worst <= BOUND * found.largest,
        "tokens": sum(len(one.ids) for one in traces),
        "noise": found.worst,
        "noise_of_largest": found.worst / found.largest,
        "other_tokens_followed": len(found.others),
        "answers_that_differ": len(free),
        "first_differences": [place for _, place in free],
        "margins_beyond_noise": wrong,
    }


if __name__ == "__main__":
    main()
