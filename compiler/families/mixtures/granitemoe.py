"""Granite 3 with experts: Granite's factors, and experts weighted by the softmax of the chosen logits."""

from __future__ import annotations

from dataclasses import replace

from ....runtime.dtypes import CHOSEN
from ..experts import count, mixture, router
from ..llamas.granite import FAMILY as GRANITE
from ..reading import ConfigReader, Family
from ..spec import LayerSpec, Spelling, Stack

_BLOCK = "block_sparse_moe"


def _stacks(config: ConfigReader, experts: int) -> tuple[Stack, Stack]:
    """Stacks of all experts under two names, of published files and of transformers 5."""
    width, hidden = config.width, config.hidden_size
    up, down = (
        (f"{_BLOCK}.experts.{own}", (Spelling((f"{_BLOCK}.{name}.weight",)), Spelling((f"{_BLOCK}.experts.{own}",))))
        for own, name in (("gate_up_proj", "input_linear"), ("down_proj", "output_linear"))
    )
    return Stack(up[0], experts, 2 * width, hidden, up[1], gated=True), Stack(down[0], experts, hidden, width, down[1])


def _layer(config: ConfigReader, index: int) -> LayerSpec:
    experts = count(config, "num_local_experts")
    chooses = router(config, CHOSEN, experts, module=f"{_BLOCK}.router.layer")
    return replace(GRANITE.layer(config, index), mlp=mixture(config, chooses, _stacks(config, experts)))


FAMILY = Family(
    "granitemoe",
    "GraniteMoeForCausalLM",
    _layer,
    defaults={
        **{key: value for key, value in GRANITE.defaults.items() if key != "mlp_bias"},
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
    },
    decoder=GRANITE.decoder,
    renamed=((".router.layer.", ".router."),),
    example={**{key: value for key, value in GRANITE.example.items() if key != "mlp_bias"}, "num_local_experts": 4},
)
