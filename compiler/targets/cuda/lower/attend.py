"""Lowers attention: heads are normed and rotated, the cache is written, and one of two kernels attends to it."""

from __future__ import annotations

import onnx_ir as ir

from .....passes.graph.attention import AFTER, CAPPED, rope_inputs
from .....passes.graph.graph import attribute
from .....runtime.plan.plan import BLOCK_TOKENS, KVCache
from ..call import Operand
from ..kernels.attention import flash_decode as attention_decode
from ..kernels.attention import flash_prefill as attention_prefill
from ..kernels.attention.flash_prefill import Heads
from ..kernels.attention.rope_cache import Turn, rope_cache
from ..lowering import Lowering
from . import neighbours


def rope_attention(at: Lowering, node: ir.Node) -> None:
    given = dict(zip(rope_inputs(node.overload), node.inputs, strict=True))
    kind = at.profile.kv_cache(node)
    key, value = at.cache(given["past_key"], kind), at.cache(given["past_value"], kind)
    y, scales, q = _results(at, node)
    slots = at.input(f"slot_mapping{kind.suffix}", "i32", "tokens")
    heads = {name: attribute(node, name) for name in ("heads", "kv_heads", "head_dim")}
    turn = _turn(at, node, given)
    at.add(node, rope_cache(at.operand(given["qkv"]), _positions(at), slots, q, key, value, turn, **heads))
    _attend(at, node, given, q, (key, value), kind, (y, scales))


def rope_shared_attention(at: Lowering, node: ir.Node) -> None:
    given = dict(zip(rope_inputs(node.overload, shared=True), node.inputs, strict=True))
    kind, present = at.profile.kv_cache(node), given["present_key"]
    source = present.producer() if present is not None else None
    assert source is not None
    past = dict(zip(rope_inputs(source.overload), source.inputs, strict=True))
    key, value = at.cache(past["past_key"], kind), at.cache(past["past_value"], kind)
    y, scales, q = _results(at, node)
    heads = {"heads": attribute(node, "heads"), "kv_heads": 0, "head_dim": attribute(node, "head_dim")}
    slots = at.input(f"slot_mapping{kind.suffix}", "i32", "tokens")
    turn = _turn(at, node, given)
    at.add(node, rope_cache(at.operand(given["raw_q"]), _positions(at), slots, q, None, None, turn, **heads))
    _attend(at, node, given, q, (key, value), kind, (y, scales))


def _positions(at: Lowering) -> Operand:
    return at.input("positions", "i32", "tokens")


def _results(at: Lowering, node: ir.Node) -> tuple[Operand, Operand | None, Operand]:
    """The result, its scales if it is quantized, and the turned queries."""
    result, size = node.outputs[0], attribute(node, "head_dim")
    decode = at.shape.decode
    y, scales = (at.result(result), None) if decode else neighbours.result_or_quantized(at, result, size)
    return y, scales, at.buffer(f"{result.name}.q", at.profile.activation, "tokens", attribute(node, "heads") * size)


def _turn(at: Lowering, node: ir.Node, given: dict[str, ir.Value | None]) -> Turn:
    names = ("cos", "sin", "q_cos", "q_sin", "q_norm", "k_norm")
    return Turn(
        **{name: at.operand(given[name]) for name in names if name in given},
        interleaved=bool(attribute(node, "interleaved", 0)),
        after=AFTER in node.overload.split("_"),
        epsilon=attribute(node, "epsilon", 0.0),
    )


def _attend(
    at: Lowering,
    node: ir.Node,
    given: dict[str, ir.Value | None],
    q: Operand,
    cache: tuple[Operand, Operand],
    kind: KVCache,
    results: tuple[Operand, Operand | None],
) -> None:
    (key, value), (y, scales) = cache, results
    heads, kv_heads, size = (attribute(node, name) for name in ("heads", "kv_heads", "head_dim"))
    block_tables = at.input(f"block_tables{kind.suffix}", "i32", "sequences", at.profile.max_blocks)
    seq_lens = at.input("seq_lens", "i32", "sequences")
    common: Heads = {
        "heads": heads,
        "kv_heads": kv_heads,
        "head_dim": size,
        "scale": attribute(node, "scale"),
        "window": kind.window or 0,
        "order": neighbours.order_for(at, y, node.outputs[0]),
    }
    if CAPPED in node.overload.split("_"):
        common["softcap"] = attribute(node, "softcap")
    if "sinks" in given:
        common["sinks"] = at.operand(given["sinks"])
    if not at.shape.decode:
        query_start_loc = at.input("query_start_loc", "i32", "sequences + 1")
        at.add(
            node,
            attention_prefill.attention_prefill(
                *(q, key, value, block_tables, query_start_loc, seq_lens, y), sm=at.profile.sm, scales=scales, **common
            ),
        )
        return
    seen = at.profile.max_blocks if kind.window is None else min(kind.window // BLOCK_TOKENS + 1, at.profile.max_blocks)
    splits = attention_decode.splits_for(at.shape.sequences, kv_heads, seen, at.profile.sm)
    parts = attention_decode.parts_of(at.beside(y), at.counters(), heads, size, splits)
    at.add(
        node,
        attention_decode.attention_decode(
            q, key, value, block_tables, seq_lens, y, splits=splits, parts=parts, **common
        ),
    )
