"""Decoding a mixture of experts on the CPU against a dense model that reads the same bytes for a token.

python benchmarks/experts_cpu.py [--layers 4] [--rounds 7] [--tokens 48]     writes results/experts_cpu.json

The mixture has layers of Qwen3-30B-A3B: 128 experts of 768, of which 8 compute a token. The dense model has one MLP of
8 x 768 = 6144 in their place, the same attention and the same head, so a decode step reads as many bytes of weights but
for the routers. Both have random weights in int4. They decode in turns, in one process; medians are compared. Without
the head: a layer takes the difference between the model and the same one with one layer, by the layers between them.

A third engine is the mixture without QMoE: a product for each expert (`compiler/targets/cpu/experts.py`). A prompt of
256 tokens is timed too: there each expert has a few rows, and the dense model's weights are read once for all of them.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import time
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

import llmc
from llmc.compiler.targets import cpu
from llmc.compiler.targets.cpu.experts import MoEToQMoE
from llmc.runtime.cpu.executor import CpuExecutor
from llmc.runtime.engine_file.file import EngineFile
from llmc.runtime.machine import cpu_count, cpu_name
from llmc.runtime.scheduling.executor import ScheduledSequence

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "experts_cpu.json"
GOAL = 1.25
"""The most that a token of the mixture may take, in times of the dense model's."""
WIDTH, CHOSEN = 768, 8
SHAPE: dict[str, Any] = {
    "hidden_size": 2048,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "intermediate_size": WIDTH * CHOSEN,
    "vocab_size": 151936,
    "max_position_embeddings": 40960,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "eos_token_id": 151645,
}
DENSE = {**SHAPE, "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3"}
MIXTURE = {
    **SHAPE,
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "num_experts": 128,
    "num_experts_per_tok": CHOSEN,
    "moe_intermediate_size": WIDTH,
    "norm_topk_prob": True,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
}
MODELS = {"mixture": MIXTURE, "dense": DENSE, "products": MIXTURE}
"""What is built; products are the mixture by a product for each expert."""
CONTEXT, PROMPT, LONG = 512, 16, 256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--tokens", type=int, default=32, help="of each model in a round")
    parser.add_argument("--work", type=Path, default=Path("build/experts_cpu"))
    options = parser.parse_args()
    subjects = {
        (name, layers): Subject(built(options.work, name, layers)) for name in MODELS for layers in (options.layers, 1)
    }
    busy = os.getloadavg()[0]
    times: dict[tuple[str, int], list[float]] = {key: [] for key in subjects}
    prompts: dict[str, list[float]] = {name: [] for name in MODELS}
    for number in range(options.rounds + 1):
        for key in sorted(subjects, reverse=bool(number % 2)):
            found = subjects[key].decode(options.tokens, seed=number)
            prompt = subjects[key].prompt(seed=number) if key[1] == options.layers else None
            if number:  # the first round warms up
                times[key].append(found)
                prompts[key[0]] += [] if prompt is None else [prompt]
    seconds = {key: median(found) for key, found in times.items()}
    layer = {name: (seconds[name, options.layers] - seconds[name, 1]) / (options.layers - 1) for name in MODELS}
    prompt_ms = {name: round(1000 * median(found), 1) for name, found in prompts.items()}
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=HERE, capture_output=True, text=True)
    result = {
        "date": datetime.now(UTC).date().isoformat(),
        "commit": commit.stdout.strip(),
        "machine": f"{cpu_name()}, {cpu_count()} threads",
        "load": [round(busy, 2), round(os.getloadavg()[0], 2)],
        "format": "int4",
        "layers": options.layers,
        "rounds": options.rounds,
        "tokens": options.tokens,
        "step_bytes": {name: subjects[name, options.layers].step_bytes for name in MODELS},
        "token_ms": {name: round(1000 * seconds[name, options.layers], 3) for name in MODELS},
        "rounds_ms": {name: [round(1000 * one, 2) for one in times[name, options.layers]] for name in MODELS},
        "layer_ms": {name: round(1000 * one, 3) for name, one in layer.items()},
        "ratio": round(seconds["mixture", options.layers] / seconds["dense", options.layers], 3),
        "ratio_of_layers": round(layer["mixture"] / layer["dense"], 3),
        "ratio_of_products": round(seconds["products", options.layers] / seconds["dense", options.layers], 3),
        "ratio_of_layers_of_products": round(layer["products"] / layer["dense"], 3),
        "prompt_ms": prompt_ms,
        "goal": GOAL,
    }
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    print(
        f"a token of {options.layers} layers and the head: {result['token_ms']} ms, {result['ratio']}x (goal: {GOAL}x)"
    )
    print(f"a layer alone: {result['layer_ms']} ms, {result['ratio_of_layers']}x")
    print(f"by products: a token {result['ratio_of_products']}x, a layer {result['ratio_of_layers_of_products']}x")
    print(f"a prompt of {LONG} tokens: {prompt_ms} ms")


def built(work: Path, name: str, layers: int) -> Path:
    """The engine of a model with random weights; built once."""
    folder = work / f"{name}-{layers}"
    path = folder / "model.llmc"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps({**MODELS[name], "num_hidden_layers": layers}))
        kept = cpu.RULES
        if name == "products":
            cpu.RULES = tuple(rule for rule in kept if not isinstance(rule, MoEToQMoE))
        try:
            llmc.build(folder, path, quantize="int4", max_context=CONTEXT, random_weights=0)
        finally:
            cpu.RULES = kept
    return path


class Subject:
    """An engine in this process."""

    def __init__(self, path: Path) -> None:
        engine = EngineFile.open(path)
        self.step_bytes = int(engine.profile("cpu").needs["step_bytes"])
        self._executor = CpuExecutor(engine, "cpu", threads=None, max_batch=1)

    def decode(self, tokens: int, seed: int) -> float:
        """Seconds of a token after a prompt; tokens are random, so that each chooses other experts."""
        ids = np.random.default_rng(seed).integers(0, SHAPE["vocab_size"], PROMPT + tokens).tolist()
        self._step(tuple(ids[:PROMPT]), 0, seed)
        started = time.perf_counter()
        for at in range(PROMPT, PROMPT + tokens):
            self._step((ids[at],), at, seed)
        seconds = (time.perf_counter() - started) / tokens
        self._executor.release(seed)
        return seconds

    def prompt(self, seed: int) -> float:
        """Seconds of a prompt of LONG random tokens."""
        ids = np.random.default_rng(seed).integers(0, SHAPE["vocab_size"], LONG).tolist()
        started = time.perf_counter()
        self._step(tuple(ids), 0, seed, LONG)
        seconds = time.perf_counter() - started
        self._executor.release(seed)
        return seconds

    def _step(self, ids: tuple[int, ...], start: int, sequence: int, prompt: int = PROMPT) -> None:
        self._executor.submit((ScheduledSequence(sequence, ids, start, ((0,),), None, prompt),))


if __name__ == "__main__":
    main()
