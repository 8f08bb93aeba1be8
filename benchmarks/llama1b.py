"""llmc against onnxruntime-genai and llama.cpp on a Llama-3.2-1B shape with random weights: speed, build time, memory.

    python benchmarks/llama1b.py [--genai-python PYTHON] [--llama-python PYTHON] [--rounds 5] [--work build/llama1b]

Each peer needs an environment of its own, named by its interpreter (onnxruntime-genai, onnxruntime, torch and
transformers; llama-cpp-python and gguf); a peer without one is left out, and the report says so. The synthetic
checkpoint and the GGUF file stay in the work folder; engines are built anew, because the build is measured too.

A round starts each contender in a process of its own, warms it up and times one prompt and one greedy generation; the
order rotates. A ratio is the median of the rounds' ratios, so that a slow minute slows both sides of it. All run int4
weights in blocks of 32; what each does with head and embedding stands beside its figure. onnxruntime-genai appears
twice: as its builder wrote it, which chooses its own number of threads, and with as many threads as the others have.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnxruntime

from llmc.runtime.machine import cpu_count, cpu_name, read_bandwidth
from llmc.runtime.numbers import f32_to_bf16

HERE = Path(__file__).parent
TOKENIZER = HERE.parent / "examples" / "checkpoints" / "pico-python"
CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "vocab_size": 128256,
    "tie_word_embeddings": True,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-05,
    "rope_theta": 500000.0,
    "rope_scaling": {
        "rope_type": "llama3",
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "torch_dtype": "bfloat16",
}
RECIPE = "version: 1\nquantize:\n  default: int4\ntargets: [cpu]\n"
"""The head is int4 like the peer's; `--quantize int4` alone would keep it at 8 bits."""

PROMPT_TOKENS, NEW_TOKENS = 256, 64
TYPES = ("layer_type", "head_type")
"""What llama.cpp's quantizer made of a layer and of the tied head, as its file says."""


@dataclass(frozen=True)
class Contender:
    """One column of the report: how it runs, and in which formats."""

    name: str
    formats: str
    command: tuple[str, ...]


@dataclass(frozen=True)
class Goal:
    """A ratio of llmc's figure to another contender's that an issue asks for."""

    figure: str
    against: str
    least: float


GOALS = (
    Goal("decode", "onnxruntime-genai", 1.5),
    Goal("decode", "llama.cpp", 0.8),
    Goal("prefill", "onnxruntime-genai", 1.0),
)
BUILD_TIME_SHARE, BUILD_PEAK_BYTES = 0.25, 2 * 2**30


def tensor_shapes() -> dict[str, tuple[int, ...]]:
    """Names and shapes of the checkpoint's tensors; the head is the embedding."""
    hidden, inner, head = CONFIG["hidden_size"], CONFIG["intermediate_size"], CONFIG["head_dim"]
    queries, keys = CONFIG["num_attention_heads"] * head, CONFIG["num_key_value_heads"] * head
    layer = {
        "input_layernorm": (hidden,),
        "post_attention_layernorm": (hidden,),
        "self_attn.q_proj": (queries, hidden),
        "self_attn.k_proj": (keys, hidden),
        "self_attn.v_proj": (keys, hidden),
        "self_attn.o_proj": (hidden, queries),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }
    shapes = {"model.embed_tokens.weight": (CONFIG["vocab_size"], hidden), "model.norm.weight": (hidden,)}
    for index in range(CONFIG["num_hidden_layers"]):
        shapes |= {f"model.layers.{index}.{name}.weight": shape for name, shape in layer.items()}
    return shapes


