"""What splits over ranks cost a build: the partition of a 405B-shaped graph, and an 8B-shaped engine with TP profiles.

    python benchmarks/partition.py [--only graph|build] [--layers 32] [--work build/partition]

The graph has Llama 3.1 405B's shape, int4 linears and 16 ranks (TP 8 x PP 2); no weight of it is made. Its time and
peak memory are those of the partition, and of all passes until the legal graphs of all ranks. The builds are of Llama
3.1 8B's shape with random weights, one with the profile of one rank alone and one with TP 1, 2 and 4, at the same time
on half of the cores each, so that what else the machine does slows both.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from build8b import CONFIG

from llmc.runtime.machine import cpu_count, cpu_name, peak_memory

RESULTS = Path(__file__).parent / "results" / "partition.json"
HUGE = {
    **CONFIG,
    "hidden_size": 16384,
    "intermediate_size": 53248,
    "num_hidden_layers": 126,
    "num_attention_heads": 128,
}
SPLIT = "tp8-pp2"
GRAPH_GOAL = {"seconds": 20.0, "peak_gb": 1.5}
BUILD_GOAL = {"seconds": 1.3, "peak": 1.1}
"""Of the build with TP 1, 2 and 4, over the build of one rank alone."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("graph", "build"))
    parser.add_argument("--layers", type=int, default=CONFIG["num_hidden_layers"], help="of the builds")
    parser.add_argument("--work", type=Path, default=Path("build/partition"))
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--child", choices=("partition", "passes"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child is not None:
        print(json.dumps(of_graph(options.work, legalized=options.child == "passes")))
        return
    known = json.loads(options.out.read_text()) if options.out.exists() else {}
    result = {**known, "machine": f"{cpu_name()}, {cpu_count()} threads"}
    if options.only != "build":
        result["graph"] = graphs(options.work / "huge")
    if options.only != "graph":
        result["build"] = builds(options.work / "8b", options.layers)
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


def graphs(folder: Path) -> dict[str, Any]:
    """Seconds and peak of the partition, and of all passes, each in a process of its own."""
    write(folder, HUGE)
    command = [sys.executable, __file__, "--work", str(folder), "--child"]
    found: dict[str, Any] = {"shape": "405B, int4", "split": SPLIT, "load": os.getloadavg()[0], "goal": GRAPH_GOAL}
    for child in ("partition", "passes"):
        done = subprocess.run([*command, child], check=True, stdout=subprocess.PIPE, text=True)
        one = json.loads(done.stdout)
        found[child] = {**one, "of_goal": {key: round(one[key] / goal, 3) for key, goal in GRAPH_GOAL.items()}}
    return found


def of_graph(folder: Path, *, legalized: bool) -> dict[str, float]:
    """Build the logical graph, then time the partition, or everything from the model passes to legal graphs."""
    from llmc.compiler.checkpoint.account import open_source
    from llmc.compiler.decoder.decoder import build
    from llmc.compiler.decoder.placement import place
    from llmc.compiler.pipeline import lower
    from llmc.passes import model_passes, run_phase
    from llmc.passes.partition import partition
    from llmc.recipes.recipe import Recipe
    from llmc.runtime.engine_file.split import Split

    recipe, source = Recipe(default_format="int4", parallel=(SPLIT,)), open_source(folder, random_weights=0)
    if legalized:
        start, used = time.perf_counter(), time.process_time()
        ranks = [*lower(source, recipe, 4096)[1].values()]
    else:
        decoder = build(source, 4096)
        run_phase(model_passes(recipe.format_of), decoder.graph)
        start, used = time.perf_counter(), time.process_time()
        ranks = list(partition(decoder.graph, place(decoder.spec, Split.parse(SPLIT), recipe.format_of)))
    times = {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - used}
    nodes = sum(len(list(graph.nodes)) for graph in ranks)
    rounded = {key: round(value, 2) for key, value in times.items()}
    return {"ranks": len(ranks), "nodes": nodes, **rounded, "peak_gb": round(peak_memory() / 1e9, 3)}


def builds(folder: Path, layers: int) -> dict[str, Any]:
    """Both builds at the same time, each on half of the cores."""
    write(folder, {**CONFIG, "num_hidden_layers": layers})
    cores = sorted(os.sched_getaffinity(0))
    half = max(1, len(cores) // 2)
    load = os.getloadavg()[0]
    running = {
        name: start(folder, folder / f"{name}.llmc", parallel, cores[part * half : (part + 1) * half] or cores)
        for part, (name, parallel) in enumerate((("one", "tp1"), ("three", "tp1,tp2,tp4")))
    }
    found: dict[str, Any] = {"shape": "8B, int4", "layers": layers, "cores_of_each": half, "load": load}
    for name, process in running.items():
        out, _ = process.communicate()
        if process.returncode:
            raise SystemExit(f"the build {name} failed")
        report = json.loads(out.splitlines()[-1])
        (folder / f"{name}.llmc").unlink()
        found[name] = {key: report[key] for key in ("seconds", "peak_rss_bytes", "bytes", "stages")}
    one, three = found["one"], found["three"]
    found["ratios"] = {
        "seconds": round(three["seconds"] / one["seconds"], 3),
        "peak": round(three["peak_rss_bytes"] / one["peak_rss_bytes"], 3),
        "bytes": round(three["bytes"] / one["bytes"], 4),
    }
    return {**found, "goal": BUILD_GOAL}


def start(folder: Path, engine: Path, parallel: str, cores: list[int]) -> subprocess.Popen[str]:
    command = ["taskset", "-c", ",".join(map(str, cores)), sys.executable, "-m", "llmc", "build", str(folder)]
    flags = ["-o", str(engine), "--random-weights", "1", "--quantize", "int4", "--parallel", parallel, "--json"]
    return subprocess.Popen([*command, *flags], stdout=subprocess.PIPE, text=True)


def write(folder: Path, config: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")


if __name__ == "__main__":
    main()
