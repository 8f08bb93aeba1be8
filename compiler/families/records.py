"""The smallest records: single tensors, linears, norms, and the linears of all experts of a layer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

Shapes = Iterator[tuple[str, tuple[int, ...]]]
"""Tensor names and shapes."""


@dataclass(frozen=True)
class Parameter:
    """A tensor of its own."""

    name: str
    shape: tuple[int, ...]

    def tensors(self, prefix: str) -> Shapes:
        yield f"{prefix}{self.name}", self.shape


@dataclass(frozen=True)
class Linear:
    """A module that computes x Wᵀ (+ bias); the weight W is [rows, columns], the bias [rows]."""

    module: str
    rows: int
    columns: int
    bias: bool = False
    part: tuple[str, int, int] | None = None
    """If the checkpoint stores it within a larger linear: that module, this one's first row, and the rows of all."""
    kept: bool = False
    """No recipe quantizes it: of few rows, it decides which experts compute."""

    def tensors(self, prefix: str) -> Shapes:
        yield f"{prefix}{self.module}.weight", (self.rows, self.columns)
        if self.bias:
            yield f"{prefix}{self.module}.bias", (self.rows,)


@dataclass(frozen=True)
class Norm:
    """A norm over the last `size` elements: by their root mean square, or of a LayerNorm (arXiv 1607.06450)."""

    module: str
    """ "" if it has no weight."""
    size: int
    epsilon: float
    kind: str = "rms"
    """RMS or LAYER."""
    plus_one: bool = False
    """The factor is 1 + weight."""
    bias: bool = False
    each: int = 0
    """Heads that have a weight of their own each, stored as `{module}.norms.{head}.weight`; 0: one weight for all."""
    parameter: str = "weight"
    """The weight's name in the module."""
    factor: float = 1.0
    """Of the weight."""

    def weights(self, prefix: str) -> list[str]:
        """Names of its weights."""
        if self.each:
            return [f"{prefix}{self.module}.norms.{head}.weight" for head in range(self.each)]
        return [f"{prefix}{self.module}.{self.parameter}"] if self.module else []

    def tensors(self, prefix: str) -> Shapes:
        yield from ((name, (self.size,)) for name in self.weights(prefix))
        if self.bias:
            yield f"{prefix}{self.module}.bias", (self.size,)


RMS, LAYER = "rms", "layer"


@dataclass(frozen=True)
class Spelling:
    """One way in which files store a weight of all experts.

    Either each expert has tensors of its own, whose names have `{}` for its number: one, or gate and up. Or one tensor
    is a stack of all, [E, out, in], or [E, in, out] if `turned`. Outputs of gate and up lie side by side, or take turns
    if `alternate`.
    """

    names: tuple[str, ...]
    turned: bool = False
    alternate: bool = False
    format: str = ""
    """The weight format that it is stored in: `names` are then stacks of the components, in the format's order."""
    biases: tuple[str, ...] = ()
    """The tensors of biases, in the same order."""

    @property
    def separate(self) -> bool:
        return "{}" in self.names[0]


@dataclass(frozen=True)
class Stack:
    """Linears of all experts: for each expert x Wᵀ (+ bias), with W of [rows, columns].

    It is one weight [E, rows, columns], called `{module}.weight`, and one bias [E, rows]. If `gated`, its rows take
    turns: one of gate, the same one of up. Files spell it in one of several ways.
    """

    module: str
    experts: int
    rows: int
    columns: int
    spellings: tuple[Spelling, ...]
    gated: bool = False
    bias: bool = False

    def __post_init__(self) -> None:
        """Check that every spelling names biases, if there are any.

        Raises:
            ValueError: one does not.
        """
        if self.bias and not all(one.biases for one in self.spellings):
            raise ValueError(f"{self.module} has a bias, and a spelling without one")

    def tensors(self, prefix: str) -> Shapes:
        yield f"{prefix}{self.module}.weight", (self.experts, self.rows, self.columns)
        if self.bias:
            yield f"{prefix}{self.module}.bias", (self.experts, self.rows)


class Parts:
    """A record with the tensors of its fields, in their order."""

    def tensors(self, prefix: str) -> Shapes:
        for part in self.parts():
            yield from part.tensors(prefix)

    def parts(self) -> Iterator[Parameter | Linear | Norm | Stack]:
        """The records of all tensors in it."""
        for value in vars(self).values():
            for part in value if isinstance(value, tuple) else (value,):
                if isinstance(part, Parts):
                    yield from part.parts()
                elif isinstance(part, Parameter | Linear | Norm | Stack):
                    yield part

    def linears(self) -> tuple[Linear, ...]:
        return tuple(part for part in self.parts() if isinstance(part, Linear))

    def stacks(self) -> tuple[Stack, ...]:
        return tuple(part for part in self.parts() if isinstance(part, Stack))
