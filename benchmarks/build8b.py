"""Peak memory and time of a Llama-3.1-8B-shaped build: the same stream as for 1B, so memory must hardly grow.

    python benchmarks/build8b.py [--quantize int4] [--work build/llama8b] [--out benchmarks/results/build8b.json]

Weights are random numbers made on the way (`--random-weights`), so no 16 GB have to lie on disk; making them takes part
of the time, which is why the time of the weights' stage is reported beside the whole.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from llmc.runtime.machine import cpu_count, cpu_name

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "tie_word_embeddings": False,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-05,
    "rope_theta": 500000.0,
    "rope_scaling": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    "hidden_act": "silu",
    "bos_token_id": 128000,
    "eos_token_id": 128001,
    "torch_dtype": "bfloat16",
}
PEAK_GOAL_BYTES = 4 * 2**30


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quantize", default="int4")
    parser.add_argument("--work", type=Path, default=Path("build/llama8b"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/build8b.json"))
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    (options.work / "config.json").write_text(json.dumps(CONFIG, indent=1) + "\n")
    engine = options.work / "llama8b.llmc"
    command = [sys.executable, "-m", "llmc", "build", str(options.work), "-o", str(engine), "--random-weights", "1"]
    done = subprocess.run(
        [*command, "--quantize", options.quantize, "--json"], check=True, stdout=subprocess.PIPE, text=True
    )
    report = json.loads(done.stdout.splitlines()[-1])
    engine.unlink()
    result = {
        "machine": f"{cpu_name()}, {cpu_count()} threads",
        "quantize": options.quantize,
        "bytes": report["bytes"],
        "seconds": report["seconds"],
        "stages": report["stages"],
        "peak_rss_bytes": report["peak_rss_bytes"],
        "peak_goal_bytes": PEAK_GOAL_BYTES,
        "largest_tensor_bytes": 2 * CONFIG["vocab_size"] * CONFIG["hidden_size"],
    }
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    share = report["peak_rss_bytes"] / result["largest_tensor_bytes"]
    print(
        f"8B {options.quantize}: {report['seconds']:.0f} s, peak {report['peak_rss_bytes'] / 2**30:.2f} GiB, ", end=""
    )
    print(f"{share:.2f}x the largest tensor ({result['largest_tensor_bytes'] / 2**30:.2f} GiB)")


if __name__ == "__main__":
    main()
