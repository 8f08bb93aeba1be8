"""A rank's weights depend on its own bytes of the engine alone, which are half of all with two ranks."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from support.paths import PICO

import llmc
from llmc.runtime.engine_file.bind import Expr, evaluate_weight, from_json
from llmc.runtime.engine_file.extents import extents
from llmc.runtime.engine_file.file import EngineFile
from llmc.runtime.files.safetensors import TensorInfo


def bytes_of(exprs: Mapping[str, Expr], tensors: Mapping[str, TensorInfo], size: int) -> np.ndarray:
    """True for the bytes of a file of this size that the expressions read."""
    found = np.zeros(size, bool)
    for part in (part for expr in exprs.values() for part in extents(expr, tensors)):
        for index in range(part.count):
            found[part.offset + index * part.step : part.offset + index * part.step + part.nbytes] = True
    return found


@pytest.mark.parametrize("profile", ["cpu-tp2", "cpu-pp2"])
def test_a_rank_computes_from_its_own_bytes(tmp_path: Path, profile: str):
    """With every other byte of the weights turned over, a rank has the same weights."""
    path = llmc.build(PICO, tmp_path / "e.llmc", quantize="int4", parallel=profile.partition("-")[2])
    with EngineFile.open(path) as engine:
        labels = [f"{profile}.rank-{rank}" for rank in (0, 1)]
        exprs = {label: {n: from_json(w) for n, w in engine.profile(label).weights.items()} for label in labels}
        tensors = engine.tensors
        begin = min(info.offset for info in tensors.values())
        end = max(info.offset + info.nbytes for info in tensors.values())
        own = {label: bytes_of(exprs[label], tensors, engine.file_bytes) for label in labels}
        weights = {label: values(engine, exprs[label]) for label in labels}
    for label in labels:
        share = own[label].sum() / (end - begin)
        assert 0.45 < share < (0.7 if profile == "cpu-pp2" else 0.55), "half, and what both have"
        turned = tmp_path / f"{label}.llmc"
        shutil.copyfile(path, turned)
        data = np.memmap(turned, np.uint8, "r+")
        foreign = ~own[label]
        foreign[:begin] = foreign[end:] = False
        data[foreign] ^= 0xFF
        data.flush()
        with EngineFile.open(turned) as engine:
            assert values(engine, exprs[label]) == weights[label]


def values(engine: EngineFile, exprs: dict[str, Expr]) -> dict[str, bytes]:
    return {name: evaluate_weight(expr, engine.tensor, initializer=name).tobytes() for name, expr in exprs.items()}
