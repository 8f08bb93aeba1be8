"""Lowers latent attention: rows are written to the cache, queries are brought to them, and mixed rows to values.

It is absorbed in every step: queries meet the cached rows, in prompts too. Keys and values of heads would be 71 times
as many numbers as the rows of DeepSeek-V3, and a prompt that expands them needs room for all positions before it. The
price is 3.4 times the operations of expanded attention: 2 * (L+R + L) and not 2 * (N+R + V) for each head and pair.
"""

from __future__ import annotations

import onnx_ir as ir

from .....passes.graph.graph import attribute
from .....passes.graph.latent import TEMPERED
from ..call import Operand
from ..kernels.latent import prefill, product, rows_decode
from ..kernels.latent.first_norm import first_norm as norm_columns
from ..kernels.latent.rows import latent_rows
from ..kernels.latent.shape import LatentShape
from ..lowering import Lowering
from . import neighbours


def first_norm(at: Lowering, node: ir.Node) -> None:
    x, weight = map(at.operand, node.inputs)
    y = at.result(node.outputs[0])
    order = neighbours.order_for(at, y, node.outputs[0])
    at.add(node, norm_columns(x, weight, y, epsilon=attribute(node, "epsilon", 1e-5), order=order))


def latent_attention(at: Lowering, node: ir.Node) -> None:
    q, x, norm, weight, cos, sin, _, past, _, *others = node.inputs
    result, kind = node.outputs[0], at.profile.kv_cache(node)
    rank = at.operand(norm).shape[0]
    assert isinstance(rank, int)
    heads, nope, rope, value = (attribute(node, name) for name in ("heads", "nope", "rope", "value"))
    shape = LatentShape(heads, nope, rope, value, rank)
    factors = at.operand(others[0]) if TEMPERED in node.overload else None
    positions, slots = (at.input(name, "i32", "tokens") for name in ("positions", f"slot_mapping{kind.suffix}"))
    rows, queries, up = at.cache(past, kind), at.operand(q), at.operand(weight)
    query = at.buffer(f"{result.name}.query", at.profile.activation, "tokens", shape.heads, shape.row)
    at.add(
        node,
        latent_rows(
            *(queries, at.operand(x), at.operand(norm), positions, slots, (at.operand(cos), at.operand(sin))),
            *(query, rows, shape),
            interleaved=bool(attribute(node, "interleaved", 0)),
            epsilon=attribute(node, "epsilon"),
            factors=factors,
        ),
    )
    most = at.shape.limit("tokens")
    tempered = {"factors": factors, "positions": positions}
    at.add(node, product.absorbed_queries(queries, up, query, shape, max_tokens=most, **tempered))
    mixed, lse = _attend(at, node, query, rows, shape)
    y = at.result(result)
    order = neighbours.order_for(at, y, result)
    at.add(node, product.values(mixed, up, y, shape, max_tokens=most, lse=lse, order=order))


def _attend(
    at: Lowering, node: ir.Node, query: Operand, rows: Operand, shape: LatentShape
) -> tuple[Operand, Operand | None]:
    """Mixed latents of the step's tokens; of a sequence that is split, those of its parts, with their sums."""
    name, kind = f"{node.outputs[0].name}.mixed", at.profile.kv_cache(node)
    tables = at.input(f"block_tables{kind.suffix}", "i32", "sequences", at.profile.max_blocks)
    seq_lens, scale, sm = at.input("seq_lens", "i32", "sequences"), attribute(node, "scale"), at.profile.sm
    if not at.shape.decode:
        starts = at.input("query_start_loc", "i32", "sequences + 1")
        mixed = at.buffer(name, at.profile.activation, "tokens", shape.heads, shape.rank)
        at.add(node, prefill.latent_prefill(query, rows, tables, starts, seq_lens, mixed, shape, scale=scale, sm=sm))
        return mixed, None
    splits = rows_decode.decode_splits(shape, at.shape.sequences, at.profile.max_blocks, sm)
    lead, lse = ("sequences", shape.heads), None
    if splits > 1:
        mixed = at.buffer(name, "f32", *lead, splits, shape.rank)
        lse = at.buffer(f"{name}.lse", "f32", *lead, splits)
    else:
        mixed = at.buffer(name, at.profile.activation, *lead, shape.rank)
    at.add(node, rows_decode.latent_decode(query, rows, tables, seq_lens, mixed, shape, scale=scale, sm=sm, lse=lse))
    return mixed, lse
