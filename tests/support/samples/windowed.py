"""A family whose layers have the window that `layer_types` gives them, and small checkpoints of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from support.engines import small_checkpoint

from llmc.compiler.families.reading import ConfigReader, Family
from llmc.compiler.families.spec import LayerSpec

SLIDING, FULL = "sliding_attention", "full_attention"


def _layer(config: ConfigReader, index: int) -> LayerSpec:
    kinds = config.kinds()
    window = config.integer("sliding_window", 1) if kinds and kinds[index] == SLIDING else None
    return config.layer(config.attention(window=window), config.mlp())


FAMILY = Family("mistral", "MistralForCausalLM", _layer, {"layer_types": None, "sliding_window": None})
"""Its weights are named as transformers names those of Mistral, which has the same window in all layers."""


def windowed_checkpoint(folder: Path, window: int, *kinds: str, **config: Any) -> Path:
    """Random weights; `FAMILY` must be in `FAMILIES`."""
    made: dict[str, Any] = {
        "architectures": [FAMILY.architecture],
        "num_hidden_layers": len(kinds),
        "layer_types": list(kinds),
        "sliding_window": window,
        "vocab_size": 512,
        "max_position_embeddings": 256,
    }
    return small_checkpoint(folder, tokenizer=False, **{**made, **config})
