"""What a sliding window saves of the cache: a 32k context with a window of 4k against the same model without one.

    python benchmarks/window_memory.py [--context 32768] [--window 4096] [--layers 8] [--work build/window_memory]
    python benchmarks/window_memory.py --family gemma3_text --window 1024 --layers 6 --out OTHER.json

On the CPU one sequence of the whole context runs in a process of its own: resident memory before its first token and
after its last, and the size of all cache buffers. Of a launch plan, what its budget reserves for such a sequence
(nothing is compiled). Weights are random; the shape is one whose cache dominates: 8 heads of 128, hidden size 512.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import llmc
from llmc.compiler.checkpoint.account import open_source
from llmc.compiler.pipeline import lower
from llmc.compiler.targets import ProfileConfig
from llmc.recipes.recipe import with_flags
from llmc.runtime.cpu.executor import CpuExecutor
from llmc.runtime.engine_file.file import EngineFile
from llmc.runtime.machine import cpu_count, cpu_name
from llmc.runtime.plan.price import memory
from llmc.runtime.scheduling.executor import ScheduledSequence

FAMILIES = {"mistral": "MistralForCausalLM", "gemma3_text": "Gemma3ForCausalLM"}
"""Models with windows in all layers, and in five of six."""
RESULTS = Path(__file__).parent / "results" / "window_memory.json"
GOAL = 0.3
DECODED = 32
"""Last tokens of the context, which come one by one and are timed."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", choices=FAMILIES, default="mistral")
    parser.add_argument("--context", type=int, default=32768)
    parser.add_argument("--window", type=int, default=4096)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--work", type=Path, default=Path("build/window_memory"))
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child is not None:
        print(json.dumps(of_process(options.child)))
        return
    shape = {key: getattr(options, key) for key in ("family", "context", "window", "layers")}
    full, windowed = measured(options, None), measured(options, options.window)
    ratios = {key: round(windowed[key] / full[key], 3) for key in ("buffers", "resident", "plan")}
    machine = f"{cpu_name()}, {cpu_count()} threads"
    result = {
        "machine": machine,
        **shape,
        "without_window": full,
        "with_window": windowed,
        "ratios": ratios,
        "goal": GOAL,
    }
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    for key, ratio in ratios.items():
        print(f"{key}: {windowed[key] >> 20} MiB of {full[key] >> 20} MiB, {ratio} (goal: at most {GOAL})")


def measured(options: argparse.Namespace, window: int | None) -> dict[str, Any]:
    """Bytes of the cache of one sequence at full context: buffers on the CPU, resident ones, and a plan's for sm_90."""
    folder = options.work / f"{options.family}-{window}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config(options, window)))
    path = llmc.build(
        folder,
        folder / "e.llmc",
        targets=["cpu"],
        quantize="int8",
        max_context=options.context,
        max_batch=1,
        random_weights=0,
    )
    command = [sys.executable, __file__, "--child", str(path)]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return {**found, "plan": plan_bytes(folder, options.context)}


def config(options: argparse.Namespace, window: int | None) -> dict[str, Any]:
    own: dict[str, Any] = {"sliding_window": window}
    if options.family != "mistral":
        kinds = [
            "sliding_attention" if window and (index + 1) % 6 else "full_attention" for index in range(options.layers)
        ]
        own = {"sliding_window": window or options.window, "layer_types": kinds}
    return {
        "architectures": [FAMILIES[options.family]],
        **own,
        "hidden_size": 512,
        "intermediate_size": 512,
        "num_hidden_layers": options.layers,
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 1024,
        "max_position_embeddings": options.context,
        "rms_norm_eps": 1e-5,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "torch_dtype": "bfloat16",
    }


def of_process(path: Path) -> dict[str, Any]:
    """Runs one sequence to the end of the context, in this process."""
    executor = CpuExecutor(EngineFile.open(path), "cpu", threads=None, max_batch=1)
    context, prompt = executor.max_context, executor.max_context - DECODED
    before = resident()
    started = time.perf_counter()
    for start in range(0, prompt, executor.max_prefill):
        tokens = tuple(2 + index % 1000 for index in range(start, min(start + executor.max_prefill, prompt)))
        executor.submit((ScheduledSequence(0, tokens, start, ((0,),), None, prompt),))
    decoding = time.perf_counter()
    for start in range(prompt, context):
        executor.submit((ScheduledSequence(0, (5,), start, ((0,),), None, prompt),))
    ended = time.perf_counter()
    return {
        "buffers": sum(array.nbytes for array in executor.slots.arrays.values()),
        "resident": resident() - before,
        "prompt_tokens_per_s": prompt / (decoding - started),
        "decode_ms": 1000 * (ended - decoding) / DECODED,
    }


def resident() -> int:
    """Bytes of this process that are in memory."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["VmRSS"].split()[0]) << 10


def plan_bytes(folder: Path, context: int) -> int:
    """What a launch plan's budget reserves for one sequence."""
    from llmc.compiler.targets.cuda.emit import draft

    source = open_source(folder, random_weights=0)
    graph = lower(source, with_flags(None, quantize="int8", targets=["sm_90"]), context)[1]["sm_90"]
    return memory(draft(graph, ProfileConfig(context, 1, "bfloat16", "none"), 90)[0], max_batch=1).sequence


if __name__ == "__main__":
    main()
