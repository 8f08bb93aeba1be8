"""The toy model (`toy_gpu.py`) split over ranks: its logits are halves on two shards, or come from the stage before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from support.toy_gpu import VOCAB, toy_plan

from llmc.runtime.plan.between import Collective, RankOf
from llmc.runtime.plan.inputs import inputs_for
from llmc.runtime.plan.plan import Argument, Launch, Plan, Program

COUNT = f"rows * {VOCAB}"


def exchange(op: str, *, peer: int | None = None) -> Collective:
    sends, receives = (None if op == one else "logits" for one in ("recv", "send"))
    return Collective(op, sends, receives, COUNT, peer, "0", "0", f"the {op}")


def of_rank(rank: RankOf, before: Sequence[Collective], after: Sequence[Collective], kernels: Sequence[str]) -> Plan:
    """The toy's plan with some of its kernels, and exchanges before and after what makes the logits."""

    def program(one: Program) -> Program:
        launches: list[Launch | Collective] = []
        for launch in one.launches:
            assert isinstance(launch, Launch)
            name = toy_plan().modules[launch.module].kernel
            if name.startswith("choose"):
                launches += [*before, *after]
            launches += [launch] if name.startswith(tuple(kernels)) else []
        return replace(one, launches=tuple(launches))

    made = toy_plan()
    return replace(made, rank_of=rank, programs=tuple(map(program, made.programs)))


def shards(count: int = 2) -> list[Plan]:
    kernels = ("take", "score", "choose")
    return [of_rank(RankOf(rank, count, 1), [], [exchange("all_reduce")], kernels) for rank in range(count)]


def stages() -> list[Plan]:
    return [
        of_rank(RankOf(0, 1, 2), [], [exchange("send", peer=1)], ("take", "score")),
        of_rank(RankOf(1, 1, 2), [exchange("recv", peer=0)], [], ("choose",)),
    ]


def token_stages() -> list[Plan]:
    """Two stages with the inputs that an executor gives them: the first one sends its ids, the last does all else."""
    sent = Collective("send", "ids", None, "tokens", 1, "0", "0", "the send")
    received = Collective("recv", None, "ids", "tokens", 0, "0", "0", "the recv")
    first, last = (replace(toy_plan(), rank_of=RankOf(rank, 1, 2)) for rank in range(2))

    def sends(one: Program) -> Program:
        return replace(one, launches=(one.launches[0], sent))

    def receives(one: Program) -> Program:
        take, *others = one.launches
        assert isinstance(take, Launch)
        ids = (Argument(tensor="ids"), *take.arguments[1:])
        return replace(one, launches=(received, replace(take, arguments=ids), *others))

    wanted = inputs_for(first.caches, rank=first.rank)
    tensors = {name: one for name, one in first.tensors.items() if one.kind != "input" or name in wanted}
    return [
        replace(first, tensors=tensors, programs=tuple(map(sends, first.programs))),
        replace(last, programs=tuple(map(receives, last.programs))),
    ]
