"""llama.cpp as a peer of benchmarks/llama1b.py: its own environment (llama-cpp-python, gguf) runs this file.

    run_llama.py convert CHECKPOINT MODEL.gguf --threads 2
    run_llama.py run MODEL.gguf --prompt-tokens 256 --new-tokens 64 --threads 2

`convert` writes the Llama checkpoint as GGUF in bf16 and quantizes it to Q4_0 with llama.cpp's own quantizer; the
vocabulary is made of placeholders, because only ids are fed. `run` prints one JSON line, with the types of layers and
head.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import gguf  # pyright: ignore[reportMissingImports]
import llama_cpp  # pyright: ignore[reportMissingImports]
import numpy as np

LLAMA_FTYPE_MOSTLY_Q4_0 = 2
LAYER_NAMES = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def tensors(file: Path) -> dict[str, np.ndarray]:
    """The bf16 tensors of a safetensors file, as uint16 views of its mapping."""
    with file.open("rb") as stream:
        size = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(size))
    data = np.memmap(file, np.uint8, "r", offset=8 + size)
    header.pop("__metadata__", None)
    return {
        name: data[slice(*facts["data_offsets"])].view(np.uint16).reshape(facts["shape"])
        for name, facts in header.items()
    }


def interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of q or k reordered from the half-split rotation of Hugging Face to the interleaved one of GGUF."""
    return weight.reshape(heads, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


def rope_factors(config: dict[str, Any]) -> np.ndarray:
    """What llama3 scaling divides each frequency by, [head_dim / 2]."""
    rope, theta = config["rope_scaling"], config["rope_theta"]
    frequency = theta ** (-np.arange(0, config["head_dim"], 2) / config["head_dim"])
    turns = rope["original_max_position_embeddings"] * frequency / (2 * np.pi)
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    smooth = np.clip((turns - low) / (high - low), 0, 1)
    return (1 / ((1 - smooth) / rope["factor"] + smooth)).astype(np.float32)


def write_gguf(checkpoint: Path, target: Path) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    weights = tensors(checkpoint / "model.safetensors")
    writer = gguf.GGUFWriter(target, "llama")
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("llama-bpe")
    writer.add_token_list([f"<{index}>" for index in range(config["vocab_size"])])
    writer.add_token_types([1] * config["vocab_size"])
    writer.add_token_merges(["< 0"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)

    def add(name: str, weight: np.ndarray) -> None:
        if weight.ndim == 1:
            writer.add_tensor(name, (weight.astype(np.uint32) << 16).view(np.float32))
        else:
            raw = np.ascontiguousarray(weight).view(np.uint8)
            writer.add_tensor(name, raw, raw_dtype=gguf.GGMLQuantizationType.BF16)

    add("token_embd.weight", weights["model.embed_tokens.weight"])
    add("output_norm.weight", weights["model.norm.weight"])
    writer.add_tensor("rope_freqs.weight", rope_factors(config))
    rotated = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    for layer in range(config["num_hidden_layers"]):
        for source, name in LAYER_NAMES.items():
            weight = weights[f"model.layers.{layer}.{source}.weight"]
            heads = rotated.get(name)
            add(f"blk.{layer}.{name}.weight", interleaved(weight, heads) if heads else weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def convert(checkpoint: Path, target: Path, threads: int) -> None:
    full = target.with_suffix(".bf16")
    partial = target.with_suffix(".partial")
    write_gguf(checkpoint, full)
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.nthread = LLAMA_FTYPE_MOSTLY_Q4_0, threads
    code = llama_cpp.llama_model_quantize(str(full).encode(), str(partial).encode(), params)
    full.unlink()
    if code:
        raise SystemExit(f"llama_model_quantize failed with {code}")
    partial.replace(target)


def generate(model: llama_cpp.Llama, prompt: list[int], new_tokens: int) -> tuple[float, float]:
    """(seconds to the first token, tokens per second after it), greedy."""
    model.reset()
    start = time.perf_counter()
    tokens = model.generate(prompt, temp=0.0)
    next(tokens)
    first = time.perf_counter()
    for _ in range(new_tokens - 1):
        next(tokens)
    return first - start, (new_tokens - 1) / (time.perf_counter() - first)


def run(path: Path, prompt_tokens: int, new_tokens: int, threads: int) -> dict[str, object]:
    context = prompt_tokens + new_tokens + 8
    model = llama_cpp.Llama(
        str(path), n_ctx=context, n_batch=512, n_threads=threads, n_threads_batch=threads, verbose=False
    )
    prompt = [7919 * (index + 1) % 100_000 for index in range(prompt_tokens)]
    generate(model, prompt, 4)
    ttft, decode = generate(model, prompt, new_tokens)
    types = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(path).tensors}
    return {
        "prefill": round(prompt_tokens / ttft, 2),
        "decode": round(decode, 2),
        "version": llama_cpp.__version__,
        "layer_type": types["blk.0.ffn_down.weight"],
        "head_type": types["token_embd.weight"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    converting = commands.add_parser("convert")
    converting.add_argument("checkpoint", type=Path)
    converting.add_argument("model", type=Path)
    running = commands.add_parser("run")
    running.add_argument("model", type=Path)
    running.add_argument("--prompt-tokens", type=int, default=256)
    running.add_argument("--new-tokens", type=int, default=64)
    for command in (converting, running):
        command.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    if args.command == "convert":
        convert(args.checkpoint, args.model, args.threads)
    else:
        print(json.dumps(run(args.model, args.prompt_tokens, args.new_tokens, args.threads)))


if __name__ == "__main__":
    main()
