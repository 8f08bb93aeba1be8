"""The engines of the GPU benchmarks, as values: how each is built, and what a pack needs for that."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bringup import carry
from build8b import CONFIG

SMALL = {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "tie_word_embeddings": True}
SHAPES: dict[str, dict[str, Any]] = {"8b": {}, "1b": {**SMALL, "head_dim": 64}}
"""Llama-3.1-8B, and the fields in which Llama-3.2-1B differs."""
PICO = Path(__file__).resolve().parent.parent / "examples" / "checkpoints" / "pico-python"
PICO_BATCH = 16


@dataclass(frozen=True)
class EngineSpec:
    """An engine of a shape with random weights, or of the bundled checkpoint ("pico"), as `llmc build` is asked for."""

    shape: str = "8b"
    quantize: str = "fp8"
    max_batch: int = 8
    max_context: int = 4096
    activations: str = "none"
    kv: str = "none"

    @staticmethod
    def of(options: argparse.Namespace) -> EngineSpec:
        """The engine that a benchmark's options select."""
        named = EngineSpec.__dataclass_fields__
        return EngineSpec(**{name: getattr(options, name) for name in named})

    def __str__(self) -> str:
        return f"{self.shape} {self.formats}"

    @property
    def flags(self) -> list[str]:
        """The engine's fields as options of a benchmark and, without the shape, of `llmc build`."""
        limits = ["--max-batch", str(self.max_batch), "--max-context", str(self.max_context)]
        return ["--quantize", self.quantize, *limits, "--activations", self.activations, "--kv", self.kv]

    @property
    def formats(self) -> str:
        """The formats as one word, such as fp8 or fp8-afp8-kvfp8."""
        narrow = {"-a": self.activations, "-kv": self.kv}
        return self.quantize + "".join(f"{mark}{name}" for mark, name in narrow.items() if name != "none")

    def path(self, work: Path, sm: int) -> Path:
        """Its path in a folder."""
        return work / f"{self.shape}-{self.formats}-b{self.max_batch}-c{self.max_context}-sm{sm}.llmc"

    def build_command(self, work: Path, sm: int, targets: str = "sm_{}") -> list[str]:
        """The command that builds it there."""
        weights = [] if self.shape == "pico" else ["--random-weights", "1"]
        command = [sys.executable, "-m", "llmc", "build", str(self.checkpoint(work)), "-o", str(self.path(work, sm))]
        return [*command, *weights, "--target", targets.format(sm), *self.flags, "--json"]

    def checkpoint(self, work: Path) -> Path:
        """The folder it is built from."""
        return PICO if self.shape == "pico" else work / self.shape

    def prepare(self, work: Path) -> Path:
        """That folder, with a configuration in it."""
        folder = self.checkpoint(work)
        if self.shape != "pico":
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "config.json").write_text(json.dumps({**CONFIG, **SHAPES[self.shape]}, indent=1) + "\n")
        return folder

    def built(self, work: Path, sm: int, targets: str = "sm_{}") -> Path:
        """The engine, built unless it is there."""
        path = self.path(work, sm)
        if not path.exists():
            self.prepare(work)
            subprocess.run(self.build_command(work, sm, targets), check=True, stdout=subprocess.PIPE)
        return path


FP8 = EngineSpec("8b", "fp8", activations="fp8")
"""Small steps do not round activations, so it decodes like the engine without FP8 activations."""
BF16 = EngineSpec("8b", "none")
MANY = replace(FP8, max_batch=256, kv="fp8")
"""The engine that is built with weights where it is measured."""
PLANS: dict[str, EngineSpec] = {
    carry.FP8: FP8,
    carry.BF16: BF16,
    carry.NVFP4: EngineSpec("8b", "nvfp4"),
    carry.INT4: EngineSpec("8b", "int4"),
    carry.SMALL_BF16: EngineSpec("1b", "none"),
    carry.MANY: MANY,
    carry.MANY_BF16_CACHE: replace(MANY, kv="none"),
    carry.NVFP4_FP8: replace(MANY, quantize="nvfp4"),
}
"""Engines whose plans are carried, without weights."""
_PICO = EngineSpec("pico", "none", PICO_BATCH, 512)
PICO_FORMATS = ("none", "fp8", "int8", "int4", "nvfp4", "mxfp4")
SMALL_ENGINES = (
    *(replace(_PICO, quantize=name) for name in PICO_FORMATS),
    replace(_PICO, quantize="fp8", activations="fp8", kv="fp8"),
)
"""Engines of the bundled checkpoint."""
CARRIED = tuple(spec for spec in SMALL_ENGINES if spec.formats in ("fp8", "nvfp4", "int4"))
"""Engines that are carried whole, with the interpreter's results; more would not fit."""
