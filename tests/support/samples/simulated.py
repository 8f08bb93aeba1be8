"""Launch plans of decoders that records describe, interpreted, beside what the oracle says of the same engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from support.engines import NARROW, NARROW_BATCH, small_checkpoint, some_ids

from llmc.compiler.build import build
from llmc.compiler.checkpoint.account import open_source
from llmc.compiler.checkpoint.checkpoint import Checkpoint
from llmc.compiler.checkpoint.weights.random_source import RandomSource
from llmc.compiler.families.spec import DecoderSpec
from llmc.compiler.oracle.oracle import Oracle
from llmc.compiler.oracle.probe import inputs_for
from llmc.compiler.pipeline import lower
from llmc.compiler.targets.simulate.device import SimulatedDevice
from llmc.recipes.recipe import with_flags
from llmc.runtime.engine_file.file import EngineFile
from llmc.runtime.load import load
from llmc.runtime.numbers import f32_to_bf16

PROMPT, NEW = 70, 3
Records = Callable[[DecoderSpec], DecoderSpec]


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


@dataclass(frozen=True)
class Answer:
    """Logits of a plan and of the oracle for the prompt, and the oracle's where the plan chose its tokens."""

    found: np.ndarray
    """f32 [PROMPT, V]."""
    expected: np.ndarray
    choices: np.ndarray
    """f32 [NEW, V]."""
    tokens: list[int]

    def require_near(self, bound: float) -> None:
        """Greedy tokens are the oracle's, or others that it finds as good to the bound."""
        best = self.choices.max(axis=1) - self.choices[np.arange(NEW), self.tokens]
        assert (best <= 2 * bound * np.abs(self.choices).max()).all()


def _checkpoint(folder: Path, records: Records, layers: Sequence[int], config: Mapping[str, Any]) -> Checkpoint:
    source = open_source(small_checkpoint(folder, tokenizer=False, **{**NARROW, **config}), random_weights=0)
    spec = records(source.config.decoder)
    spec = replace(spec, layers=tuple(spec.layers[index] for index in layers))
    weights = _Source(spec.tensors(), initializer_range=0.1)
    return replace(source, config=replace(source.config, decoder=spec), source=weights)


def answers_of(
    folder: Path, records: Records, layers: Sequence[int], quantize: str = "none", **config: object
) -> Answer:
    """Of some layers of the records; the machine code of the plan is not asked for (`uncompiled`)."""
    recipe = with_flags(None, targets=["sm_90"], max_batch=NARROW_BATCH, quantize=quantize)
    path = folder / "a.llmc"
    build(_checkpoint(folder / "c", records, layers, config), path, recipe)
    prompt = some_ids(PROMPT, 5, NARROW["vocab_size"])
    with load(path, make_device=SimulatedDevice) as engine:
        found = engine.logits(prompt)
        tokens = engine.generate(prompt, max_tokens=NEW, temperature=0.0).token_ids
    checkpoint = _checkpoint(folder / "c", records, layers, config)
    with EngineFile.open(path) as engine:
        graph = lower(checkpoint, recipe, NARROW["max_position_embeddings"])[0].graph
        ids = [*prompt, *tokens]
        inputs = inputs_for(checkpoint.config.decoder, ids, rows=len(ids))
        logits = Oracle(lambda name, start, stop: _rows(engine.tensor(name), start, stop)).run(graph, inputs)["logits"]
    return Answer(found, logits[:PROMPT], logits[PROMPT - 1 : -1], tokens)


def _rows(tensor: np.ndarray, start: int, stop: int) -> np.ndarray:
    return tensor[start:] if stop < 0 and tensor.shape else tensor[start:stop] if tensor.shape else tensor
