"""EXAONE 4: norms after each part, norms of heads; where layers have windows, those without one know no positions."""

from __future__ import annotations

from dataclasses import replace

from ..reading import ConfigReader, Family
from ..spec import LayerSpec
from .olmo2 import after


def _layer(config: ConfigReader, index: int) -> LayerSpec:
    window, kinds = config.integer("sliding_window", 1), config.kinds()
    if kinds is None and window is None:  # transformers 5.23 fails with both absent
        raise config.fields.refuse("layer_types", "a list, as there is no sliding_window,")
    every = 1 if kinds else config.fields.need_integer("sliding_window_pattern", 1, 4096)
    windowed = config.kind(index, every) == "sliding_attention"
    mixer = config.attention(norms=True, window=window if windowed else None)
    return after(config, mixer if windowed or window is None else replace(mixer, rope=None))


FAMILY = Family(
    "exaone4",
    "Exaone4ForCausalLM",
    _layer,
    defaults={
        "max_position_embeddings": 2048,
        "num_key_value_heads": 32,
        "rms_norm_eps": 1e-5,
        "sliding_window": 4096,
        "sliding_window_pattern": 4,
        "bos_token_id": 0,
        "eos_token_id": 2,
    },
)
