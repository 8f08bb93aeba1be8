"""Engines of a few tensors that know one number: for tests of what writes engine files, and of what kills it."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from llmc.compiler.engine.layout import MaxShardSize
from llmc.compiler.engine.writer import EngineWriter
from llmc.runtime.engine_file.bind import Stored
from llmc.runtime.engine_file.file import verify_engine
from llmc.runtime.engine_file.manifest import CheckpointFacts, LayerCache, Manifest, ModelFacts

GROUPS = ([Stored("a", "BF16", (6, 100))], [Stored("b", "U8", (5, 70))], [Stored("scale", "F32", ())])
MANIFEST = Manifest(
    model=ModelFacts("LlamaForCausalLM", "llama", 8, 4, 2, (LayerCache(1, 2),), 64, 40, "bfloat16", True, None, ()),
    formats={},
    profiles={},
    lineage={},
    unused={},
    recipe={},
    recipe_digest="0" * 64,
    checkpoint=CheckpointFacts({}),
    tools={"llmc": "0.1.0"},
)


SPLIT_GROUPS = (
    [Stored("scale", "F32", ())],
    [Stored("a", "BF16", (600, 100)), Stored("c", "BF16", (100,))],
    [Stored("b", "U8", (500, 140))],
)
MOST = MaxShardSize(190_000, 100)
"""Of `SPLIT_GROUPS` every group has a file of its own."""
TWO_FILES = MaxShardSize(312_000, 100)
"""The first two have one, the last another."""


def build_split(path: Path, value: int = 1, most: MaxShardSize | None = MOST) -> Path:
    """An engine of three files."""
    with EngineWriter(path, SPLIT_GROUPS, most=most) as writer:
        writer.write("b", 0, np.full((500, 140), value, np.uint8))
        writer.write("a", 0, np.full((600, 100), value, np.uint16))
        writer.write("c", 0, np.full(100, value, np.uint16))
        writer.write("scale", 0, np.float32(value).tobytes())
        writer.section("graph", bytes([value]) * 9)
        return writer.commit(MANIFEST)


def build(path: Path, value: int = 1) -> Path:
    with EngineWriter(path, GROUPS) as writer:
        writer.write("b", 0, np.full((2, 70), value, np.uint8))
        writer.write("a", 0, np.full((6, 100), value, np.uint16))
        writer.write("b", 140, np.full((3, 70), value, np.uint8))
        writer.write("scale", 0, np.float32(value).tobytes())
        writer.section("graph", bytes([value]) * 9)
        return writer.commit(MANIFEST)


def value_of(path: Path) -> int:
    """What `build` was given, after a check of every byte."""
    with verify_engine(path) as engine:
        return int(engine.tensor("scale"))


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))