def write_checkpoint(folder: Path) -> None:
    """Random weights (sigma 0.02, norms 1) in one safetensors file, with the tokenizer of a small example."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG, indent=1) + "\n")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(TOKENIZER / name, folder / name)
    shapes, header, offset = tensor_shapes(), {}, 0
    for name, shape in shapes.items():
        end = offset + 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    random, partial = np.random.default_rng(0), folder / "model.partial"
    with partial.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for shape in shapes.values():
            if len(shape) == 1:
                file.write(f32_to_bf16(np.ones(shape, np.float32)).tobytes())
                continue
            for start in range(0, shape[0], 4096):
                rows = (min(4096, shape[0] - start), shape[1])
                file.write(f32_to_bf16(random.standard_normal(rows, np.float32) * np.float32(0.02)).tobytes())
    partial.rename(folder / "model.safetensors")


def measured(command: list[str], log: Path) -> dict[str, float]:
    """Seconds and peak resident bytes of a command and of the processes it started and waited for."""
    with log.open("wb") as output:
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=output, stderr=output)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed with {process.returncode}; its output is in {log}")
    return {"seconds": round(seconds, 2), "peak_bytes": usage.ru_maxrss * 1024}


def last_json(command: tuple[str, ...]) -> dict[str, Any]:
    """The object a command prints as its last line."""
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise SystemExit(f"{' '.join(command)} failed with {result.returncode}\n{result.stderr[-2000:]}")
    return json.loads(result.stdout.strip().splitlines()[-1])


def llmc(*arguments: str | Path) -> list[str]:
    return [str(Path(sys.executable).with_name("llmc")), *map(str, arguments)]


def prepare(work: Path, args: argparse.Namespace) -> tuple[list[Contender], dict[str, dict[str, float]]]:
    """The contenders, ready to run, and what the two measured builds took; llmc comes first."""
    checkpoint, engine, genai = work / "checkpoint", work / "llama1b.llmc", work / "genai-int4"
    if not (checkpoint / "model.safetensors").exists():
        write_checkpoint(checkpoint)
    recipe = work / "recipe.yaml"
    recipe.write_text(RECIPE)
    length = ("--prompt-tokens", str(PROMPT_TOKENS), "--new-tokens", str(NEW_TOKENS))
    threads = ("--threads", str(args.threads))

    builds = {
        "llmc": measured(llmc("build", checkpoint, "-o", engine, "--recipe", recipe, "--json"), work / "llmc.log")
    }
    run = (*llmc("bench", engine), *length, *threads, "--batch", "1", "--repeat", "1", "--json")
    contenders = [Contender("llmc", "int4 block 32; head and embedding int4 block 32, one copy", run)]
    if args.genai_python:
        shutil.rmtree(genai, ignore_errors=True)
        options = ["--extra_options", "int4_accuracy_level=4", "int4_block_size=32"]
        build = [args.genai_python, "-m", "onnxruntime_genai.models.builder", "-m", str(checkpoint), "-o", str(genai)]
        build += ["-p", "int4", "-e", "cpu", "-c", str(work / "cache"), *options]
        builds["onnxruntime-genai"] = measured(build, work / "genai.log")
        run = (args.genai_python, str(HERE / "peers" / "run_genai.py"), str(genai), *length)
        formats = "int4 block 32, accuracy_level 4; head and embedding int4 block 32, one copy"
        contenders.append(Contender("onnxruntime-genai", f"{formats}; threads as it chooses", run))
        name = f"onnxruntime-genai, {args.threads} threads"
        contenders.append(Contender(name, formats, (*run, *threads)))
    if args.llama_python:
        script, model = str(HERE / "peers" / "run_llama.py"), work / "q4_0.gguf"
        if not model.exists():
            measured([args.llama_python, script, "convert", str(checkpoint), str(model), *threads], work / "llama.log")
        run = (args.llama_python, script, "run", str(model), *length, *threads)
        contenders.append(Contender("llama.cpp", "Q4_0 (int4 block 32); head and embedding Q6_K, one copy", run))
    return contenders, builds


def rounds(contenders: list[Contender], count: int) -> dict[str, list[dict[str, Any]]]:
    """What each contender reported in each round."""
    results: dict[str, list[dict[str, Any]]] = {contender.name: [] for contender in contenders}
    for index in range(count):
        shift = index % len(contenders)
        for contender in contenders[shift:] + contenders[:shift]:
            facts = last_json(contender.command)
            results[contender.name].append(facts)
            speeds = f"decode {facts['decode']:6.2f}  prefill {facts['prefill']:7.2f}"
            print(f"round {index + 1}  {contender.name:<30}{speeds}", flush=True)
    return results


def summary(results: dict[str, list[dict[str, Any]]], figure: str) -> dict[str, dict[str, Any]]:
    """Of one figure, by contender: every round, the median, and how many times llmc's it is."""
    values = {name: [facts[figure] for facts in runs] for name, runs in results.items()}
    return {
        name: {
            "rounds": runs,
            "median": round(median(runs), 2),
            "best": max(runs),
            "llmc_ratio": round(median(a / b for a, b in zip(values["llmc"], runs, strict=True)), 3),
        }
        for name, runs in values.items()
    }


