"""Measures 4-bit activations on the bundled model: the distance from the checkpoint, beside 16-bit and 8-bit ones.

    python benchmarks/w4a4.py [--out benchmarks/results/w4a4.json]

Weights are those of `benchmarks/accuracy.py`, and so are the texts and the baseline. Each row is the graph of a profile
with these activations, which the oracle executes in float32, so what differs from the first row of a format is the
operator `QuantizeActivations` alone. A GPU rounds in this way in steps of more than 64 tokens only; here all are.

The rows named after a unit are nvfp4 activations with other meanings of an E4M3 scale of 1: a constant, or for each
token its largest magnitude / (6 * 448), which a kernel knows only when it has the whole row.
"""

from __future__ import annotations

import argparse
import json
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from unittest.mock import patch

import numpy as np
from accuracy import CHECKPOINT, TEXTS

import llmc
from llmc.cli.judge.corpus import cut
from llmc.compiler.checkpoint.account import open_source
from llmc.compiler.oracle.oracle import Oracle
from llmc.compiler.oracle.probe import inputs_for
from llmc.compiler.oracle.reference import reference_logits
from llmc.compiler.pipeline import lower
from llmc.passes.graph import activations, ops
from llmc.recipes.recipe import with_flags
from llmc.runtime.dtypes import FP4_FORMATS
from llmc.runtime.engine_file.file import EngineFile
from llmc.runtime.evaluate import score

WINDOW = 512
UNITS = {f"2^{power}": 2.0**power for power in (0, -2, -3, -4, -6)} | {"each token": None}
"""Units of nvfp4's E4M3 scales by name; None: one for each token."""
_BY_TOKEN = """
  magnitude = Abs (x)
  final = Constant <value_ints = [-1]> ()
  biggest = ReduceMax <keepdims = 1> (magnitude, final)
  tiny = Constant <value_float = 7.888609052210118e-31> ()
  some = Max (biggest, tiny)
  whole = Constant <value_float = 2688.0> ()
  token = Div (some, whole)
  relative = Div (x, token)
  shape = Shape (x)"""
"""Lines that make `relative`, x in units of its token's largest magnitude / (6 * 448)."""


def with_unit(unit: float | None) -> str:
    """The definition of nvfp4 activations with a unit, or with one for each token."""
    if unit is not None:
        return activations.nvfp4(unit)
    text = activations.nvfp4(1.0).replace("shape = Shape (x)", _BY_TOKEN).replace("(x, groups)", "(relative, groups)")
    return text.replace("y = Reshape (scaled, shape)", "rows = Reshape (scaled, shape)\n  y = Mul (rows, token)")


def oracle_of(engine: Path, weights: str, narrow: str, body: str = "") -> Callable[[Sequence[int]], np.ndarray]:
    """A function from token ids to logits f32 [T, V] of a profile's graph over an engine's weights.

    `body` replaces the definition of `QuantizeActivations`.
    """
    source, opened = open_source(CHECKPOINT), EngineFile.open(engine)
    recipe = with_flags(None, quantize=weights, activations=narrow, targets=["sm_100"])
    decoder, legal, _ = lower(source, recipe, WINDOW)

    def read(name: str, start: int, stop: int) -> np.ndarray:
        rows = opened.tensor(name)
        return rows[start:] if stop < 0 and rows.shape else rows[start:stop] if rows.shape else rows

    oracle = Oracle(read)

    def logits(ids: Sequence[int]) -> np.ndarray:
        given = inputs_for(source.config.decoder, ids, rows=len(ids), ropes=decoder.ropes)
        if not body:
            return oracle.run(legal["sm_100"], given)["logits"]
        with patch.dict(ops._BODIES, QuantizeActivations=lambda _: body):
            ops.function.cache_clear()
            found = oracle.run(legal["sm_100"], given)["logits"]
        ops.function.cache_clear()
        return found

    return logits


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/w4a4.json"))
    parser.add_argument("--tokens", type=int, help="score only the first of all texts")
    options = parser.parse_args()
    texts = [Path(sysconfig.get_path("stdlib"), name).read_text() for name in TEXTS]
    rows: dict[str, dict[str, dict[str, float]]] = {}
    print(
        "| weights | activations | perplexity | KL mean, nats | KL p99 | same best token |\n|---|---|---|---|---|---|"
    )
    with tempfile.TemporaryDirectory() as folder:
        for weights in FP4_FORMATS:
            path = llmc.build(CHECKPOINT, Path(folder, f"{weights}.llmc"), quantize=weights)
            with llmc.load(path) as engine, EngineFile.open(path) as file:
                first = file.manifest.model.bos
                ids = (engine.tokenizer.encode(text, bos=False) for text in texts)
                windows = list(cut(ids, WINDOW, first, options.tokens))
            models = {name: oracle_of(path, weights, name) for name in ("none", "fp8", weights)}
            if weights == "nvfp4":
                models |= {
                    f"unit {name}": oracle_of(path, weights, weights, with_unit(unit)) for name, unit in UNITS.items()
                }
            found = score(windows, list(models.values()), reference_logits(open_source(CHECKPOINT)))
            rows[weights] = {name: asdict(one) for name, one in zip(models, found, strict=True)}
            for name, one in zip(models, found, strict=True):
                print(
                    f"| {weights} | {name} | {one.perplexity:.3f} | {one.kl_mean:.3g} | {one.kl_p99:.3g} "
                    f"| {100 * (one.top1 or 0):.1f} % |",
                    flush=True,
                )
    python = sys.version.split()[0]
    options.out.write_text(json.dumps({"texts": TEXTS, "python": python, "weights": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
