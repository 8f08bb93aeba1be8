"""Checkpoints of any family with random numbers, what transformers computes from them, and what llmc must agree with.

transformers is imported where it is used: it takes seconds, and every process that tests imports this file.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from support.engines import NARROW, NARROW_BATCH, checkpoint_logits, quantized_logits, some_ids

import llmc
from llmc.compiler.families.config import parse_config
from llmc.compiler.families.spec import DecoderSpec
from llmc.compiler.targets.cuda.cubins.compile import Cubin, Specialization
from llmc.compiler.targets.simulate.device import SimulatedDevice
from llmc.runtime.engine_file.file import EngineFile
from llmc.runtime.load import load
from llmc.runtime.plan.plan import MachineCode

LENGTH, NEW = 40, 4
"""Prompt tokens; tokens generated at the end of the context."""
BOUND = 1e-5
"""max|a-b| / max|b| of logits: 1e-4 is promised, 2e-6 was measured, and a wrong constant moves them by 1e-3."""
CONFIG: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 200,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "bos_token_id": None,
    "eos_token_id": None,
}

WIDE: dict[str, Any] = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 1, "head_dim": 32}
"""Wide enough for blocks of 128."""
PLANNED: dict[str, Any] = {**NARROW, "num_hidden_layers": 1, "head_dim": 16}
"""The shape of other tests of launch plans, so that most kernels are compiled for all of them."""


@dataclass(frozen=True)
class Case:
    """One checkpoint: what its config changes, dtype, whether it is sharded, and config.json of the old kind."""

    config: Mapping[str, Any] = field(default_factory=dict)
    dtype: torch.dtype = torch.float32
    sharded: bool = False
    old: bool = False
    by_length: bool = False
    """Its rope has other frequencies at every length (dynamic), for which transformers recomputes no cached keys."""


@dataclass(frozen=True)
class Sample:
    """Small models of one family: the first case runs in every test run, all of them in `make soak`."""

    kind: str
    """`model_type`."""
    cases: Mapping[str, Case]
    wide: Mapping[str, Any] = field(default_factory=dict)
    """What the first case's config changes beside WIDE, so that blocks of 128 fit."""
    centres: Mapping[str, float] = field(default_factory=lambda: {"norm": 1.0})
    """Around what the numbers of a tensor lie, by a part of its name, the first that fits; all others lie around 0."""
    old: Callable[[dict[str, Any]], None] = lambda config: None
    """Makes of a config.json what older files of the family spell; called after what all families have in common."""
    one_kv_head: Mapping[str, Any] = field(default_factory=lambda: {"num_key_value_heads": 1})
    """What gives a model as few key and value heads as it may have."""


@dataclass(frozen=True)
class Written:
    """A checkpoint on disk, and what transformers computes from it in fp32: logits [length,V], greedy continuation."""

    path: Path
    ids: list[int]
    logits: np.ndarray
    continuation: list[int]


def read(architecture: str, **changes: object) -> DecoderSpec:
    """What a config of an architecture says; `...` leaves a key out."""
    values = CONFIG | {"architectures": [architecture]} | changes
    return parse_config(json.dumps({key: value for key, value in values.items() if value is not ...})).decoder


def language_models() -> Any:
    """transformers' AutoModelForCausalLM, with a class that its table does not have."""
    from transformers import AutoModelForCausalLM, Mistral4Config, Mistral4ForCausalLM

    AutoModelForCausalLM.register(Mistral4Config, Mistral4ForCausalLM, exist_ok=True)
    return AutoModelForCausalLM


def write(folder: Path, kind: str, case: Case, seed: int = 0, sample: Sample | None = None) -> Path:
    """A checkpoint with random numbers everywhere, norms and biases too, large enough that attention is not uniform."""
    sample = sample or Sample(kind, {})
    from transformers import AutoConfig

    torch.manual_seed(seed)
    model: Any = language_models().from_config(AutoConfig.for_model(kind, **{**CONFIG, **case.config}))
    with torch.no_grad():
        stored = model.state_dict().keys()
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            if name in stored:
                centre = next((one for part, one in sample.centres.items() if part in name), 0.0)
                tensor.normal_(centre, 0.15)
    model.to(case.dtype).save_pretrained(folder, max_shard_size="60KB" if case.sharded else "1GB")
    assert len(list(folder.glob("*.safetensors"))) > 1 or not case.sharded
    if case.old:
        _spell_old(folder / "config.json", sample.old)
    return folder