def verdicts(speeds: dict[str, dict[str, dict[str, Any]]], builds: dict[str, dict[str, float]]) -> list[dict[str, Any]]:
    """Each goal with what was reached; a goal against an absent peer is left out."""
    found = [
        {
            "goal": f"{goal.figure}, llmc / {goal.against}",
            "wanted": f">= {goal.least}",
            "reached": speeds[goal.figure][goal.against]["llmc_ratio"],
            "met": speeds[goal.figure][goal.against]["llmc_ratio"] >= goal.least,
        }
        for goal in GOALS
        if goal.against in speeds[goal.figure]
    ]
    peak = builds["llmc"]["peak_bytes"]
    found.append(
        {
            "goal": "build, peak bytes",
            "wanted": f"<= {BUILD_PEAK_BYTES}",
            "reached": peak,
            "met": peak <= BUILD_PEAK_BYTES,
        }
    )
    if "onnxruntime-genai" in builds:
        share = round(builds["llmc"]["seconds"] / builds["onnxruntime-genai"]["seconds"], 3)
        wanted = f"<= {BUILD_TIME_SHARE}"
        goal = "build, seconds, llmc / onnxruntime-genai"
        found.append({"goal": goal, "wanted": wanted, "reached": share, "met": share <= BUILD_TIME_SHARE})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--genai-python", help="Interpreter of an environment with onnxruntime-genai.")
    parser.add_argument("--llama-python", help="Interpreter of an environment with llama-cpp-python and gguf.")
    parser.add_argument("--threads", type=int, default=cpu_count())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--work", type=Path, default=HERE.parent / "build" / "llama1b")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "llama1b.json")
    args = parser.parse_args()
    peers = {"onnxruntime-genai": args.genai_python, "llama.cpp": args.llama_python}
    skipped = [name for name, python in peers.items() if not python]
    for name in skipped:
        print(f"{name}: not measured, no interpreter was given for it")

    args.work.mkdir(parents=True, exist_ok=True)
    contenders, builds = prepare(args.work, args)
    results = rounds(contenders, args.rounds)
    speeds = {figure: summary(results, figure) for figure in ("decode", "prefill")}
    report = {
        "model": "Llama-3.2-1B shape, random weights",
        "machine": {
            "cpu": cpu_name(),
            "threads": args.threads,
            "read_bytes_per_s": round(read_bandwidth(args.threads)),
            "load": round(os.getloadavg()[0], 1),
        },
        "prompt_tokens": PROMPT_TOKENS,
        "new_tokens": NEW_TOKENS,
        "formats": {contender.name: contender.formats for contender in contenders},
        "llama.cpp types": {key: facts[key] for facts in results.get("llama.cpp", [])[:1] for key in TYPES},
        "versions": {
            "llmc": version("llmc-engine"),
            "onnxruntime of llmc": onnxruntime.__version__,
            **{name: runs[0]["version"] for name, runs in results.items() if "version" in runs[0]},
        },
        "skipped": skipped,
        **speeds,
        "build": builds,
        "goals": verdicts(speeds, builds),
    }
    for figure, rows in speeds.items():
        print(f"\n{figure:<32}{'median':>8}{'best':>8}{'llmc is':>10}")
        for name, row in rows.items():
            print(f"{name:<32}{row['median']:>8.2f}{row['best']:>8.2f}{row['llmc_ratio']:>9.2f}x")
    print()
    for name, facts in builds.items():
        print(f"build by {name}: {facts['seconds']:.1f} s, peak {facts['peak_bytes'] / 1e9:.2f} GB")
    for goal in report["goals"]:
        print(f"{'met   ' if goal['met'] else 'MISSED'}  {goal['goal']} {goal['wanted']}: {goal['reached']}")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
