"""The records of what follows attention in a layer: MLPs and mixtures of experts."""

from __future__ import annotations

from dataclasses import dataclass

from .records import Linear, Norm, Parameter, Parts, Stack


@dataclass(frozen=True)
class GatedMlp(Parts):
    """down(activation(gate(x)) * up(x))."""

    activation: str
    gate: Linear
    up: Linear
    down: Linear


@dataclass(frozen=True)
class PlainMlp(Parts):
    """down(activation(up(x)))."""

    activation: str
    up: Linear
    down: Linear
    parameters: tuple[Parameter, ...] = ()
    """Of the activation, in its order."""


@dataclass(frozen=True)
class Router(Parts):
    """Chooses the experts of a token, and their weights, from the logits of `linear`."""

    kind: str
    """A name of `runtime/dtypes.py`."""
    linear: Linear
    chosen: int
    normed: bool = False
    """The weights of a token are divided by their sum."""
    factor: float = 1.0
    """Of all weights."""
    least: float = 1e-20
    """No sum below this divides."""
    bias: Parameter | None = None
    """Added to the scores for the choice only."""
    norm: Norm | None = None
    """Of what `linear` reads."""
    scales: Parameter | None = None
    """A factor of each expert's weights."""
    groups: int = 1
    kept_groups: int = 1
    best: int = 2
    """A group's rank is the sum of so many of its highest scores."""
    jitter: float = 0.0
    """Of SPARSEMIXER."""


@dataclass(frozen=True)
class Experts(Parts):
    """post(the sum of weight * down(activation(gate(n)) * up(n)) over a token's experts), plus a shared expert.

    n is norm(x); a norm of None does nothing. The router reads x.
    """

    router: Router
    gate_up: Stack
    down: Stack
    activation: str
    alpha: float = 1.0
    """Of the activation "limited" (`runtime/dtypes.py`), as is `limit`."""
    limit: float = 0.0
    scales_input: bool = False
    """The weight multiplies the input of an expert and not its result."""
    shared: GatedMlp | None = None
    """An MLP that every token has."""
    shared_gate: Linear | None = None
    """The result of `shared` is multiplied by the sigmoid of this linear of one row."""
    norm: Norm | None = None
    post: Norm | None = None
    shared_norm: Norm | None = None
    """Of what `shared` reads."""
    shared_post: Norm | None = None
    """Of its result."""

    @property
    def module(self) -> str:
        """The module of all experts."""
        return self.down.module.rpartition(".")[0]


Mlp = GatedMlp | PlainMlp | Experts
