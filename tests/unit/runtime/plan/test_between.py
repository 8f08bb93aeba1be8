"""Exchanges of a plan: read back as written, forged ones refused by name, and priced apart from memory."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from support.plans import plan

from llmc.runtime.errors import EngineError
from llmc.runtime.plan.between import Collective, RankOf
from llmc.runtime.plan.budget import inputs_of
from llmc.runtime.plan.inputs import inputs_for
from llmc.runtime.plan.listing import plan_text
from llmc.runtime.plan.plan import KVCache, Plan, Program, Tensor
from llmc.runtime.plan.price import Roofline, grouped, price

REDUCE = Collective("all_reduce", "y", "y", "tokens * 8", None, "tokens * 64", "tokens * 32", "layers.0.reduce_7")
GATHER = Collective("all_gather", "y", "all", "tokens * 8", None, "tokens * 96", "tokens * 32", "gather")
SEND = Collective("send", "y", None, "tokens * 8", 3, "tokens * 32", "tokens * 32", "send")


def ranked() -> Plan:
    """The second shard of the first stage of two, with three exchanges after the kernels of each program."""

    def with_exchanges(one: Program) -> Program:
        end = one.arena
        both = Tensor("buffer", "f32", ("2", "tokens", "8"), end)
        return replace(
            one,
            arena=end + both.bytes(one.limits),
            buffers={**one.buffers, "all": both},
            launches=(*one.launches, REDUCE, GATHER, SEND),
        )

    made = plan()
    return replace(made, rank_of=RankOf(1, 2, 2), programs=tuple(map(with_exchanges, made.programs)))


def test_exchanges_are_the_same_after_writing_and_reading():
    made = ranked()
    read = Plan.from_json(made.to_json(), what="p")
    assert read == made and read.to_json() == made.to_json()
    assert read.rank == RankOf.of("sm_90-tp2-pp2.rank-1") and not read.rank.is_last
    assert "rank_of" not in json.loads(plan().to_json()) and plan().rank == RankOf.of("sm_90")


def test_the_listing_shows_them():
    text = plan_text(ranked())
    assert "rank 1 of tp 2, pp 2" in text
    assert "send: send(y -> ), count tokens * 8, peer 3\n    bytes tokens * 32; on the link tokens * 32" in text


def test_bytes_on_the_link_are_counted_apart_from_those_of_memory():
    made, sizes = ranked(), {"tokens": 4, "sequences": 4, "rows": 4}
    roofline = Roofline(1e12, 1e15)
    found = price(made, made.programs[1], roofline, sizes=sizes, context=0, heads=2)
    alone = price(plan(), plan().programs[1], roofline, sizes=sizes, context=0, heads=2)
    assert (found.link_bytes, alone.link_bytes) == (3 * 4 * 32, 0)
    assert found.bytes - alone.bytes == 4 * (64 + 96 + 32)
    two = replace(REDUCE, label="layers.1.reduce_9")
    program = replace(made.programs[1], launches=(*made.programs[1].launches, two))
    lines = grouped(price(made, program, roofline, sizes=sizes, context=0, heads=2).lines)
    (line,) = (one for one in lines if one.kernel == "all_reduce")
    assert (line.count, line.link_bytes, line.bytes, line.grid) == (2, 2 * 4 * 32, 2 * 4 * 64, ())


def test_a_rank_has_the_inputs_of_its_stage():
    caches = (KVCache(8),)
    first, middle, last = ({*inputs_for(caches, None, RankOf(rank, 1, 3))} for rank in range(3))
    assert last == {*inputs_for(caches)} and first - middle == {"token_ids"} and middle < last
    assert not first & {"temperature", "logits_indices", "prompt_slots", "logit_bias"}
    assert not inputs_of(ranked(), ranked().programs[0])


Json = dict[str, Any]
WHERE = "collective 'send' of program 0 of p"


def _change(index: int, **changes: Any) -> Callable[[Json], object]:
    return lambda d: d["programs"][0]["launches"][index].update(changes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_change(-1, collective="gossip"), f"expected an operator between ranks in {WHERE}\n  found: 'gossip'"),
        (_change(-1, receives="y"), f"expected the tensors of a send in {WHERE}\n  found: y, y"),
        (_change(-1, sends=None), f"expected the tensors of a send in {WHERE}"),
        (_change(-1, peer=4), f"expected another rank of 4 as the peer in {WHERE}\n  found: 4"),
        (_change(-1, peer=1), "as the peer in .*\n  found: 1"),
        (_change(-1, peer=None), "as the peer in .*\n  found: None"),
        (_change(-2, peer=3), "expected no peer in collective 'gather' of program 0 of p\n  found: 3"),
        (_change(-1, sends="w"), f"expected a buffer in {WHERE}\n  found: 'w'"),
        (_change(-1, count="tokens * 9"), f"numbers inside buffer 'y' in {WHERE}\n  found: 9 of 8 numbers"),
        (_change(-2, receives="y"), "inside buffer 'y' in collective 'gather' .*\n  found: 16 of 8 numbers"),
        (_change(-1, count="heads"), "formula 'heads' of the plan"),
        (_change(-1, link_bytes="0 - 1"), "formula '0 - 1' of the plan"),
        (_change(-1, grid=["1"]), "expected only known keys in p.programs.launches\n  found: 'grid'"),
        (lambda d: d["programs"][0]["launches"][-1].pop("collective"), "expected the key 'module' or 'collective'"),
        (
            lambda d: d["programs"][0]["buffers"]["all"].update(dtype="i32"),
            "expected one dtype in collective 'gather' of program 0 of p\n  found: f32, i32",
        ),
        (lambda d: d["rank_of"].update(number=4), "expected a rank of a split in p\n  found: 4 of 2 \\* 2"),
        (lambda d: d["rank_of"].update(tp=0), "expected a rank of a split in p\n  found: 1 of 0 \\* 2"),
        (lambda d: d.pop("rank_of"), "expected another rank of 1 as the peer|inside buffer"),
    ],
)
def test_a_forged_exchange_is_refused_by_name(change: Callable[[Json], object], message: str):
    document = json.loads(ranked().to_json())
    change(document)
    with pytest.raises(EngineError, match=message):
        Plan.from_json(json.dumps(document).encode(), what="p")
