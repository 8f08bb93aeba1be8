"""Writes the engines and the whole input that the other parts begin with, in a process that ends with its threads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import llmc
from llmc.runtime.engine_file.file import EngineFile

from .targets import ENGINE, GRAPH, MANIFEST, PLAN, SHARD, SPLIT

ROOT = Path(__file__).parent.parent.parent
CHECKPOINTS = ROOT / "examples/checkpoints"
CROWD = "crowd.llmc"
"""The engine of the crowd: of a format whose logits have the same bits alone and beside others."""


def run(share: float, seed: int, folder: Path) -> dict[str, object]:
    """Build them; `share` and `seed` change nothing."""
    from support import tiny_engines  # pyright: ignore[reportMissingImports]
    from support.engines import small_checkpoint  # pyright: ignore[reportMissingImports]
    from support.plans import plan  # pyright: ignore[reportMissingImports]

    llmc.build(CHECKPOINTS / "pico-chat", folder / CROWD, quantize="int8", max_batch=8)
    small = small_checkpoint(folder / "small", num_hidden_layers=1)
    llmc.build(small, folder / "small.llmc", quantize="int4")
    with EngineFile.open(folder / "small.llmc") as engine:
        (folder / GRAPH).write_bytes(engine.section("profiles/cpu/graph.onnx"))
        document = json.loads(engine.manifest.to_json())
    for table in (document, document["profiles"]["cpu"]):
        table |= {key: _few(value) for key, value in table.items() if isinstance(value, dict) and key != "profiles"}
    (folder / MANIFEST).write_bytes(json.dumps(document).encode())
    (folder / PLAN).write_bytes(plan().to_json())
    tiny_engines.build(folder / ENGINE)
    with EngineFile.open(tiny_engines.build_split(folder / SPLIT, most=tiny_engines.TWO_FILES)) as engine:
        engine.parts[1].path.rename(folder / SHARD)
    return {"bytes": {name: (folder / name).stat().st_size for name in (CROWD, GRAPH, MANIFEST, PLAN, ENGINE)}}


def _few(table: dict[str, Any]) -> dict[str, Any]:
    """Enough entries to damage: every one costs time in all cases."""
    return table if len(table) < 20 else dict(list(table.items())[:5])
