"""Builds a small model in every weight format, in a process of its own, to learn how fast this machine builds."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...runtime import environment
from ...runtime.costs.facts import BuildFacts, FormatFacts
from ...runtime.dtypes import WEIGHT_FORMATS
from ...runtime.errors import ResourceError
from ...runtime.files import temporary
from ...runtime.machine import peak_memory
from ...runtime.numbers import f32_to_bf16

FORMATS = ("none", *WEIGHT_FORMATS)
STEPS = 2
"""How often `measure` advances."""
_LAYERS, _DEEP = 4, 24
_VISITS = 2
"""Builds in each format, far apart: of each stage the fastest counts, as another process may disturb one."""
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
_FIXED, _PROBE, _FINISH = "fixed", "golden probe", "finish file"
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
        flat, deep = (_flat(folder / name, layers) for name, layers in (("flat", _LAYERS), ("deep", _DEEP)))
        command = ["llmc", "build", str(deep), "-o", str(folder / "deep.llmc"), "--json", "--random-weights", "0"]
        started = time.perf_counter()
        many = _last_json(command)
        start_s = time.perf_counter() - started - many["seconds"]
        advance(1)
        built = _last_json([__name__, str(checkpoint), str(flat), str(folder / "small.llmc")])
        advance(1)
    fixed, reports = built["fixed"], built["formats"]
    few = _graph_seconds(fixed)
    layer = max(0.0, _graph_seconds(many) - few) / (_DEEP - _LAYERS)
    finish = sum(max(0.0, one["stages"][_FINISH] - fixed["stages"][_FINISH]) for one in reports.values())
    return BuildFacts(
        start_s=start_s,
        layer_s=layer,
        graph_s=max(0.0, few - _LAYERS * layer),
        probe_s=fixed["stages"][_PROBE],
        finish_s=fixed["stages"][_FINISH],
        disk_read_byte_s=read_s,
        disk_write_byte_s=finish / sum(one["bytes"] for one in reports.values()),
        hash_byte_s=min(_hash_seconds() for _ in range(5)),
        peak_bytes=built["peak_bytes"],
        formats=tuple(_format_facts(name, report, fixed) for name, report in reports.items()),
    )


def main(checkpoint: str, flat: str, engine: str) -> None:
    """Build both models, and print the fastest stages of each and the peak memory."""
    from ...compiler.build import build
    from ...compiler.checkpoint.account import open_source
    from ...recipes.recipe import Recipe

    found: dict[str, dict[str, Any]] = {}
    peak = 0
    for _ in range(_VISITS):
        for name in (*FORMATS, _FIXED):
            source = open_source(checkpoint) if name in FORMATS else open_source(flat, random_weights=0)
            source.files.digests()  # of large checkpoints most of it is left when weights are written
            report = build(source, engine, Recipe(default_format=name if name in FORMATS else "none"), force=True)
            peak = peak or peak_memory()  # of the first build; later ones find memory in pieces
            known = found.get(name, {"stages": dict(report.stages)})["stages"]
            stages = {stage: min(seconds, known[stage]) for stage, seconds in report.stages}
            found[name] = {"stages": stages, "bytes": report.bytes}
    print(json.dumps({"fixed": found.pop(_FIXED), "formats": found, "peak_bytes": peak}))


def _format_facts(name: str, report: Mapping[str, Any], fixed: Mapping[str, Any]) -> FormatFacts:
    """Without what a build takes that has nearly no weights."""
    weights = _weights()
    probe = max(0.0, report["stages"][_PROBE] - fixed["stages"][_PROBE])
    return FormatFacts(name, report["stages"]["weights"] / (2 * weights), probe / weights)


def _flat(folder: Path, layers: int) -> Path:
    """A configuration with so many small layers, whose weights are random numbers."""
    folder.mkdir()
    config = {**_CONFIG, **_FLAT, "vocab_size": 256, "num_hidden_layers": layers}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def _graph_seconds(report: Mapping[str, Any]) -> float:
    return report["stages"]["graph and passes"] + report["stages"]["compile profiles"]


def _last_json(command: Sequence[str]) -> dict[str, Any]:
    """What a module of this package, run as a program, prints as its last line."""
    done = subprocess.run(
        [sys.executable, "-m", *command], capture_output=True, text=True, env=environment.without_huge_pages()
    )
    if done.returncode:
        raise ResourceError("cannot measure builds", found=done.stderr.strip().splitlines()[-1][:500])
    return json.loads(done.stdout.splitlines()[-1])


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


if __name__ == "__main__":
    main(*sys.argv[1:])
