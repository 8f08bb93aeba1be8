"""Random weights: a model of any shape from its config, the same for every chunking and on every machine."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.checkpoints import CONFIG

from llmc.compiler.checkpoint.account import open_source
from llmc.compiler.checkpoint.weights.random_source import RandomSource
from llmc.runtime.errors import CheckpointError


def test_random_weights_need_only_a_config(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG | {"torch_dtype": "float16", "initializer_range": 0.5}))
    checkpoint = open_source(tmp_path, random_weights=7)
    checkpoint.files.require_unchanged()
    assert checkpoint.files.digests().keys() == {"config.json"}
    source = checkpoint.source
    assert checkpoint.random_seed == 7
    assert isinstance(source, RandomSource)
    rows = source.rows("model.embed_tokens.weight", 0, CONFIG["vocab_size"])
    assert rows.dtype == np.float16 and 0.3 < rows.astype(np.float32).std() < 0.7


def test_rows_are_normal_or_constant() -> None:
    source = RandomSource({"w": (300, 100), "norm": (100,), "q.bias": (3,)}, dtype="F16", seed=7, initializer_range=0.5)
    weights = source.rows("w", 0, 300)
    assert (weights.dtype, source.info("w").nbytes) == (np.float16, 60_000)
    assert abs(weights.astype(np.float32).std() - 0.5) < 0.02 and abs(weights.astype(np.float32).mean()) < 0.02
    assert source.rows("norm", 5, 9).tolist() == [1.0] * 4
    assert source.rows("q.bias", 0, 3).tolist() == [0.0] * 3
    with pytest.raises(
        CheckpointError,
        match=r"^cannot find tensor 'nrm' in the random weights\n  found: no such name \(did you mean 'norm'",
    ):
        source.info("nrm")


@given(st.integers(1, 40), st.integers(1, 70), st.data())
def test_random_weights_do_not_depend_on_the_chunks(rows: int, width: int, data: st.DataObject) -> None:
    source = RandomSource({"w": (rows, width)}, dtype="F32", seed=1)
    whole = source.rows("w", 0, rows)
    start = data.draw(st.integers(0, rows))
    stop = data.draw(st.integers(start, rows))
    assert np.array_equal(source.rows("w", start, stop), whole[start:stop])
    assert len(np.unique(whole)) > min(rows * width, 8) // 2
    assert not np.array_equal(RandomSource({"w": (rows, width)}, dtype="F32", seed=2).rows("w", 0, rows), whole)


def test_random_weights_are_the_same_on_every_machine() -> None:
    source = RandomSource({"model.embed_tokens.weight": (4, 20)}, seed=3)
    digest = hashlib.sha256(source.rows("model.embed_tokens.weight", 0, 4).tobytes()).hexdigest()
    assert digest == "eff874ad187f903392f87027c0c5738e49ab70afd710b4e86115486e2e827a26"
