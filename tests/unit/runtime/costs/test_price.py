"""Prices of steps from given facts, against numbers that are computed by hand."""

from __future__ import annotations

import pytest

from llmc.runtime.costs.facts import TOKENS, CpuFacts, ProductFacts
from llmc.runtime.costs.nodes import Attention, Elements, Mixture, Product
from llmc.runtime.costs.price import (
    Step,
    decode_seconds,
    host_seconds,
    prefill_seconds,
    price_node,
    price_step,
    seconds_per_weight,
)

INT4 = ProductFacts(4, 32, (1.0, 2.0, 3.0, 9.0, 65.0))
FACTS = CpuFacts(
    llmc="0",
    cpu="a cpu",
    threads=2,
    date="2026-11-29",
    read_bytes_per_s=1e9,
    products=(INT4, ProductFacts(4, 128, (0.5,) * 5), ProductFacts(32, 0, (4.0,) * 5)),
    product_s=100.0,
    attention_head_s=3.0,
    attention_byte_s=0.5,
    attention_operation_s=0.25,
    element_s={"norm": 1.0, "activation": 2.0, "other": 0.125},
    node_s=7.0,
    step_s=11.0,
    logit_s=0.5,
)
HEAD = Product(rows=6, columns=32, bits=4, block=32, per="row", label="head")
LINEAR = Product(rows=2, columns=32, bits=4, block=32, per="token", label="layer.0")
NODES = (Elements("Gather", "other", 8, "token", "embed"), LINEAR, Attention(4, 2, 8, label="layer.0"), HEAD)


@pytest.mark.parametrize(
    ("tokens", "expected"), [(1, 1.0), (2, 2.0), (3, 2.5), (4, 3.0), (10, 6.0), (128, 65.0), (256, 130.0)]
)
def test_products_between_measured_numbers_of_tokens_lie_on_a_line(tokens: int, expected: float):
    assert TOKENS == (1, 2, 4, 16, 128)
    assert seconds_per_weight(INT4, tokens) == expected


def test_a_product_counts_tokens_or_wanted_rows():
    step = Step(tokens=4, sequences=1, context=0)
    one, head = price_node(LINEAR, step, FACTS), price_node(HEAD, step, FACTS)
    assert (one.seconds, one.operations, one.block) == (100 + 64 * 3.0, 2 * 64 * 4, "layer.0")
    assert (head.seconds, head.operations) == (100 + 192 * 1.0, 2 * 192)
    # 64 codes of 4 bits, and a scale and a sum in float32 for each of two blocks
    assert one.bytes == 32 + 2 * 8


def test_experts_take_their_share_of_the_tokens_times_the_chance_of_one():
    """2 tokens choose 2 of 4 experts: one has a token with 0.75, and then 4 / 3 of them."""
    expert = Product(rows=2, columns=32, bits=4, block=32, per="token", share=(2, 4))
    found = price_node(expert, Step(tokens=2), FACTS)
    assert found.seconds == pytest.approx(0.75 * (100 + 64 * 4 / 3))
    assert (found.bytes, found.operations) == (round(0.75 * 48), 2 * 64)
    both = price_node(Mixture(expert, expert), Step(tokens=2), FACTS)
    assert (both.seconds, both.bytes, both.operations) == (
        pytest.approx(8 * found.seconds),
        8 * found.bytes,
        8 * found.operations,
    )


def test_a_layout_that_was_not_measured_takes_the_nearest_block():
    assert FACTS.product(4, 64).block in (32, 128) and FACTS.product(4, 256).block == 128
    with pytest.raises(KeyError):
        FACTS.product(2, 32)


def test_attention_of_one_token_reads_the_cache_and_of_many_computes():
    node = Attention(heads=4, kv_heads=2, head_dim=8)
    one = price_node(node, Step(1, sequences=3, context=9), FACTS)
    assert one.bytes == 2 * 4 * 2 * 8 * 10 * 3
    assert one.seconds == 100 + 4 * 3 * 3.0 + one.bytes * 0.5
    many = price_node(node, Step(16, context=16), FACTS)
    assert many.operations == 4 * 4 * 8 * 32 * 16
    assert many.seconds == 100 + 4 * 3.0 + many.operations * 0.25


def test_a_window_limits_what_attention_reads():
    node = Attention(heads=4, kv_heads=2, head_dim=8, window=5)
    assert price_node(node, Step(1, context=100), FACTS).bytes == 2 * 4 * 2 * 8 * 5
    assert price_node(node, Step(1, context=2), FACTS).bytes == 2 * 4 * 2 * 8 * 3


def test_elements_cost_their_numbers_and_a_start():
    assert price_node(Elements("Add", "other", 8, "token"), Step(2, 3), FACTS).seconds == 7 + 48 * 0.125
    assert price_node(Elements("Shape", "other", 0, "step"), Step(2, 3), FACTS).seconds == 7


def test_a_step_is_its_nodes_and_the_host():
    step = Step(1, sequences=2, context=4)
    price = price_step(NODES, step, FACTS)
    assert price.host_s == host_seconds(NODES, step, FACTS) == 11 + 2 * 6 * 0.5
    assert price.seconds == sum(price_node(node, step, FACTS).seconds for node in NODES) + price.host_s
    assert [one.block for one in price.nodes] == ["embed", "layer.0", "layer.0", "head"]
    assert decode_seconds(NODES, FACTS, context=4, sequences=2) == price.seconds
    assert (price.bytes, price.operations) == (
        sum(one.bytes for one in price.nodes),
        sum(one.operations for one in price.nodes),
    )


def test_a_prompt_is_read_in_chunks():
    whole = prefill_seconds(NODES, FACTS, tokens=10, chunk=4)
    parts = [price_step(NODES, Step(size, 1, start, 1), FACTS).seconds for size, start in ((4, 0), (4, 4), (2, 8))]
    assert whole == sum(parts)
