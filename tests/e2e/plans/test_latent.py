"""Launch plans of latent attention, interpreted: against the oracle, in steps of every kind, and what is cached."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.engines import NARROW, quantized_logits, some_ids
from support.samples.families import CONFIG, Case, check_simulated, difference, uncompiled, write

import llmc
from llmc.compiler.targets.cuda import emit
from llmc.compiler.targets.simulate.device import SimulatedDevice
from llmc.runtime.engine_file.file import EngineFile
from llmc.runtime.load import load
from llmc.runtime.plan.plan import Plan

DENSE: dict[str, Any] = {
    **NARROW,
    "hidden_size": 128,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_key_value_heads": 4,
    "first_k_dense_replace": 2,
    "kv_lora_rank": 64,
    "q_lora_rank": 128,
    "qk_rope_head_dim": 16,
    "qk_nope_head_dim": 32,
    "v_head_dim": 32,
    "num_mtp_layers": 0,
}
"""Layers without experts."""


@pytest.fixture(autouse=True)
def _interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(emit, "compile_all", uncompiled)


def _written(folder: Path, **changes: object) -> Path:
    return write(folder / "c", "deepseek_v3", Case({**DENSE, **changes}, torch.bfloat16))


@pytest.mark.parametrize(
    ("quantize", "changes", "bound"),
    [
        ("none", {}, 3e-2),
        ("int4", {}, 6e-2),
        pytest.param("none", {"q_lora_rank": None, "rope_interleave": False}, 3e-2, marks=pytest.mark.soak),
        pytest.param("int4", {"num_attention_heads": 20, "num_key_value_heads": 20}, 6e-2, marks=pytest.mark.soak),
    ],
)
def test_the_plan_says_what_the_oracle_says(
    tmp_path: Path, quantize: str, changes: dict[str, object], bound: float
) -> None:
    check_simulated(_written(tmp_path, **changes), quantize, tmp_path, 70, bound)
