"""Operators between ranks. Their bodies are of all ranks of a group, joined for the oracle: one rank has no definition.

In the graph of a rank a collective has that rank's values, and no overload. In a joined graph
(`compiler/oracle/ranks.py`) it has the values of all n ranks of the group, in the order of their shards, and the
overload `of{n}`. Sums are made in that order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

ARITY = {"AllReduce": (1, 1), "AllGather": (1, 1), "ReduceScatter": (1, 1), "Send": (1, 1), "Recv": (0, 1)}
"""Inputs and outputs of each operator in the graph of a rank.

- AllReduce (x) => the sum over the group, of the same shape.
- AllGather <axis, sizes> (x) => the values of the group side by side; `sizes` has each shard's elements along `axis`.
- ReduceScatter <axis, sizes, shard> (x) => part `shard` of the sum, which is cut into `sizes`.
- Send <peer, number> (x) => x itself, a graph output; rank `peer` of the job receives it.
- Recv <peer, number> () => what rank `peer` sends under this number. Values between two ranks are in ascending order.
"""


def joined(count: int) -> str:
    """The overload of a collective over `count` ranks."""
    return f"of{count}"


def _names(overload: str, stem: str) -> list[str]:
    return [f"{stem}{index}" for index in range(int(overload.removeprefix("of")))]


def _sum(names: Sequence[str], result: str) -> str:
    """Add in the given order."""
    if len(names) == 1:
        return f"{result} = Identity ({names[0]})"
    partial = [*(f"partial{index}" for index in range(1, len(names) - 1)), result]
    lefts = [names[0], *partial[:-1]]
    return "\n  ".join(
        f"{made} = Add ({left}, {right})" for made, left, right in zip(partial, lefts, names[1:], strict=True)
    )


def _all_reduce(overload: str) -> str:
    names = _names(overload, "x")
    return f"AllReduce ({', '.join(names)}) => (y) {{\n  {_sum(names, 'y')}\n}}"


def _all_gather(overload: str) -> str:
    names = ", ".join(_names(overload, "x"))
    return f"AllGather <axis> ({names}) => (y) {{\n  y = Concat <axis: int = @axis> ({names})\n}}"


def _reduce_scatter(overload: str) -> str:
    names, parts = _names(overload, "x"), ", ".join(_names(overload, "y"))
    return f"""
ReduceScatter <axis, sizes> ({", ".join(names)}) => ({parts}) {{
  {_sum(names, "sum")}
  lengths = Constant <value_ints: ints = @sizes> ()
  {parts} = Split <axis: int = @axis> (sum, lengths)
}}"""


BODIES: dict[str, Callable[[str], str]] = {
    "AllReduce": _all_reduce,
    "AllGather": _all_gather,
    "ReduceScatter": _reduce_scatter,
}
