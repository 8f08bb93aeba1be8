"""Embeddings to ONNX Runtime's CPU kernels, whole and by parts of the vocabulary."""

from __future__ import annotations

import onnx_ir as ir

from ....passes.graph import ops
from ....passes.graph.graph import Builder, attribute, dims
from ....passes.rewrite.pattern import Op, Patterns, Rest
from ....passes.rewrite.rule import Rule
from ....runtime.engine_file.bind import Reshape, Stored
from .nbits import NBITS, dequantized, nbits_weights


class EmbeddingToGather(Rule):
    """Gather rows and dequantize them afterwards; a block-quantized table shares the bytes of a tied head."""

    fires = (
        "(int64[2,3] ids, float[8,64] T) => (float[2,3,64] y) { y = llmc.Embedding:f32(ids, T) }",
        "(int64[2,3] ids, uint8[8,32] T, float[8,2] S) => (float[2,3,64] y) { y = llmc.Embedding:int4(ids, T, S) }",
        "(int64[2,3] ids, uint8[8,64] T, float[8,2] S) => (float[2,3,64] y) { y = llmc.Embedding:int8(ids, T, S) }",
        "(int64[2,3] ids, uint8[8,32] T, uint8[8,4] S, float G) => (float[2,3,64] y) "
        "{ y = llmc.Embedding:nvfp4(ids, T, S, G) }",
        "(int64[2,3] ids, uint8[8,64] T, float[8] S) => (float[2,3,64] y) { y = llmc.Embedding:fp8(ids, T, S) }",
        "(int64[2,3] ids, float[8,64] T) => (float[2,3,64] y) { y = llmc.Embedding:f32_part<start=3>(ids, T) }",
        "(int64[2,3] ids, uint8[8,64] T, float[8,2] S) => (float[2,3,64] y) "
        "{ y = llmc.Embedding:int8_part<start=2>(ids, T, S) }",
    )

    @staticmethod
    def pattern(p: Patterns) -> Op:
        return p.llmc.Embedding("ids", "table", "*others").named("embedding")

    def rewrite(self, g: Builder, ids: ir.Value, table: ir.Value, others: Rest, embedding: ir.Node) -> ir.Value:
        fmt, start = ops.format_of(embedding), attribute(embedding, "start")
        if start is None:
            return _gathered(g, fmt, ids, table, others)
        moved = g("Sub", ids, g("Constant", value_int=start))
        above = g("GreaterOrEqual", moved, g("Constant", value_int=0))
        mine = g("And", above, g("Less", moved, g("Constant", value_int=int(dims(table)[0]))))
        rows = _gathered(g, fmt, g("Mul", moved, g("Cast", mine, to=int(ir.DataType.INT64))), table, others)
        return g("Mul", rows, g("Cast", g("Unsqueeze", mine, g.ints(-1)), to=int(ir.DataType.FLOAT)))


def _gathered(g: Builder, fmt: str, ids: ir.Value, table: ir.Value, others: Rest) -> ir.Value:
    """The rows of a table."""
    name = table.name
    if fmt in NBITS:
        codes, scale = nbits_weights(g.graph, fmt, (table, *others))
        layout, (rows, blocks) = NBITS[fmt], scale.shape
        return g.ms(
            "GatherBlockQuantized",
            g.graph.weight(f"{name}.table", Reshape(codes, (rows, blocks * layout.blob))),
            ids,
            g.graph.weight(f"{name}.scales", scale),
            bits=layout.bits,
            block_size=layout.block,
            gather_axis=0,
            quantize_axis=1,
        )
    expr = g.graph.expr(table)
    if fmt == ops.DENSE and isinstance(expr, Stored) and expr.dtype != "F32":
        stored = g.graph.weight(f"{name}.{expr.dtype.lower()}", expr, widen=False)
        return g("Cast", g("Gather", stored, ids, axis=0), to=int(ir.DataType.FLOAT))
    return g("Gather", dequantized(g, fmt, table, others), ids, axis=0)
