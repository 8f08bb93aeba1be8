"""Puts linears, norms and single parameters into the logical graph, with the expressions of their weights."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np
import onnx_ir as ir

from ...passes.graph.attention import EACH
from ...passes.graph.attention import LAYER as LAYER_NORM
from ...passes.graph.graph import Builder, Canonical, Computed, Copied, Graph
from ...passes.graph.ops import DENSE, overload_of
from ...quantize import FORMATS
from ...runtime.engine_file.bind import Concat, Expr, Plus, Reshape, ToF32, as_f32
from ..checkpoint.weights.source import Source
from ..checkpoint.weights.stacks import stored_formats
from ..families.spec import LAYER, Linear, Norm, Parameter, Stack


@dataclass(frozen=True, eq=False)
class Weights:
    """Nodes with weights, for one graph; `source` says the dtype of each tensor."""

    graph: Graph
    source: Source

    def linear(
        self, b: Builder, x: ir.Value, linear: Linear, prefix: str, *, role: str = "", tensor: str = ""
    ) -> ir.Value:
        """x Wᵀ + bias; `tensor` is the weight's if it is not the module's own."""
        shapes = dict(linear.tensors(prefix))
        names = dict.fromkeys(shapes) if not tensor else {tensor: None, **dict.fromkeys([*shapes][1:])}
        weights = [self.parameter(name, shape) for name, shape in zip(names, shapes.values(), strict=True)]
        overload = overload_of(DENSE, bias=linear.bias)
        return b.llmc("Linear", x, *weights, overload=overload, name=f"{prefix}{linear.module}", role=role)

    def stack(self, stack: Stack, prefix: str) -> tuple[str, list[ir.Value]]:
        """The format in which the files have the weights of all experts, and its components; then their bias."""
        (name, shape), *bias = stack.tensors(prefix)
        module = f"{prefix}{stack.module}"
        fmt = stored_formats({module: stack}, self.source.names).get(module, "")
        made = self._components(f"{module}.", stack, fmt) if fmt else [self.parameter(name, shape)]
        return fmt or "none", [*made, *(self.parameter(*one) for one in bias)]

    def _components(self, stem: str, stack: Stack, fmt: str) -> list[ir.Value]:
        values = []
        for part in FORMATS[fmt].components(stack.rows, stack.columns):
            name, shape = f"{stem}{part.name}", (stack.experts, *part.shape)
            expr = self.graph.store(Canonical(name, part.dtype, shape, Copied(name), group=name))
            values.append(self.graph.weight(f"{name}.{fmt}", expr))
        return values

    def norm(self, b: Builder, x: ir.Value, norm: Norm | None, prefix: str) -> ir.Value:
        """The norm over the last axis; x itself if there is none."""
        if norm is None:
            return x
        op = "LayerNormalization" if norm.kind == LAYER else "RMSNormalization"
        return b(op, x, *self._of_norm(norm, prefix), axis=-1, epsilon=norm.epsilon)

    def head_norm(self, b: Builder, x: ir.Value | None, norm: Norm | None, prefix: str, size: int) -> ir.Value | None:
        """The norm of each head of `size` in x f32 [B, S, N*size], or of all of x if the norm is wider; x if None."""
        if norm is None or x is None:
            return x
        if norm.size != size:
            return self.norm(b, x, norm, prefix)
        kinds = ((LAYER_NORM, norm.kind == LAYER), (EACH, norm.each), ("bias", norm.bias))
        overload = "_".join(name for name, has in kinds if has)
        return b.llmc("HeadNorm", x, *self._of_norm(norm, prefix), overload=overload, epsilon=norm.epsilon)

    def parameter(self, tensor: str, shape: tuple[int, ...]) -> ir.Value:
        """A tensor of the checkpoint."""
        return self.graph.weight(tensor, self._stored(tensor, shape))

    def vector(self, parameter: Parameter, prefix: str) -> ir.Value:
        """A parameter as [n], whatever its shape in the files."""
        stored = self._stored(f"{prefix}{parameter.name}", parameter.shape)
        flat = stored if len(parameter.shape) == 1 else Reshape(stored, (prod(parameter.shape),))
        return self.graph.weight(f"{prefix}{parameter.name}", flat)

    def _stored(self, tensor: str, shape: tuple[int, ...]) -> Expr:
        dtype = self.source.info(tensor).dtype
        shape = shape or (1,)  # sources give a scalar as one row
        return self.graph.store(Canonical(tensor, dtype, shape, Copied(tensor), group=tensor))

    def _of_norm(self, norm: Norm, prefix: str) -> list[ir.Value]:
        """Factor and, if it has one, bias."""
        names = norm.weights(prefix)
        if not names:
            name = f"ones.{norm.size}"
            ones = Computed(np.ones(norm.size, np.float32), "a norm without a weight")
            factor: Expr = self.graph.store(Canonical(name, "F32", (norm.size,), ones, group=name))
        elif norm.each:
            rows = [Reshape(self._stored(name, (norm.size,)), (1, norm.size)) for name in names]
            name, factor = f"{prefix}{norm.module}.weights", Concat(tuple(rows), 0)
        else:
            name, factor = names[0], self._stored(names[0], (norm.size,))
        if norm.factor != 1.0:
            factor = ToF32(factor, norm.factor)
        if norm.plus_one:
            factor = Plus(as_f32(factor), 1.0)
        bias = [self.parameter(f"{prefix}{norm.module}.bias", (norm.size,))] if norm.bias else []
        return [self.graph.weight(name, factor), *bias]