def _spell_old(path: Path, old: Callable[[dict[str, Any]], None]) -> None:
    """config.json as transformers 4 wrote it."""
    config = json.loads(path.read_text())
    config["torch_dtype"] = config.pop("dtype")
    rope = config.pop("rope_parameters")
    if "sliding_attention" in rope:
        config["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
        rope = rope["full_attention"]
    config |= {key: rope.pop(key) for key in ("rope_theta", "partial_rotary_factor") if key in rope}
    kind = rope.pop("rope_type")
    # "type" was the key's first name
    config["rope_scaling"] = (
        None if kind == "default" else {"type" if kind in ("linear", "yarn") else "rope_type": kind, **rope}
    )
    config.pop("layer_types", None)
    old(config)
    path.write_text(json.dumps(config))


def answers(path: Path, length: int = LENGTH) -> Written:
    """What transformers computes without a cache."""
    model: Any = language_models().from_pretrained(path, dtype=torch.float32).eval()
    ids = np.random.default_rng(1).integers(0, CONFIG["vocab_size"], length).tolist()
    continuation = _without_cache(model, ids[: length - NEW])
    return Written(path, ids, _logits(model, ids), continuation)


def _logits(model: Any, ids: list[int], length: int = 0) -> np.ndarray:
    """f32 [len(ids), V]; a rope that depends on the length sees `length` tokens."""
    padded = torch.tensor([ids + [0] * (length - len(ids))])
    with torch.no_grad():
        return model(padded, use_cache=False).logits[0, : len(ids)].numpy()


def _without_cache(model: Any, prompt: list[int]) -> list[int]:
    """The greedy tokens; a rope that depends on the length sees that of the last step, as one of llmc does."""
    sequence = prompt
    for _ in range(NEW):
        sequence = [*sequence, int(_logits(model, sequence, len(prompt) + NEW - 1)[-1].argmax())]
    return sequence[len(prompt) :]


def difference(found: np.ndarray, expected: np.ndarray) -> float:
    """max|a-b| / max|b| of float32 arrays."""
    assert found.shape == expected.shape and found.dtype == np.float32
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def check_against_transformers(written: Written, folder: Path, bound: float = BOUND) -> None:
    """The oracle, and an engine whose prompt runs in chunks and which then generates, say what transformers says."""
    length = len(written.ids)
    assert difference(checkpoint_logits(written.path, written.ids), written.logits) < bound
    path = llmc.build(written.path, folder / "a.llmc", max_context=length, max_batch=2)
    with llmc.load(path) as engine:
        assert difference(engine.logits(written.ids), written.logits) < bound
        assert engine.generate(written.ids[: length - NEW], max_tokens=NEW).token_ids == written.continuation


def check_company(written: Written, folder: Path, *, by_length: bool = False) -> None:
    """Three prompts of different lengths at once, in chunks, give what transformers gives each alone.

    Transformers has its cache, unless the rope is `by_length`.
    """
    model: Any = language_models().from_pretrained(written.path, dtype=torch.float32).eval()
    prompts = [written.ids[:length] for length in (3, 17, len(written.ids) - NEW)]
    path = llmc.build(written.path, folder / "b.llmc", max_context=len(written.ids), max_batch=3)
    with llmc.load(path) as engine:
        found = engine.generate(prompts, max_tokens=NEW)
    for prompt, one in zip(prompts, found, strict=True):
        if by_length:
            expected = _without_cache(model, prompt)
        else:
            ids = torch.tensor([prompt])
            made = model.generate(ids, max_new_tokens=NEW, do_sample=False, pad_token_id=0, eos_token_id=None)
            expected = made[0, len(prompt) :].tolist()
        assert one.token_ids == expected, f"{len(prompt)} tokens"


def check_format(checkpoint: Path, quantize: str, folder: Path, count: int) -> None:
    """An engine on the CPU says what the oracle of its quantized graph says, within its profile's tolerance."""
    ids = some_ids(count, 5, CONFIG["vocab_size"])
    path = llmc.build(checkpoint, folder / "a.llmc", quantize=quantize, max_context=count)
    with EngineFile.open(path) as file:
        tolerance = file.manifest.profiles["cpu"].tolerance
    expected = quantized_logits(path, quantize, ids, checkpoint)
    with llmc.load(path) as engine:
        assert difference(engine.logits(ids), expected) < tolerance


def check_simulated(checkpoint: Path, quantize: str, folder: Path, count: int, bound: float = 3e-2) -> None:
    """The launch plan, interpreted, says what the oracle says, to the rounding of 16-bit activations."""
    ids = some_ids(count, 5, CONFIG["vocab_size"])
    path = folder / "a.llmc"
    llmc.build(checkpoint, path, targets=["sm_90"], quantize=quantize, max_batch=NARROW_BATCH)
    expected = quantized_logits(path, quantize, ids, checkpoint)
    with load(path, make_device=SimulatedDevice) as engine:
        assert difference(engine.logits(ids), expected) < bound


def uncompiled(specializations: Sequence[Specialization], sm: int, **_: object) -> dict[Specialization, Cubin]:
    """For `compile_all`: the interpreter runs no machine code, and a hundred kernels take minutes to compile."""
    code = MachineCode("none", shared=0, registers=0, spills=0)
    return {one: Cubin(sm, b"none", "none", one.types, code) for one in specializations}
