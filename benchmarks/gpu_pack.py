"""Makes the folder that is carried to a machine with a GPU, at most 40 MiB; needs Triton and no GPU.

python benchmarks/gpu_pack.py [--out build/gpu-pack] [--work build/gpu] [--tactics sm_90.yaml ...]

Kernel cases with numbers, plans without weights, linears with many tiles, and the machine code of all of them
(`bringup/carry.py` has the format); engines of the bundled checkpoint, their results in the interpreter, and a pack of
kernels for `llmc build`. The same sources give the same bytes. Compiled kernels and the interpreter's results are
kept in the user's cache and in --work, so a second run takes seconds. Tables of measured tiles decide the plans.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bringup import carry
from bringup.carry import CarryWriter
from gpu_engines import CARRIED, PLANS, EngineSpec
from packing import engines, sweep
from packing.cases import Cases, cases_of
from packing.kernels import Kernels
from packing.pack import write_pack
from packing.plans import Drafted, all_drafted

from llmc.compiler.targets.cuda.cubins.cache import Tools, source_digest
from llmc.compiler.targets.cuda.cubins.compile import specialization_of
from llmc.compiler.targets.cuda.tuning import tactics
from llmc.compiler.targets.cuda.tuning.tactics import Table

MOST_BYTES = 40 << 20
PARTS = ("code", "cases", "plans", "sweep", "engines", "simulated", "dump", "kernels", "tactics")
SWEPT = (carry.FP8, carry.NVFP4, carry.BF16)
"""Plans whose linears are swept, the most wanted first."""
TOKENS = (1, 8)
"""Sequences of the decode steps that linears are swept at."""


@dataclass(frozen=True)
class Contents:
    """What a folder gets. files: kernel files whose cases are carried, None for all. kernels: the plan whose kernels
    `llmc build` must find. plans, swept, engines: by name, and in order."""

    plans: Mapping[str, EngineSpec]
    swept: tuple[str, ...] = ()
    prompts: tuple[str, ...] = ()
    engines: tuple[EngineSpec, ...] = ()
    files: tuple[str, ...] | None = None
    kernels: str | None = None


ALL = Contents(PLANS, SWEPT, (carry.FP8, carry.BF16), CARRIED, None, carry.MANY)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("build/gpu-pack"))
    parser.add_argument("--work", type=Path, default=Path("build/gpu"))
    parser.add_argument("--sm", type=int, default=90)
    parser.add_argument("--tokens", type=int, default=12, help="that the interpreter computes after each prompt")
    parser.add_argument("--tactics", type=Path, nargs="*", default=[], help="tables of tiles that the plans have")
    options = parser.parse_args()
    tables = {path: tactics.load_table(path) for path in options.tactics}
    began = time.monotonic()
    make(options.out, options.work, options.sm, ALL, tables, options.tokens)
    found = sizes(options.out)
    for part, nbytes in found.items():
        print(f"{part:10} {nbytes / 2**20:6.2f} MiB")
    total = sum(found.values())
    print(f"{options.out}: {total / 2**20:.2f} MiB of at most {MOST_BYTES >> 20}, {time.monotonic() - began:.0f} s")
    sys.exit(total > MOST_BYTES)


def make(
    out: Path,
    work: Path,
    sm: int,
    wanted: Contents,
    tables: Mapping[Path, Table],
    tokens: int,
    kind: type[Kernels] = Kernels,
) -> None:
    """Write the folder again; the interpreter computes `tokens` tokens, a compiler of class `kind` the kernels.

    Raises:
        LlmcError: a kernel that must be there does not compile.
    """
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    engine = None if wanted.kernels is None else asdict(wanted.plans[wanted.kernels])
    writer = CarryWriter(out, sm, {**told(tables), "engine": engine})
    kernels = kind(writer)
    plans = all_drafted(wanted.plans, work, sm, tables.values())
    cases = cases_of(sm, wanted.files)
    linears = [*swept_linears(wanted, plans)]
    kernels.compile(specialization_of(case.call) for case in cases.values())
    kernels.compile(specialization for one in plans.values() for specialization in one.specializations)
    kernels.compile((specialization_of(form.call) for one in linears for form in one.forms), must=False)
    written = Cases()
    for name, case in cases.items():
        written.add(name, case, kernels)
    writer.cases(written.carried, written.arrays)
    for name, one in plans.items():
        writer.plan(name, kernels.placed(one.plan, one.specializations))
    writer.sweep([sweep.swept(one, kernels) for one in linears])
    writer.close()
    if wanted.kernels is not None:
        write_pack(out / "kernels", {sm: plans[wanted.kernels].specializations})
        writer.archive("kernels")
    for path in tables:
        (out / "tactics").mkdir(exist_ok=True)
        shutil.copyfile(path, out / "tactics" / path.name)
    for spec in wanted.engines:
        (out / "engines").mkdir(exist_ok=True)
        engine = engines.built(spec, out / "engines", sm)
        engines.simulate(engine, out, sm, tokens, work / "simulated")
    if wanted.engines:
        writer.archive("engines")


def swept_linears(wanted: Contents, plans: Mapping[str, Drafted]) -> Iterator[sweep.Wanted]:
    """Linears to sweep: of steps of one token in all formats, then of more tokens, then of prompts."""
    seen = set()
    for tokens in TOKENS:
        for name in wanted.swept:
            for one in sweep.decoding(plans[name].plan, tokens):
                if one.linear.key not in seen:  # the head has its own format in several plans
                    seen.add(one.linear.key)
                    yield one
    for name in wanted.prompts:
        yield from sweep.prompts(plans[name].plan)


def told(tables: Mapping[Path, Table]) -> dict[str, Any]:
    """What made the folder, for results to name: no time, so that the same sources give the same bytes."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    commit = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent).stdout.strip()
    tools = asdict(Tools.installed())
    return {"commit": commit, "kernels": source_digest(), "tools": tools, "tactics": [t.name for t in tables.values()]}


def sizes(folder: Path) -> dict[str, int]:
    """Bytes of every part of the folder."""
    found: dict[str, int] = {part: 0 for part in PARTS}
    for path in folder.rglob("*"):
        if path.is_file():
            part = path.relative_to(folder).parts[0].partition(".")[0]
            found[part] = found.get(part, 0) + path.stat().st_size
    return found


if __name__ == "__main__":
    main()
