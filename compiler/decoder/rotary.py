"""Puts rotary embeddings into the logical graph: layers that turn alike share their tables."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from ...passes.graph.graph import Builder, Canonical, Computed, Graph
from ...runtime.engine_file.rope import POSITIONS, LengthRope, table_inputs
from ...runtime.errors import Unsupported
from ..config.rope import RopeConfig
from ..families.spec import Attention, Latent, Mixer, Temperature
from .rope import length_rope, rope_tables

_Settings = tuple[RopeConfig | None, int, Temperature | None]
"""The rope, the head size, and what scales the table of queries. Without a rope the tables turn by no angle: that is
how queries are scaled by their position where nothing is turned."""


@dataclass(frozen=True, eq=False)
class _Rope:
    """Tables, and the rows of the tables that the tokens need."""

    settings: _Settings
    cos: ir.Value
    sin: ir.Value
    rows: ir.Value


@dataclass(frozen=True, eq=False)
class Ropes:
    """The ropes of one graph for `max_context` positions; `positions` are those that the model was trained for."""

    graph: Graph
    rows: ir.Value
    """The positions of the tokens, i64 [B, S]."""
    positions: int
    max_context: int
    known: list[_Rope] = field(default_factory=list)
    by_length: list[LengthRope] = field(default_factory=list)
    """Those whose tables are inputs of the graph."""

    def of(self, mixer: Mixer) -> list[_Rope]:
        """The ropes of queries and of keys; makes their tables the first time."""
        if mixer.rope is None and mixer.temperature is None:
            return []
        if isinstance(mixer, Latent):
            return [self._find(mixer.rope, mixer.rope_dim, None)]
        return [self._find(mixer.rope, mixer.head_dim, temperature) for temperature in (mixer.temperature, None)]

    def rotate(self, b: Builder, x: ir.Value | None, mixer: Attention, *, query: bool) -> ir.Value | None:
        """x f32 [B, S, heads * head_dim], queries or keys, turned; x itself without a rope and a temperature."""
        ropes = self.of(mixer)
        if not ropes or x is None:
            return x
        rope = ropes[not query]
        size = mixer.rope.rotated(mixer.head_dim) if mixer.rope else mixer.head_dim
        changed: dict[str, Any] = {"rotary_embedding_dim": size} if size < mixer.head_dim else {}
        changed |= {"interleaved": 1} if mixer.rope and mixer.rope.interleaved else {}
        heads = mixer.heads if query else mixer.kv_heads
        return b("RotaryEmbedding", x, rope.cos, rope.sin, rope.rows, num_heads=heads, **changed)

    def tables(self, mixer: Latent) -> tuple[ir.Value, ir.Value, ir.Value, ir.Value | None]:
        """cos and sin f32 [P, R/2], positions of the tokens i64 [B, S], and factors of queries f32 [P, 1], if any."""
        (rope,) = self.of(mixer)
        if mixer.temperature is None:
            return rope.cos, rope.sin, rope.rows, None
        data = _factors(mixer.temperature, self.max_context)
        name = f"temperature.{mixer.temperature.original}.{mixer.temperature.beta}"
        how = "factors of queries by position"
        stored = self.graph.store(Canonical(name, "F32", data.shape, Computed(data, how), group=name))
        return rope.cos, rope.sin, rope.rows, self.graph.weight(name, stored)

    def _find(self, rope: RopeConfig | None, head_dim: int, temperature: Temperature | None) -> _Rope:
        settings = (rope, head_dim, temperature)
        found = next((one for one in self.known if one.settings == settings), None)
        if found is None:
            found = _Rope(settings, *self._tables(*settings))
            self.known.append(found)
        return found

    def _tables(
        self, rope: RopeConfig | None, head_dim: int, temperature: Temperature | None
    ) -> tuple[ir.Value, ir.Value, ir.Value]:
        size = rope.rotated(head_dim) if rope else head_dim
        by_length = length_rope(rope, size, self.positions, self.max_context) if rope else None
        if by_length is not None:
            if rope is not None and temperature is not None:
                raise Unsupported(
                    f"cannot compute rope type {rope.type!r}", found="queries that are scaled by their position"
                )
            self.by_length.append(by_length)
            inputs = {str(value.name): value for value in self.graph.body.inputs}
            rows = inputs.get(POSITIONS) or self.graph.input(POSITIONS, "I64", ["B", "S"])
            names = table_inputs(len(self.by_length) - 1)
            cos, sin = (self.graph.input(name, "F32", ["P", size // 2]) for name in names)
            return cos, sin, rows
        if rope is None:
            shape = self.max_context, size // 2
            tables, how = (np.ones(shape, np.float32), np.zeros(shape, np.float32)), f"no turn, context {shape[0]}"
        else:
            tables = rope_tables(rope, size, self.positions, self.max_context)
            how = f"rope type {rope.type}, context {self.max_context}"
        if temperature is not None:
            factors = _factors(temperature, self.max_context)
            tables, how = (tables[0] * factors, tables[1] * factors), f"{how}, scaled for queries"
        number = f".{len(self.known)}" if self.known else ""
        values = []
        for name, data in zip((f"rope{number}.cos", f"rope{number}.sin"), tables, strict=True):
            canonical = Canonical(name, "F32", data.shape, Computed(data, how), group=name)
            values.append(self.graph.weight(name, self.graph.store(canonical)))
        return values[0], values[1], self.rows


def _factors(temperature: Temperature, context: int) -> np.ndarray:
    """f32 [context, 1]"""
    steps = np.floor((np.arange(context, dtype=np.float64) + temperature.first) / temperature.original)
    return (1 + temperature.beta * np.log1p(steps)).astype(np.float32)[:, None]
