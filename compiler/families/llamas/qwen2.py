"""Qwen 2 and 2.5 and models distilled into them: q, k and v have biases; upper layers may have a window."""

from __future__ import annotations

from ..reading import ConfigReader, Family
from ..spec import LayerSpec


def window(config: ConfigReader, index: int) -> int | None:
    """The window of a layer or None: `layer_types`, else `max_window_layers`, says which layers have a window."""
    if not config.flag("use_sliding_window"):
        return None
    kinds, first = config.kinds(), config.fields.need_integer("max_window_layers", 0, 4096)
    windowed = kinds[index] == "sliding_attention" if kinds else index >= first
    return config.integer("sliding_window", 1) if windowed else None


def _layer(config: ConfigReader, index: int) -> LayerSpec:
    return config.layer(config.attention(bias=True, window=window(config, index)), config.mlp())


FAMILY = Family(
    "qwen2",
    "Qwen2ForCausalLM",
    _layer,
    defaults={
        "max_position_embeddings": 32768,
        "num_key_value_heads": 32,
        "rms_norm_eps": 1e-6,
        "use_sliding_window": None,
        "sliding_window": 4096,
        "max_window_layers": 28,
    },
    example={"use_sliding_window": True, "max_window_layers": 4},
)
