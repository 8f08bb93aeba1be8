"""transformers on a GPU as a peer of benchmarks/gpu_decode.py: static cache, torch.compile with CUDA graphs, batch 1.

    run_transformers.py [--shape 8b] [--format bf16 int4 fp8] [--prompt 1024] [--tokens 128] [--out FILE]

A process of its own, so that it shares neither memory nor settings with llmc. Weights are random numbers made on the
GPU, in the published shape; int4 and fp8 are torchao's, weights only. Prints and writes JSON; what cannot be measured
has a reason in place of numbers. Limit: a copy by torch in the same run.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from build8b import CONFIG
from gpu_engines import SHAPES

FORMATS = ("bf16", "int4", "fp8")
COPY_BYTES = 2 << 30
WARM = 8
_TAIL = 300


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, default="8b")
    parser.add_argument("--layers", type=int, help="fewer than the shape has, to try this")
    parser.add_argument("--format", nargs="+", choices=FORMATS, default=["bf16"])
    parser.add_argument("--prompt", type=int, default=1024)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--eager", action="store_true", help="without torch.compile")
    parser.add_argument("--work", type=Path, help="not used; all benchmarks have it")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--dry-run", action="store_true")
    options = parser.parse_args()
    if options.tokens <= WARM or options.prompt < 1 or options.rounds < 1:
        parser.error(f"more than {WARM} --tokens, and a --prompt and --rounds")
    facts: dict[str, Any] = {"shape": options.shape, "prompt": options.prompt, "tokens": options.tokens}
    if options.dry_run:
        print(json.dumps({**facts, "formats": options.format}))
        return
    found: dict[str, Any] = {name: attempted(lambda name=name: measured(name, options)) for name in options.format}
    text = json.dumps({**facts, **attempted(lambda: {"versions": versions(options.device)}), "formats": found})
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(text + "\n")
    print(text)


def attempted(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What was measured, or why it was not: a peer that fails in whatever way must not end the others."""
    try:
        return work()
    except Exception as error:
        return {"not available": f"{type(error).__name__}: {error}"[:_TAIL]}


def versions(device: str) -> dict[str, str]:
    import torch
    import transformers

    name = torch.cuda.get_device_name() if device == "cuda" else device
    return {"torch": torch.__version__, "transformers": transformers.__version__, "device": name}


def measured(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Speed of one weight format."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig, StaticCache

    if options.device == "cuda" and not torch.cuda.is_available():
        raise RuntimeError("torch sees no GPU")
    quantize = quantizer(name)
    facts = {**CONFIG, **SHAPES[options.shape]}
    config = LlamaConfig(**{key: value for key, value in facts.items() if key not in _OURS})
    config.num_hidden_layers = options.layers or config.num_hidden_layers
    torch.manual_seed(0)
    with torch.device(options.device):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
    quantize(model)
    nbytes = weight_bytes(model)
    room = options.prompt + options.tokens
    cache = StaticCache(config=config, max_cache_len=room)

    def step(token: Any, position: Any) -> Any:
        logits = model(token, position_ids=position, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
        return logits[:, -1].argmax(-1, keepdim=True)

    decode = step if options.eager else torch.compile(step, mode="reduce-overhead", fullgraph=True)
    with torch.inference_mode():
        taken = [_round(step, decode, cache, config.vocab_size, options) for _ in range(options.rounds + 1)][1:]
    seconds = median(taken)
    copied = copy_bandwidth(options.device)
    cached = (options.prompt + options.tokens // 2) * config.num_hidden_layers * 4 * config.num_key_value_heads
    cached *= config.hidden_size // config.num_attention_heads
    return {
        "tokens_per_s": 1 / seconds,
        "step_s_all": sorted(taken),
        "bytes": nbytes + cached,
        "bytes_per_s": (nbytes + cached) / seconds,
        "percent_of_copy": 100 * (nbytes + cached) / seconds / copied,
        "compiled": not options.eager,
    }


_OURS = ("architectures", "model_type", "torch_dtype")


def quantizer(name: str) -> Callable[[Any], None]:
    """What makes a bf16 model one of a format, in place.

    Raises:
        ImportError: torchao is not installed.
    """
    if name == "bf16":
        return lambda model: None
    from torchao.quantization import (  # pyright: ignore[reportMissingImports]
        Float8WeightOnlyConfig,
        Int4WeightOnlyConfig,
        quantize_,
    )

    config = Int4WeightOnlyConfig(group_size=128) if name == "int4" else Float8WeightOnlyConfig()
    return lambda model: quantize_(model, config)


def weight_bytes(model: Any) -> int:
    """Bytes that a step reads of weights; of the embedding it reads one row, unless it is the head too."""
    embedding = model.get_input_embeddings().weight
    tied = model.get_output_embeddings().weight is embedding
    total = sum(tensor_bytes(each) for each in model.parameters())
    return total - (0 if tied else tensor_bytes(embedding))


def tensor_bytes(tensor: Any) -> int:
    """Bytes of a tensor, or of the tensors it is made of: torchao's have the dtype they stand for."""
    if not hasattr(tensor, "__tensor_flatten__"):
        return tensor.numel() * tensor.element_size()
    return sum(tensor_bytes(getattr(tensor, name)) for name in tensor.__tensor_flatten__()[0])


def _round(step: Callable[..., Any], decode: Callable[..., Any], cache: Any, vocab: int, options: Any) -> float:
    """Seconds per decoded token after a prompt, the first few not counted."""
    import torch

    wait = torch.cuda.synchronize if options.device == "cuda" else lambda: None
    cache.reset()
    prompt = torch.randint(vocab, (1, options.prompt), device=options.device)
    token = step(prompt, torch.arange(options.prompt, device=options.device)[None])
    began = 0.0
    for place in range(options.tokens):
        if place == WARM:
            wait()
            began = time.perf_counter()
        position = torch.tensor([[options.prompt + place]], device=options.device)
        token = decode(token, position).clone()
    wait()
    return (time.perf_counter() - began) / (options.tokens - WARM)


def copy_bandwidth(device: str) -> float:
    """Bytes/s of a copy on the device, read and written counted."""
    import torch

    if device != "cuda":
        return float("nan")
    source = torch.randint(256, (COPY_BYTES,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    taken = []
    for _ in range(13):
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        target.copy_(source)
        stop.record()
        torch.cuda.synchronize()
        taken.append(start.elapsed_time(stop) / 1e3)
    return 2 * COPY_BYTES / median(taken[3:])


if __name__ == "__main__":
    main()
