"""onnxruntime-genai as a peer of benchmarks/llama1b.py: its own environment runs this file, so llmc is not imported.

    run_genai.py MODEL --prompt-tokens 256 --new-tokens 64 [--threads 2]

Prints one JSON line. Without --threads the model runs as its builder wrote it. With --threads a folder of links beside
MODEL holds the same model under a configuration that names the number of threads.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import onnxruntime_genai as og  # pyright: ignore[reportMissingImports]

CONFIG = "genai_config.json"


def with_threads(model: Path, threads: int) -> Path:
    """The same model with intra_op_num_threads set; the files are links."""
    folder = model.with_name(f"{model.name}-{threads}-threads")
    folder.mkdir(exist_ok=True)
    for file in model.iterdir():
        link = folder / file.name
        if file.name != CONFIG and not link.exists():
            link.symlink_to(file.resolve())
    config = json.loads((model / CONFIG).read_text())
    config["model"]["decoder"]["session_options"]["intra_op_num_threads"] = threads
    (folder / CONFIG).write_text(json.dumps(config, indent=1))
    return folder


def generate(model: og.Model, prompt: list[int], new_tokens: int) -> tuple[float, float]:
    """(seconds to the first token, tokens per second after it), greedy, never stopping early."""
    length = len(prompt) + new_tokens
    params = og.GeneratorParams(model)
    params.set_search_options(max_length=length, min_length=length, do_sample=False)
    generator = og.Generator(model, params)
    start = time.perf_counter()
    generator.append_tokens(prompt)
    generator.generate_next_token()
    first = time.perf_counter()
    for _ in range(new_tokens - 1):
        generator.generate_next_token()
    return first - start, (new_tokens - 1) / (time.perf_counter() - first)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--prompt-tokens", type=int, default=256)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()
    folder = args.model if args.threads is None else with_threads(args.model, args.threads)
    model = og.Model(str(folder))
    prompt = [7919 * (index + 1) % 100_000 for index in range(args.prompt_tokens)]
    generate(model, prompt, 4)
    ttft, decode = generate(model, prompt, args.new_tokens)
    facts = {"prefill": round(args.prompt_tokens / ttft, 2), "decode": round(decode, 2)}
    print(json.dumps({**facts, "version": og.__version__}))


if __name__ == "__main__":
    main()
