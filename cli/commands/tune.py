"""`llmc tune`: measures tiles for an engine's linears on the GPU of this machine, and writes the table for a build."""

from __future__ import annotations

import math
import time
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from ...runtime.errors import RecipeError, ResourceError
from ...runtime.progress import debug
from ..common import console, extras, options, progress
from ..common.options import flag

if TYPE_CHECKING:
    from ...compiler.targets.cuda.tuning.tactics import Row
    from ...compiler.targets.cuda.tuning.tune import Tuned
    from ...runtime.cuda.gpus import Gpu
    from ...runtime.engine_file.file import EngineFile

Output = Annotated[
    Path | None,
    flag("--output", "The table to write.", default="TARGET.yaml, such as sm_90.yaml", short=("-o",), metavar="FILE"),
]
TimeLimit = Annotated[
    float,
    flag(
        "--time-limit",
        "Seconds after which no further linear is measured; the table has those before.",
        metavar="SECONDS",
    ),
]


def tune(
    engine: options.EngineFile,
    output: Output = None,
    profile: options.Profile = None,
    time_limit: TimeLimit = 900.0,
    force: options.Force = False,
    json: options.Json = False,
) -> None:
    """Measure the tiles of an engine's linears on this GPU, and write the table that llmc build takes."""
    if not 0 < time_limit < math.inf:
        raise RecipeError("expected --time-limit in seconds, a number above 0", found=f"{time_limit:g}")
    extras.need("cuda-build", "llmc tune")
    from ...runtime.engine_file.file import EngineFile

    start = time.perf_counter()
    with EngineFile.open(engine) as opened:
        name, gpu = _here(opened, profile)
        path = output or Path(f"{opened.manifest.profiles[name].target}.yaml")
        from ...compiler.targets.cuda.tuning.tactics import TABLE
        from ...compiler.targets.cuda.tuning.tune import Tuner
        from ...runtime.files.outputs import check_output

        check_output(path, TABLE, [engine], force=force)
        from ...runtime.cuda.driver import Driver

        def found(row: Row) -> None:
            if not json:
                faster = f"{row.heuristic_ns / row.ns:.2f} times as fast as the heuristic's tile"
                console.note(f"{row}: {row.ns / 1e3:.2f} µs, {faster}")

        driver = Driver.load(gpu.ordinal)
        try:
            tuner = Tuner(driver, time_limit, progress=progress.for_terminal(quiet=json), found=found)
            tuned = tuner.tune(opened, name, gpu=gpu.name, date=date.today().isoformat())
        finally:
            driver.close()
    if not tuned.table.rows:
        raise ResourceError(
            f"cannot measure a linear in {time_limit:g} s",
            found=f"none of {tuned.linears} measured",
            fix="a longer --time-limit",
        )
    tuned.table.write(path)
    for wrong in tuned.wrong:
        console.warn(f"wrong result, so not used: {wrong}")
    facts = {
        "path": str(path),
        "profile": name,
        "gpu": gpu.name,
        "name": tuned.table.name,
        "seconds": round(time.perf_counter() - start, 3),
        "linears": tuned.linears,
        "wrong": list(tuned.wrong),
        "rows": [row.numbers for row in tuned.table.rows],
    }
    console.show(facts, _text(path, tuned), json)


def _here(engine: EngineFile, asked: str | None) -> tuple[str, Gpu]:
    """The profile to measure and the GPU that runs it: the one asked for, else the best that some GPU here runs.

    Raises:
        ResourceError: no GPU, or none that runs it.
    """
    from ...runtime.chips import SM, capability, runs_on
    from ...runtime.cuda import gpus
    from ...runtime.profiles import best, choose_gpu_profile, named, runnable

    found, profiles, asked = gpus.detect(), engine.manifest.profiles, named(engine, asked)
    name = choose_gpu_profile(engine, asked)
    if asked is None:
        able = runnable(engine, (gpu.sm for gpu in found.gpus))
        name = best(engine, able) if able else name
    for gpu in found.gpus:
        if runs_on(SM[profiles[name].target], gpu.sm):
            debug(1, f"{engine.path}: profile {name} on {gpu.name}")
            return name, gpu
    have = ", ".join(f"{gpu.name} has {capability(gpu.sm)}" for gpu in found.gpus)
    raise ResourceError(
        f"cannot tune without a GPU of compute capability {capability(SM[profiles[name].target])}",
        found=have or found.problem,
        fix="the machine that the engine is to run on; without a table its tiles are chosen by a heuristic",
    )


def _text(path: Path, tuned: Tuned) -> str:
    rows = [("linear", "tile", "µs", "heuristic µs")]
    for row in tuned.table.rows:
        t = row.tile
        tile = f"{t.block_n}x{t.block_k}x{t.block_m} splits {t.splits} warps {t.warps} stages {t.stages}"
        rows.append((str(row), tile, f"{row.ns / 1e3:.2f}", f"{row.heuristic_ns / 1e3:.2f}"))
    count = f"{len(tuned.table.rows)} of {tuned.linears} linears"
    return f"{console.table(rows)}\n{path}: {tuned.table.name}, {count}\n  next: llmc build ... --tactics {path}"
