"""Mixtures of experts as most families have them: names of modules, routers, how files spell the weights."""

from __future__ import annotations

from dataclasses import replace

from .reading import GATED, ConfigReader
from .spec import Experts, GatedMlp, Linear, Router, Spelling, Stack


def stacks(
    config: ConfigReader,
    module: str,
    experts: int,
    width: int,
    *,
    separate: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj"),
) -> tuple[Stack, Stack]:
    """The linears of all experts, gate and up as one: `{module}.gate_up_proj` and `{module}.down_proj`.

    Files have for each expert `{module}.{number}` with the `separate` modules gate, up and down; or, as transformers 5
    has in memory, one stack [E, out, in] of each.
    """
    gate, up, down = (f"{module}.{{}}.{name}.weight" for name in separate)
    both, one = f"{module}.gate_up_proj", f"{module}.down_proj"
    hidden = config.hidden_size
    return (
        Stack(both, experts, 2 * width, hidden, (Spelling((gate, up)), Spelling((both,))), gated=True),
        Stack(one, experts, hidden, width, (Spelling((down,)), Spelling((one,)))),
    )


def router(
    config: ConfigReader,
    kind: str,
    experts: int,
    chosen: str = "num_experts_per_tok",
    *,
    module: str = "mlp.gate",
    normed: bool = False,
) -> Router:
    """A router of this kind without a bias; `chosen` is the key of the number of experts of a token."""
    count = config.fields.need_integer(chosen, 1, experts)
    return Router(kind, Linear(module, experts, config.hidden_size, kept=True), count, normed=normed)


def shared(config: ConfigReader, module: str, width: int, *, bias: bool = False) -> GatedMlp:
    """An MLP that every token has, with this module's gate, up and down."""
    made = config.mlp(width=width, bias=bias)
    gate, up, down = (
        replace(one, module=f"{module}.{name}_proj")
        for name, one in (("gate", made.gate), ("up", made.up), ("down", made.down))
    )
    return replace(made, gate=gate, up=up, down=down)


def mixture(
    config: ConfigReader,
    chooses: Router,
    linears: tuple[Stack, Stack],
    *,
    shared: GatedMlp | None = None,
    shared_gate: Linear | None = None,
) -> Experts:
    """Experts with a gate, of the activation that the config says."""
    activation = config.activation()
    if activation not in GATED:
        raise config.fields.refuse("hidden_act", f"one that an MLP with a gate has ({', '.join(GATED)})")
    return Experts(chooses, *linears, activation, shared=shared, shared_gate=shared_gate)
