"""Launch plans of all that the records can say (`dense/wider.py`), interpreted, agree with the oracle."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support.engines import NARROW, NARROW_BATCH, relative, small_checkpoint, some_ids
from support.samples.dense import wider
from support.samples.families import uncompiled

from llmc.compiler.build import build
from llmc.compiler.checkpoint.account import open_source
from llmc.compiler.checkpoint.checkpoint import Checkpoint
from llmc.compiler.checkpoint.weights.random_source import RandomSource
from llmc.compiler.families.spec import DecoderSpec
from llmc.compiler.oracle.oracle import Oracle
from llmc.compiler.oracle.probe import inputs_for
from llmc.compiler.pipeline import lower
from llmc.compiler.targets.cuda import emit
from llmc.compiler.targets.simulate.device import SimulatedDevice
from llmc.recipes.recipe import with_flags
from llmc.runtime.engine_file.file import EngineFile
from llmc.runtime.load import load
from llmc.runtime.numbers import f32_to_bf16

BOUND = 3e-2
"""Largest max|a-b| / max|b| of logits: activations are bfloat16 between operators, of one layer or two."""
PROMPT, NEW = 70, 3


class _Source(RandomSource):
    """Weights of norms, biases and single numbers are random too."""

    def rows(self, name: str, start: int, stop: int) -> np.ndarray:
        shape = self.info(name).shape
        if len(shape) > 1:
            return super().rows(name, start, stop)
        random = np.random.default_rng(sum(name.encode())).standard_normal(shape)
        return f32_to_bf16(np.float32(not name.endswith(".bias")) + np.float32(0.3) * random.astype(np.float32))[
            start:stop
        ]


def _checkpoint(folder: Path, records: Callable[[DecoderSpec], DecoderSpec], layers: Sequence[int]) -> Checkpoint:
    source = open_source(small_checkpoint(folder, tokenizer=False, **NARROW), random_weights=0)
    spec = records(source.config.decoder)
    spec = replace(spec, layers=tuple(spec.layers[index] for index in layers))
    weights = _Source(spec.tensors(), initializer_range=0.1)
    return replace(source, config=replace(source.config, decoder=spec), source=weights)


def _layers(records: Callable[[DecoderSpec], DecoderSpec], *layers: int, soak: bool = True) -> object:
    name = "-".join((records.__name__, *map(str, layers)))
    return pytest.param(records, layers, id=name, marks=[pytest.mark.soak] if soak else [])


@pytest.mark.parametrize(
    ("records", "layers"),
    [
        _layers(wider.attention, 0, 5, soak=False),
        *(_layers(wider.attention, index) for index in (1, 2, 3, 4, 6)),
        _layers(wider.around, 0, 1, soak=False),
        *(_layers(wider.activations, index) for index in range(9)),
    ],
)
def test_logits_and_tokens_are_the_oracles(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    records: Callable[[DecoderSpec], DecoderSpec],
    layers: Sequence[int],
) -> None:
    monkeypatch.setattr(emit, "compile_all", uncompiled)
    recipe = with_flags(None, targets=["sm_90"], max_batch=NARROW_BATCH)
    path = tmp_path / "a.llmc"
    build(_checkpoint(tmp_path / "c", records, layers), path, recipe)
    prompt = some_ids(PROMPT, 5, NARROW["vocab_size"])
    with load(path, make_device=SimulatedDevice) as engine:
        found = engine.logits(prompt)
        tokens = engine.generate(prompt, max_tokens=NEW, temperature=0.0).token_ids
    checkpoint = _checkpoint(tmp_path / "c", records, layers)
    with EngineFile.open(path) as engine:
        graph = lower(checkpoint, recipe, NARROW["max_position_embeddings"])[0].graph
        ids = [*prompt, *tokens]
        inputs = inputs_for(checkpoint.config.decoder, ids, rows=len(ids))
        expected = Oracle(lambda name, start, stop: _rows(engine.tensor(name), start, stop)).run(graph, inputs)[
            "logits"
        ]
    assert relative(found, expected[:PROMPT]) < BOUND
    rows = expected[PROMPT - 1 : -1]
    assert (rows.max(axis=1) - rows[np.arange(NEW), tokens] <= 2 * BOUND * np.abs(rows).max()).all()


def _rows(tensor: np.ndarray, start: int, stop: int) -> np.ndarray:
    return tensor[start:] if stop < 0 and tensor.shape else tensor[start:stop] if tensor.shape else tensor
