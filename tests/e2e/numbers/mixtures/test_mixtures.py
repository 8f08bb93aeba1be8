"""Files of mixtures of experts: the spellings of transformers' memory, and layers that draft tokens."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from support.commands import Outcome
from support.engines import checkpoint_logits
from support.samples.families import CONFIG, some_ids, write
from support.samples.mixtures import SAMPLES

import llmc
from llmc.compiler.checkpoint.account import check_tensors, open_source
from llmc.runtime.errors import CheckpointError

IDS = some_ids(12, 5, 200)


STACKED = ("gpt_oss", "llama4_text")
"""Families whose published files are those stacks."""


def _kinds() -> Iterator[object]:
    """Mixtral's in every run, all in `make soak`."""
    for kind in SAMPLES:
        yield pytest.param(kind, marks=[] if kind == "mixtral" else [pytest.mark.soak])


def _written(folder: Path, kind: str, **changes: Any) -> Path:
    sample = SAMPLES[kind]
    first = next(iter(sample.cases.values()))
    return write(folder, kind, replace(first, config={**first.config, **changes}), sample=sample)


@pytest.mark.parametrize("kind", _kinds())
def test_files_as_transformers_has_the_tensors_in_memory(tmp_path: Path, kind: str) -> None:
    """One stack of each kind of linear, and its own names: what `save_original_format=False` writes."""
    from transformers import AutoModelForCausalLM

    published = _written(tmp_path / "a", kind)
    model: Any = AutoModelForCausalLM.from_pretrained(published, dtype=torch.float32)
    model.save_pretrained(tmp_path / "b", save_original_format=False)
    names = [{*load_file(folder / "model.safetensors")} for folder in (published, tmp_path / "b")]
    assert any(name.endswith("experts.gate_up_proj") for name in names[1])
    assert (names[0] == names[1]) == (kind in STACKED)
    assert np.array_equal(checkpoint_logits(tmp_path / "b", IDS), checkpoint_logits(published, IDS))


def _with(folder: Path, more: Mapping[str, torch.Tensor], config: Mapping[str, Any]) -> None:
    """Adds tensors to a checkpoint, and keys to its config.json."""
    path = folder / "model.safetensors"
    save_file({**load_file(path), **more}, path, metadata={"format": "pt"})
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**values, **config}))


def test_a_layer_that_drafts_tokens_is_left_out_in_one_line(tmp_path: Path, call: Callable[..., Outcome]) -> None:
    """As GLM-4.5's files have it: a whole layer after the last one, with linears and norms of its own."""
    folder = _written(tmp_path / "c", "glm4_moe")
    expected = checkpoint_logits(folder, IDS)
    last = {
        key: one for key, one in load_file(folder / "model.safetensors").items() if key.startswith("model.layers.2.")
    }
    extra = {key.replace(".2.", ".3.", 1): one.clone() for key, one in last.items()}
    extra |= {f"model.layers.3.{name}.weight": torch.ones(4, 4) for name in ("eh_proj", "embed_tokens")}
    _with(folder, extra, {"num_nextn_predict_layers": 1, "num_mtp_layers": 1})
    said = f"an extra layer that drafts tokens: {len(extra)} tensors"
    checkpoint = open_source(folder)
    assert check_tensors(checkpoint) == {"model.layers.3": said}
    assert [one for one in checkpoint.warnings if "drafts" in one] == [f"left out: {said} of model.layers.3"]
    assert np.array_equal(checkpoint_logits(folder, IDS), expected)
    engine = llmc.build(folder, tmp_path / "a.llmc", max_context=16)
    shown = call("inspect", engine).out
    assert f"  left out: {said} of model.layers.3\n" in shown
    assert " parameters (" in shown and " of them active), 3 layers" in shown


def test_layers_that_the_config_does_not_count_are_refused(tmp_path: Path) -> None:
    folder = _written(tmp_path / "c", "glm4_moe", num_mtp_layers=0)
    _with(folder, {"model.layers.3.eh_proj.weight": torch.ones(4, 4)}, {"num_nextn_predict_layers": 0})
    with pytest.raises(CheckpointError, match=r"model\.layers\.3\.eh_proj\.weight: expected nothing, found \[4, 4\]"):
        open_source(folder)


def test_the_header_has_room_for_every_expert(tmp_path: Path) -> None:
    """A stack is one tensor; without QMoE the CPU binds 512 parts of it by name."""
    config = {
        **CONFIG,
        "architectures": ["Qwen3MoeForCausalLM"],
        "num_hidden_layers": 4,
        "num_experts": 256,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    path = llmc.build(tmp_path, tmp_path / "a.llmc", random_weights=0)
    with llmc.load(path) as engine:
        assert np.isfinite(engine.logits([1, 2, 3])).all()
