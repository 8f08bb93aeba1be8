"""Mixtures of experts as most families have them: names of modules, routers, how files spell the weights."""

from __future__ import annotations

from dataclasses import replace

from ...runtime.dtypes import SIGMOID
from .reading import GATED, ConfigReader
from .spec import Experts, GatedMlp, Linear, Parameter, Router, Spelling, Stack

W1_W3_W2 = ("w1", "w3", "w2")
"""Mixtral's names of gate, up and down."""
BIAS = "mlp.gate.e_score_correction_bias"
"""DeepSeek's name of what is added to scores."""


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


def count(config: ConfigReader, key: str) -> int:
    """The number of experts of a layer, which this key has."""
    return config.fields.need_integer(key, 1, 4096)


def inner(config: ConfigReader, key: str = "moe_intermediate_size") -> int:
    """The inner size of an expert, which this key has."""
    return config.fields.need_integer(key, 1, 2**20)


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
    each = config.fields.need_integer(chosen, 1, experts)
    return Router(kind, Linear(module, experts, config.hidden_size, kept=True), each, normed=normed)


def deepseek_router(config: ConfigReader, experts: int) -> Router:
    """The router of DeepSeek-V3 (arXiv 2412.19437, section 2.1.2): a bias, groups of experts, a factor."""
    made = scaled(config, router(config, SIGMOID, experts, normed=config.flag("norm_topk_prob")))
    return replace(grouped(config, made), bias=Parameter(BIAS, (experts,)))


def scaled(config: ConfigReader, made: Router) -> Router:
    """The router with `routed_scaling_factor`."""
    return replace(made, factor=config.fields.need_number("routed_scaling_factor", 0.0, 1e6, open_low=True))


def grouped(config: ConfigReader, made: Router, best: int = 2) -> Router:
    """The router with `n_group` groups of experts, whose rank is the sum of their `best` highest scores."""
    fields, experts = config.fields, made.linear.rows
    groups = fields.integer("n_group", 1, experts, 1)
    if groups > 1 and (experts % groups or experts // groups < best):
        size = "two or more" if best == 2 else "one size"
        raise fields.refuse("n_group", f"a number that divides {experts} experts into groups of {size}")
    kept = fields.integer("topk_group", 1, groups, 1)
    if made.chosen > experts // groups * kept:
        raise fields.refuse("num_experts_per_tok", f"at most {experts // groups * kept}, those of the kept groups,")
    return replace(made, groups=groups, kept_groups=kept, best=best if groups > 1 else made.best)


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


def deepseek_mixture(config: ConfigReader, index: int) -> GatedMlp | Experts:
    """The MLP of a layer of DeepSeek-V3's kind: dense in the first layers, with shared experts in the others."""
    if index < config.fields.need_integer("first_k_dense_replace", 0, 4096):
        return config.mlp()
    return with_shared(config, deepseek_router(config, count(config, "n_routed_experts")))


def with_shared(config: ConfigReader, chooses: Router, *, bias: bool = False) -> Experts:
    """Experts, and beside them one MLP as wide as `n_shared_experts` of them, whose linears may have biases."""
    width, beside = inner(config), config.fields.need_integer("n_shared_experts", 1, 1024)
    return mixture(
        config,
        chooses,
        stacks(config, "mlp.experts", chooses.linear.rows, width),
        shared=shared(config, "mlp.shared_experts", beside * width, bias=bias),
    )
