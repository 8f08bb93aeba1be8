"""Builds a small model in every weight format, as a user would, to learn how fast this machine builds."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from ...runtime import environment
from ...runtime.costs.facts import BuildFacts, FormatFacts
from ...runtime.dtypes import WEIGHT_FORMATS
from ...runtime.errors import ResourceError
from ...runtime.files import temporary
from ...runtime.numbers import f32_to_bf16

FORMATS = ("none", *WEIGHT_FORMATS)
STEPS = len(FORMATS) + 2
"""How often `measure` advances."""
_LAYERS, _DEEP = 4, 24
_HASHED = 64 << 20
_READ = 4 << 20
_CONFIG: Mapping[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": _LAYERS,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "vocab_size": 32768,
    "tie_word_embeddings": True,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-05,
    "rope_theta": 500000.0,
    "hidden_act": "silu",
    "torch_dtype": "bfloat16",
}
"""94 M weights: its embedding is larger than four chunks of a build, so memory is that of larger models too."""
_FLAT = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 1, "num_key_value_heads": 1}
"""With these sizes a build is passes over its layers, and nearly nothing else."""
Advance = Callable[[int], None]


def measure(advance: Advance = lambda _: None) -> BuildFacts:
    """The facts of builds on this machine; `advance` receives 1 after each step.

    Raises:
        ResourceError: a build fails, such as for lack of space.
    """
    with temporary.folder("measure") as own:
        folder = own / "builds"  # a build locks the folder of its engine, and `own` is locked
        folder.mkdir()
        checkpoint = _checkpoint(folder / "small")
        read_s = _read_cold(checkpoint / "model.safetensors")
        advance(1)
        flat = folder / "flat"
        flat.mkdir()
        deep = {**_CONFIG, **_FLAT, "vocab_size": 256, "num_hidden_layers": _DEEP}
        (flat / "config.json").write_text(json.dumps(deep), encoding="utf-8")
        many, _ = _build(flat, "none", folder, "--random-weights", "0")
        advance(1)
        built = {}
        for name in FORMATS:
            built[name] = _build(checkpoint, name, folder)
            advance(1)
    reports = [report for report, _ in built.values()]
    few = median(map(_graph_seconds, reports))
    layer = max(0.0, _graph_seconds(many) - few) / (_DEEP - _LAYERS)
    return BuildFacts(
        start_s=median(start for _, start in built.values()),
        layer_s=layer,
        graph_s=max(0.0, few - _LAYERS * layer),
        disk_read_byte_s=read_s,
        disk_write_byte_s=median(one["stages"]["finish file"] / one["bytes"] for one in reports),
        hash_byte_s=_hash_seconds(),
        formats=tuple(_format_facts(name, report) for name, (report, _) in built.items()),
    )


def _format_facts(name: str, report: Mapping[str, Any]) -> FormatFacts:
    weights = _weights()
    seconds = report["stages"]["weights"] + report["stages"]["digest checkpoint"]
    probe = report["stages"]["golden probe"] / weights
    return FormatFacts(name, seconds / (2 * weights), probe, report["peak_rss_bytes"])


def _graph_seconds(report: Mapping[str, Any]) -> float:
    return report["stages"]["graph and passes"] + report["stages"]["compile profiles"]


def _build(checkpoint: Path, quantize: str, folder: Path, *flags: str) -> tuple[dict[str, Any], float]:
    """What `llmc build --json` reports, and the seconds that its process took beside the build."""
    recipe, engine = folder / f"{quantize}.yaml", folder / "small.llmc"
    recipe.write_text(f"version: 1\nquantize:\n  default: {quantize}\ntargets: [cpu]\n", encoding="utf-8")
    command = [sys.executable, "-m", "llmc", "build", str(checkpoint), "-o", str(engine), "--recipe", str(recipe)]
    started = time.perf_counter()
    done = subprocess.run(
        [*command, "--json", *flags], capture_output=True, text=True, env=environment.without_huge_pages()
    )
    seconds = time.perf_counter() - started
    if done.returncode:
        raise ResourceError("cannot measure a build", found=done.stderr.strip().splitlines()[-1][:500])
    engine.unlink()
    report = json.loads(done.stdout.splitlines()[-1])
    return report, seconds - report["seconds"]


def _shapes() -> dict[str, tuple[int, ...]]:
    hidden, inner, head = _CONFIG["hidden_size"], _CONFIG["intermediate_size"], _CONFIG["head_dim"]
    queries, keys = _CONFIG["num_attention_heads"] * head, _CONFIG["num_key_value_heads"] * head
    layer = {
        "input_layernorm": (hidden,),
        "self_attn.q_proj": (queries, hidden),
        "self_attn.k_proj": (keys, hidden),
        "self_attn.v_proj": (keys, hidden),
        "self_attn.o_proj": (hidden, queries),
        "post_attention_layernorm": (hidden,),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }
    layers = {f"layers.{at}.{name}": shape for at in range(_LAYERS) for name, shape in layer.items()}
    named = {"embed_tokens": (_CONFIG["vocab_size"], hidden), **layers, "norm": (hidden,)}
    return {f"model.{name}.weight": shape for name, shape in named.items()}


def _weights() -> int:
    return sum(int(np.prod(shape)) for shape in _shapes().values())


def _checkpoint(folder: Path) -> Path:
    """A checkpoint with random weights; they repeat, which no format's speed depends on."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(_CONFIG), encoding="utf-8")
    header, at = {}, 0
    for name, shape in _shapes().items():
        end = at + 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, end]}
        at = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    numbers = f32_to_bf16(np.random.default_rng(0).standard_normal(1 << 20, np.float32) * np.float32(0.02))
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for shape in _shapes().values():
            file.write(np.resize(numbers, shape).tobytes())
        file.flush()
        os.fsync(file.fileno())
    return folder


def _read_cold(path: Path) -> float:
    """Seconds for each byte of a file that is read from the disk, if the system can be asked to forget it."""
    size = path.stat().st_size
    buffer = bytearray(_READ)
    with path.open("rb", buffering=0) as file:
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        started = time.perf_counter()
        while file.readinto(buffer):
            pass
        return (time.perf_counter() - started) / size


def _hash_seconds() -> float:
    data = bytes(_HASHED)
    started = time.perf_counter()
    hashlib.sha256(data)
    return (time.perf_counter() - started) / len(data)
