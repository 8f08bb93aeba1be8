"""Decoders with all that the records of experts can say, by changes of a plain one, whatever family will bring it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from llmc.compiler.families.spec import DecoderSpec, Experts, GatedMlp, Linear, Norm, Parameter, Router, Spelling, Stack
from llmc.runtime.dtypes import CHOSEN, LIMITED, SIGMOID, SOFTMAX, SPARSEMIXER

EXPERTS = 4
_GROUPS = {"groups": 2, "kept_groups": 2}
ROUTERS: Mapping[str, dict[str, Any]] = {
    "softmax": {"kind": SOFTMAX},
    "normed": {"kind": SOFTMAX, "normed": True},
    "sigmoid": {"kind": SIGMOID, "bias": True, "normed": True, "factor": 2.5, "best": 2, **_GROUPS},
    "chosen": {"kind": CHOSEN},
    "groups": {"kind": SOFTMAX, "best": 1, "factor": 0.5, **_GROUPS},
    "scaled": {"kind": SOFTMAX, "normed": True, "scales": True},
    "sparsemixer": {"kind": SPARSEMIXER, "jitter": 1.0},
}
"""With a jitter of 1 all experts are near the best, where rounding moves none across the border."""


_NORMS = ("norm", "post", "shared_norm", "shared_post")
"""Of `Experts`."""


def _stack(module: str, experts: int, rows: int, columns: int, *, gated: bool = False, bias: bool = False) -> Stack:
    spelled = Spelling((f"{module}.weight",), alternate=True, biases=(f"{module}.bias",) if bias else ())
    return Stack(module, experts, rows, columns, (spelled,), gated=gated, bias=bias)


def experts_of(
    spec: DecoderSpec,
    router: str,
    activation: str = "silu",
    *,
    experts: int = EXPERTS,
    chosen: int = 0,
    bias: bool = False,
    scales_input: bool = False,
    shared: bool = False,
    gate: bool = False,
    norms: bool = False,
) -> Experts:
    """A mixture as wide as the plain MLP; by default all experts compute a token, as rounding moves choices."""
    mlp, hidden = spec.layers[0].mlp, spec.hidden_size
    assert isinstance(mlp, GatedMlp)
    width = mlp.down.columns
    given = dict(ROUTERS[router])
    experts = 2 if given["kind"] == SPARSEMIXER and not chosen else experts
    for name in ("bias", "scales"):
        given[name] = Parameter(f"mlp.gate.{name}", (experts,)) if given.pop(name, False) else None
    before = Norm("mlp.gate", hidden, 1e-5, parameter="scale", factor=hidden**-0.5) if norms else None
    linear = Linear("mlp.gate", experts, hidden, kept=True)
    return Experts(
        Router(linear=linear, chosen=chosen or experts, norm=before, **given),
        _stack("mlp.experts.gate_up", experts, 2 * width, hidden, gated=True, bias=bias),
        _stack("mlp.experts.down", experts, hidden, width, bias=bias),
        activation,
        alpha=1.702,
        limit=0.5,
        scales_input=scales_input,
        shared=mlp if shared else None,
        shared_gate=Linear("mlp.shared_gate", 1, hidden, kept=True) if gate else None,
        **({name: Norm(name, hidden, 1e-5) for name in _NORMS} if norms else {}),
    )


def mixtures(spec: DecoderSpec) -> DecoderSpec:
    """Eight layers: every router, every activation, biases, weights on inputs, shared experts with and without gate,
    norms of all parts."""
    made = (
        experts_of(spec, "softmax"),
        experts_of(spec, "sigmoid", "gelu", shared=True),
        experts_of(spec, "chosen", LIMITED, bias=True),
        experts_of(spec, "normed", "gelu_pytorch_tanh", shared=True, gate=True),
        experts_of(spec, "sigmoid", "relu", scales_input=True, bias=True, shared=True),
        experts_of(spec, "sparsemixer"),
        experts_of(spec, "groups"),
        experts_of(spec, "scaled", "gelu_pytorch_tanh", shared=True, norms=True),
    )
    return replace(spec, layers=tuple(replace(spec.layers[0], mlp=one) for one in made))


def choosing(spec: DecoderSpec) -> DecoderSpec:
    """A layer for each router in which 2 of 8 experts compute a token, of groups 1 of 2; some are too far to count."""
    return replace(
        spec,
        layers=tuple(
            replace(spec.layers[0], mlp=replace(one, router=replace(one.router, kept_groups=1, jitter=0.3)))
            for one in (experts_of(spec, router, experts=8, chosen=2) for router in ROUTERS)
        ),
    )
