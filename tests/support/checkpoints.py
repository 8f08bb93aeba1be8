"""Writes small checkpoint folders for tests, and reads what refuses them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from llmc.compiler.checkpoint.checkpoint import open_checkpoint
from llmc.runtime.errors import CheckpointError, LlmcError

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "vocab_size": 10,
    "eos_token_id": 2,
}
INDEX = "model.safetensors.index.json"
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


def write_single(folder: Path, **tensors: torch.Tensor) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    save_file(tensors or {"a": torch.ones(2, 3)}, folder / "model.safetensors")
    return folder


def write_sharded(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    save_file({"a": torch.ones(2, 3), "b": torch.zeros(4)}, folder / FIRST)
    save_file({"c": torch.full((3,), 2.0)}, folder / SECOND)
    write_index(folder, {"a": FIRST, "b": FIRST, "c": SECOND}, total_size=52)
    return folder


def write_index(folder: Path, table: dict[str, str], total_size: int | None = None) -> None:
    metadata = {} if total_size is None else {"metadata": {"total_size": total_size}}
    (folder / INDEX).write_text(json.dumps({**metadata, "weight_map": table}))


def refusal(folder: Path, kind: type[LlmcError] = CheckpointError) -> str:
    with pytest.raises(kind) as caught:
        open_checkpoint(folder)
    return str(caught.value)
