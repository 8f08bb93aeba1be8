"""GLM-4 of 2025: GLM with a second norm of what attention and MLP return."""

from __future__ import annotations

from dataclasses import replace

from ..reading import ConfigReader, Family
from ..spec import LayerSpec
from .glm import FAMILY as GLM
from .glm import layer


def _layer(config: ConfigReader, index: int) -> LayerSpec:
    mixer_post, mlp_post = (config.norm(f"post_{part}_layernorm") for part in ("self_attn", "mlp"))
    return replace(layer(config, index), mixer_post=mixer_post, mlp_post=mlp_post)


FAMILY = Family("glm4", "Glm4ForCausalLM", _layer, defaults=GLM.defaults, rope=GLM.rope)
