"""Latent attention on the CPU: absorbed, one GroupQueryAttention over the cached rows, for prompts and for decoding.

Queries are multiplied by a head's rows of keys, so that they meet the cached rows themselves, and the mixed rows by its
rows of values. All heads share the rows: one head of keys, whose first numbers are also the values. GroupQueryAttention
takes the same buffer as keys and as values, and writes the same numbers to it twice.

Other forms were measured beside it (ONNX Runtime 1.31, two busy cores, 16 heads of DeepSeek-V2-Lite, seconds, which
compare within a row). Keys and values of each head, expanded from all cached rows at each step: 0.086 instead of 0.012
for a token after 512 and 0.99 instead of 0.068 after 4096, so one form for both must be absorbed; for 512 tokens it
takes 0.48 (Attention) instead of 0.77 without a cache, and 2.0 (MultiHeadAttention) instead of 8.0 with 4096 positions.
Two products over the rows, of all heads at once: 0.076 instead of 0.148 for a token after 4096, as each head of the
kernel reads all rows anew, but 1.9 instead of 1.3 and 18 instead of 11 for 512 tokens. One graph serves prompts and
single tokens; the faster form of each needs one graph for either.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from ....passes.graph.graph import Builder, Graph, attribute, dims, width
from ....passes.graph.latent import TEMPERED
from ....passes.rewrite.pattern import Op, Patterns, Rest, require
from ....passes.rewrite.rule import Outcome, Pass, Rule
from ....runtime.engine_file.bind import Expr, Reshape, Slice, as_f32
from ....runtime.errors import Unsupported
from .attention import group_query

_EXAMPLE = (
    "(float[1,3,24] q, float[1,3,8] c, float[1,3,8] k, float[20,8] W, float[6,4] C, float[6,4] S, int64[1,3] ids, "
    "float[1,1,4,16] rows_key, int32[1] past) => (float[1,3,12] y, float[1,1,4,16] nk) { p = llmc.Positions(ids, past) "
    "y, nk = llmc.LatentAttention<heads=2, nope=4, rope=8, value=6, scale=0.3, interleaved=1>"
    "(q, c, k, W, C, S, p, rows_key, past) }"
)


class LatentToGroupQuery(Rule):
    """Latent attention becomes attention of all heads to one head, the cached rows."""

    fires = (
        _EXAMPLE,
        _EXAMPLE.replace("rows_key, int32", "rows_key, float[6,1] F, int32")
        .replace("rows_key, past)", "rows_key, past, F)")
        .replace("Attention<", "Attention:tempered<"),
    )
    refuses = {
        "a cached row is no multiple of 8": _EXAMPLE.replace("[1,3,8] c", "[1,3,4] c")
        .replace(",8] W", ",4] W")
        .replace(",4,16]", ",4,12]")
    }

    @staticmethod
    def pattern(p: Patterns) -> tuple[Op, ...]:
        root = p.llmc.LatentAttention("q", "latent", "key", "weight", "*others").named("attention")
        return root, root.out(1)

    def check(self, latent: ir.Value, key: ir.Value) -> None:
        require((width(latent) + width(key)) % 8 == 0, "a cached row is no multiple of 8")

    def rewrite(
        self,
        g: Builder,
        q: ir.Value,
        latent: ir.Value,
        key: ir.Value,
        weight: ir.Value,
        others: Rest,
        attention: ir.Node,
    ) -> Sequence[ir.Value]:
        heads, nope, rope, value = (attribute(attention, name) for name in ("heads", "nope", "rope", "value"))
        cos, sin, positions, cache, past, *factors = others
        assert cache is not None and past is not None
        rank, turn = width(latent), {"interleaved": attribute(attention, "interleaved")}
        keys, values = self._parts(g.graph, weight, heads, nope)
        of_q = g("Split", g("Reshape", q, g.ints(0, 0, heads, nope + rope)), g.ints(nope, rope), axis=-1, outputs=2)
        plain, raw = of_q
        turned = g("RotaryEmbedding", g("Reshape", raw, g.ints(0, 0, -1)), cos, sin, positions, num_heads=heads, **turn)
        lead = g("Shape", q, start=0, end=2)
        by_head = g("Transpose", g("Reshape", plain, g.ints(-1, heads, nope)), perm=[1, 0, 2])
        met = g("Transpose", g("MatMul", by_head, keys), perm=[1, 0, 2])
        met = g("Reshape", met, g("Concat", lead, g.ints(heads, rank), axis=0))
        query = g("Concat", met, g("Reshape", turned, g.ints(0, 0, heads, rope)), axis=-1)
        if TEMPERED in attention.overload:
            by = g("Unsqueeze", g("Gather", factors[0], positions, axis=0), g.ints(2))
            by.type, by.shape = q.type, ir.Shape([*dims(positions), 1, 1])  # layers share it, and so may segments
            query = g("Mul", query, by)
        query = g("Reshape", query, g.ints(0, 0, -1))
        query.type, query.shape = q.type, ir.Shape([*dims(q)[:-1], heads * (rank + rope)])
        rows = g("Concat", latent, g("RotaryEmbedding", key, cos, sin, positions, num_heads=1, **turn), axis=-1)
        y, present, _ = self._attend(g, attention, query, rows, cache, past)
        mixed = g("Slice", g("Reshape", y, g.ints(-1, heads, rank + rope)), g.ints(0), g.ints(rank), g.ints(2))
        made = g.ms("FusedMatMul", g("Transpose", mixed, perm=[1, 0, 2]), values, transA=0, transB=1)
        made = g("Transpose", made, perm=[1, 0, 2])
        return g("Reshape", made, g("Concat", lead, g.ints(heads * value), axis=0)), present

    @staticmethod
    def _parts(graph: Graph, weight: ir.Value, heads: int, nope: int) -> tuple[ir.Value, ir.Value]:
        """Rows of keys f32 [A, N, L] and of values f32 [A, V, L]."""
        expr = graph.expr(weight)
        assert expr is not None
        rows, rank = expr.shape
        apart = Reshape(expr, (heads, rows // heads, rank))
        parts: list[Expr] = [Slice(apart, 1, 0, nope), Slice(apart, 1, nope, rows // heads)]
        keys, values = (
            graph.weight(f"{weight.name}.{name}", as_f32(part))
            for name, part in zip(("keys", "values"), parts, strict=True)
        )
        return keys, values

    @staticmethod
    def _attend(
        g: Builder, attention: ir.Node, query: ir.Value, rows: ir.Value, cache: ir.Value, past: ir.Value
    ) -> tuple[ir.Value, ir.Value, ir.Value]:
        """Attention of all heads to the rows; the cache has a second name, as values."""
        other = str(cache.name).removesuffix("key") + "value"
        values = g.graph.input(other, "F32", dims(cache))
        y, present, again = group_query(g, attention, (query, rows, rows), (cache, values, past))
        again.name = f"present.{other.removeprefix('past.')}"
        again.type, again.shape = cache.type, cache.shape
        g.graph.body.outputs.append(again)
        return y, present, again


class RefuseLatents(Pass):
    """Refuses latent attention that is left: GroupQueryAttention takes no rows of other sizes."""

    def run(self, graph: Graph) -> Outcome:
        for node in graph.nodes:
            if node.op_type == "LatentAttention":
                size = width(node.inputs[1]) + width(node.inputs[2])
                raise Unsupported(
                    f"cannot compute {node.op_type} ({node.outputs[0].name}) on the CPU",
                    found=f"cached rows of {size} numbers (kv_lora_rank + qk_rope_head_dim), which is no multiple of 8",
                    fix="a model whose rows are; those that are published have 320 or 576",
                )
        return Outcome()
