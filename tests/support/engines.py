"""What tests do with real engines: compare numbers, compute the oracle's, and forge engines with honest digests."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from support.paths import PICO

from llmc.compiler.build import build
from llmc.compiler.cache import find as cache
from llmc.compiler.cache.find import Found, Wish
from llmc.compiler.checkpoint.account import open_source
from llmc.compiler.engine.report import BuildReport
from llmc.compiler.engine.writer import EngineWriter
from llmc.compiler.families.config import parse_config
from llmc.compiler.oracle.oracle import Oracle
from llmc.compiler.oracle.probe import inputs_for
from llmc.compiler.oracle.reference import reference_logits
from llmc.compiler.pipeline import lower
from llmc.recipes.recipe import Recipe, with_flags
from llmc.runtime.engine_file.bind import Stored
from llmc.runtime.engine_file.file import EngineFile
from llmc.runtime.engine_file.manifest import Manifest
from llmc.runtime.progress import NO_PROGRESS

_CPUINFO = Path("/proc/cpuinfo")
HAS_VNNI = _CPUINFO.exists() and "avx512_vnni" in _CPUINFO.read_text()
"""Texts and bits of int8 activations in tests are those of CPUs with AVX-512 and VNNI: others round otherwise."""

PicoEngine = Callable[..., Path]
"""Gives the engine of the bundled checkpoint in a weight format, with limits: the fixture `pico_engine`."""
CONTEXT = 512
"""Positions of the bundled checkpoint."""
ANY_RECIPE = Wish.of(None)
"""Of `llmc run CHECKPOINT` without flags."""


SMALL = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 4096,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
}

NARROW = {"vocab_size": 512, "max_position_embeddings": 256}
"""What tests of GPU profiles change of SMALL. Engines of equal shapes have equal kernels, and each is compiled once."""
NARROW_BATCH = 4


def small_checkpoint(folder: Path, *, tokenizer: bool = True, **config: Any) -> Path:
    """A checkpoint with random weights, in one file; the tokenizer is that of PICO."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps({**SMALL, **config})
    (folder / "config.json").write_text(text)
    parsed = parse_config(text.encode(), accept=(), what="config.json")
    noise = torch.randn(1 << 16, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16) * 0.1
    tensors = {}
    for name, shape in parsed.decoder.tensors().items():
        flat = noise.roll(len(tensors)).repeat(-(-math.prod(shape) // len(noise)))[: math.prod(shape)]
        tensors[name] = flat.reshape(shape).clone() if len(shape) > 1 else torch.ones(shape, dtype=torch.bfloat16)
    save_file(tensors, folder / "model.safetensors")
    for name in ("tokenizer.json", "tokenizer_config.json") if tokenizer else ():
        shutil.copy(PICO / name, folder)
    return folder


def build_engine(
    where: Path, output: Path, recipe: Recipe, *, random_weights: int | None = None, **options: Any
) -> BuildReport:
    """An engine through the two calls that the command line and the Python API make."""
    return build(open_source(where, random_weights=random_weights), output, recipe, **options)


def checkpoint_logits(where: Path, ids: list[int]) -> np.ndarray:
    """Logits f32 [T, V] of the checkpoint itself."""
    return reference_logits(open_source(where))(ids)


def some_ids(count: int, seed: int = 0, vocab: int = 4096) -> list[int]:
    """Ids of a vocabulary (PICO's), the same for the same seed."""
    return np.random.default_rng(seed).integers(0, vocab, count).tolist()


def relative(found: np.ndarray, expected: np.ndarray) -> float:
    """max|a-b| / max|b|."""
    assert found.shape == expected.shape
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def quantized_logits(path: Path, quantize: str, ids: list[int], source: Path = PICO) -> np.ndarray:
    """Logits [T,V] of the oracle of the quantized graph, over the weights that the engine of `source` holds."""
    checkpoint = open_source(source)
    with EngineFile.open(path) as engine:
        (context,) = {profile.max_context for profile in engine.manifest.profiles.values()}
        graph = lower(checkpoint, with_flags(None, quantize=quantize), context)[0].graph

        def read(name: str, start: int, stop: int) -> np.ndarray:
            rows = engine.tensor(name)
            return rows[start:] if stop < 0 and rows.shape else rows[start:stop] if rows.shape else rows

        return Oracle(read).run(graph, inputs_for(checkpoint.config.decoder, ids, rows=len(ids)))["logits"]


def forge(
    path: Path,
    target: Path,
    *,
    sections: Mapping[str, bytes] | None = None,
    tensors: Mapping[str, np.ndarray] | None = None,
    drop: Collection[str] = (),
    manifest: Callable[[Manifest], Manifest] = lambda same: same,
) -> Path:
    """A copy of an engine with something else in it: all digests are right, so only its content is wrong."""
    tensors, sections = tensors or {}, sections or {}
    with EngineFile.open(path) as engine:
        groups = [[Stored(info.name, info.dtype, info.shape)] for info in engine.tensors.values()]
        with EngineWriter(target, groups) as writer:
            for name in engine.tensors:
                writer.write(name, 0, tensors.get(name, engine.tensor(name)))
            for name in engine.sections:
                if name not in sections and name not in drop:
                    writer.section(name, engine.section(name))
            for name, data in sections.items():
                writer.section(name, data)
            return writer.commit(manifest(engine.manifest))


def find_cached(where: Path | str, wish: Wish = ANY_RECIPE, **more: Any) -> Found:
    """The engine of a checkpoint in the cache, as `llmc run CHECKPOINT` looks for it."""
    return cache.find(str(where), wish, **more)


def never() -> None:
    """What is called before a wait for another process."""
    raise AssertionError("nobody else builds")


def build_cached(where: Path | str, wish: Wish = ANY_RECIPE) -> Found:
    """An engine that was not there."""
    found = find_cached(where, wish)
    assert not found.ready and not found.damage
    assert found.build(NO_PROGRESS, never) is not None
    found.used()
    return found
