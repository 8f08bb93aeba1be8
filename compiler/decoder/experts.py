"""Puts a mixture of experts into the logical graph: router, chosen experts, shared expert."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from ...passes.graph.experts import Mixture, route_overload
from ...passes.graph.graph import KEPT, Builder
from ...runtime.dtypes import LIMITED, SPARSEMIXER
from ..families.spec import Experts, Mlp, Router
from .weights import Weights

OfMlp = Callable[[Builder, Mlp, ir.Value, str], ir.Value]


def experts_of(w: Weights, b: Builder, experts: Experts, x: ir.Value, prefix: str, mlp: OfMlp) -> ir.Value:
    """The result f32 [B, S, H] for x f32 [B, S, H]; `mlp` computes the shared expert.

    It comes first: so what computes the others can add it to them.
    """
    shared = _shared(w, b, experts, x, prefix, mlp)
    chosen, weights = _route(w, b, experts.router, x, prefix)
    (up, of_up), (down, of_down) = (w.stack(one, prefix) for one in (experts.gate_up, experts.down))
    mixture = Mixture(up, down, experts.activation, bias=experts.gate_up.bias, input=experts.scales_input)
    limits = {"alpha": experts.alpha, "limit": experts.limit} if experts.activation == LIMITED else {}
    module = f"{prefix}{experts.module}"
    read = w.norm(b, x, experts.norm, prefix)
    y = b.llmc("MoE", read, chosen, weights, *of_up, *of_down, overload=mixture.overload, name=module, **limits)
    y = w.norm(b, y, experts.post, prefix)
    return y if shared is None else b("Add", y, shared)


def _shared(w: Weights, b: Builder, experts: Experts, x: ir.Value, prefix: str, mlp: OfMlp) -> ir.Value | None:
    """What the expert that every token has computes, times the opening of its gate."""
    if experts.shared is None:
        return None
    shared = mlp(b, experts.shared, w.norm(b, x, experts.shared_norm, prefix), prefix)
    shared = w.norm(b, shared, experts.shared_post, prefix)
    if experts.shared_gate is None:
        return shared
    return b("Mul", shared, b("Sigmoid", w.linear(b, x, experts.shared_gate, prefix, role=KEPT)))


def _route(w: Weights, b: Builder, router: Router, x: ir.Value, prefix: str) -> tuple[ir.Value, ir.Value]:
    """Experts i64 [B, S, k] and their weights f32 [B, S, k]."""
    logits = w.linear(b, w.norm(b, x, router.norm, prefix), router.linear, prefix, role=KEPT)
    if router.kind == SPARSEMIXER:
        return b.llmc("Route", logits, overload=SPARSEMIXER, outputs=2, k=router.chosen, jitter=router.jitter)
    grouped = router.groups > 1
    bias, scales = router.bias is not None, router.scales is not None
    parameters = [w.vector(one, prefix) for one in (router.bias, router.scales) if one]
    return b.llmc(
        "Route",
        logits,
        *parameters,
        overload=route_overload(router.kind, biased=bias, grouped=grouped, normed=router.normed, scaled=scales),
        outputs=2,
        k=router.chosen,
        factor=router.factor,
        **({"least": router.least} if router.normed else {}),
        **({"groups": router.groups, "kept": router.kept_groups, "best": router.best} if grouped else {}),
    )
