"""Latent attention where the runner of all families does not look: other model types, indexers, dense MLPs on ranks."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.samples.families import (
    LENGTH,
    Case,
    answers,
    check_against_transformers,
    difference,
    language_models,
    write,
)
from support.samples.mixtures import SAMPLES
from support.samples.split_models import Model, compare

import llmc
from llmc.compiler.checkpoint.account import account
from llmc.compiler.checkpoint.checkpoint import open_checkpoint
from llmc.runtime.errors import RecipeError

BOUND = 4e-5
"""max|a-b| / max|b| of logits, as the runner of all families has it."""
DENSE = {**SAMPLES["deepseek_v3"].cases["groups, yarn with mscale"].config, "first_k_dense_replace": 2}
KIMI: dict[str, Any] = {
    **DENSE,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
    "routed_scaling_factor": 2.827,
    "rope_parameters": {
        **{"rope_type": "yarn", "rope_theta": 50000.0, "factor": 32.0, "original_max_position_embeddings": 16},
        **{"beta_fast": 1.0, "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0},
    },
}


def _changed(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    file = path / "config.json"
    config = json.loads(file.read_text())
    change(config)
    file.write_text(json.dumps(config))


def test_kimi_k2_is_deepseek_v3_under_another_name(tmp_path: Path) -> None:
    """transformers has no such class: what it computes is that of `deepseek_v3` with the same config."""
    written = answers(write(tmp_path / "c", "deepseek_v3", Case(KIMI)))

    def rename(config: dict[str, Any]) -> None:
        config |= {"model_type": "kimi_k2", "auto_map": {"AutoConfig": "configuration_deepseek.DeepseekV3Config"}}

    _changed(written.path, rename)
    check_against_transformers(written, tmp_path, BOUND)


@pytest.mark.parametrize("kind", ["deepseek_v32", "glm_moe_dsa"])
def test_an_indexer_is_left_out_up_to_the_positions_that_it_chooses(tmp_path: Path, kind: str) -> None:
    """With as many positions as `index_topk` the logits are those of transformers; with more they are others."""
    sample = SAMPLES[kind]
    case = next(iter(sample.cases.values()))
    written = answers(write(tmp_path / "c", kind, Case({**case.config, "index_topk": LENGTH}), sample=sample))
    check_against_transformers(written, tmp_path, BOUND)
    _changed(written.path, lambda config: config.update(index_topk=8))
    sparse = language_models().from_pretrained(written.path).eval()
    import torch

    with torch.no_grad():
        found = sparse(torch.tensor([written.ids]), use_cache=False).logits[0].numpy()
    assert difference(found[:8], written.logits[:8]) < BOUND < 1e-3 < difference(found[8:], written.logits[8:])
    checkpoint = open_checkpoint(written.path)
    assert "max_position_embeddings = 8: beyond index_topk an indexer chooses which keys each token sees, " in " ".join(
        checkpoint.config.notes
    )
    assert account(checkpoint)["model.layers.1.self_attn.indexer.wk.weight"] == (
        "with at most 8 positions an indexer chooses all"
    )
    with pytest.raises(RecipeError) as caught:
        llmc.build(written.path, tmp_path / "b.llmc", max_context=9)
    assert str(caught.value) == (
        "cannot build with max_context 9\n  found: a model of 8 positions: beyond index_topk an indexer chooses which "
        "keys each token sees, and llmc does not compute it\n  try: --max-context 8 or less"
    )


def test_ranks_compute_together_what_the_whole_does(tmp_path: Path) -> None:
    """Each shard has some of the heads, and all rows of the cache."""
    model = Model.at(write(tmp_path / "c", "deepseek_v3", Case(DENSE)))

    def close(name: str, found: np.ndarray, expected: np.ndarray) -> None:
        assert difference(found, expected) < BOUND, name

    compare(model, "none", ("tp2", "tp4", "pp2", "tp2-pp2"), close)


def test_an_engine_of_ranks_says_what_one_process_does(tmp_path: Path) -> None:
    path = llmc.build(
        write(tmp_path / "c", "deepseek_v3", Case(DENSE)),
        tmp_path / "a.llmc",
        parallel=["tp1", "tp2", "pp2"],
        max_context=48,
    )
    found = []
    for profile in ("cpu", "cpu-tp2", "cpu-pp2"):
        with llmc.load(path, profile=profile) as engine:
            prompts = [[5, 6, 7] * 5, [9, 8, 3]]
            found.append([one.token_ids for one in engine.generate(prompts, max_tokens=24)])
    assert found[0] == found[1] == found[2]
