"""The price of a step on the CPU: seconds of every node, from what it reads and computes and measured speeds.

A node takes the longer of its bytes over the memory's rate and its operations over the arithmetic's, and what starting
it costs. Products have no two rates: their seconds per weight are measured for several numbers of tokens, because the
way from one limit to the other is not a corner.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from .facts import TOKENS, CpuFacts, ProductFacts
from .nodes import Attention, Elements, Mixture, Node, Per, Product

NUMBER_BYTES = 4
"""Activations and caches are float32."""


@dataclass(frozen=True)
class Step:
    """One call: `tokens` new tokens of each of `sequences` sequences, whose caches hold `context` positions before."""

    tokens: int
    sequences: int = 1
    context: int = 0
    rows: int | None = None
    """Rows of logits; None: one of each sequence. They are sampled, too."""

    @property
    def wanted(self) -> int:
        return self.sequences if self.rows is None else self.rows

    def count(self, per: Per) -> int:
        """How many times a node computes its numbers in this step."""
        return {"token": self.tokens * self.sequences, "row": self.wanted, "step": 1}[per]


@dataclass(frozen=True)
class NodePrice:
    """What one node takes in a step."""

    node: Node
    bytes: int
    """Of weights, or of caches: what a kernel reads beside activations."""
    operations: int
    seconds: float

    @property
    def block(self) -> str | None:
        """The label of the node's block, where the graph had labels."""
        return self.node.label


@dataclass(frozen=True)
class StepPrice:
    """What a step takes: its nodes in the order of the graph, and the host around them."""

    nodes: tuple[NodePrice, ...]
    host_s: float

    @property
    def seconds(self) -> float:
        return sum(one.seconds for one in self.nodes) + self.host_s

    @property
    def bytes(self) -> int:
        return sum(one.bytes for one in self.nodes)

    @property
    def operations(self) -> int:
        return sum(one.operations for one in self.nodes)


def price_step(nodes: Iterable[Node], step: Step, facts: CpuFacts) -> StepPrice:
    """The price of a step of a graph with these `nodes` (`nodes.nodes_of`).

    Raises:
        KeyError: no product of a node's bits was measured.
    """
    return StepPrice(tuple(price_node(node, step, facts) for node in nodes), host_seconds(nodes, step, facts))


def price_node(node: Node, step: Step, facts: CpuFacts) -> NodePrice:
    """The price of one node; a planner that prices equal layers once multiplies it.

    Raises:
        KeyError: no product of these bits was measured.
    """
    match node:
        case Product() | Mixture():
            return _products(node, step, facts)
        case Attention():
            return _attention(node, step, facts)
        case Elements():
            count = node.width * step.count(node.per)
            return NodePrice(node, 0, count, facts.node_s + count * facts.element_s[node.kind])


def _products(node: Product | Mixture, step: Step, facts: CpuFacts) -> NodePrice:
    """An expert takes what it does with its share of the tokens, times the chance that it has some."""
    if isinstance(node, Mixture):
        parts = [_products(one, step, facts) for one in (node.up, node.down)]
        read, operations, seconds = (
            node.experts * sum(getattr(one, key) for one in parts) for key in ("bytes", "operations", "seconds")
        )
        return NodePrice(node, read, operations, seconds)
    count = step.count(node.per)
    read, tokens = node.read(count), node.tokens(count)
    weight_s = seconds_per_weight(facts.product(node.bits, node.block), tokens / read)
    seconds = (facts.product_s + node.weights * weight_s) * read
    return NodePrice(node, round(node.bytes * read), round(2 * node.weights * tokens), seconds)


def host_seconds(nodes: Iterable[Node], step: Step, facts: CpuFacts) -> float:
    """Seconds of the scheduler, the executor and the choice of tokens around a step.

    The last product makes the logits. A step without wanted rows samples nothing.
    """
    heads = [one.rows for one in nodes if isinstance(one, Product) and one.per == "row"]
    return facts.step_s + step.wanted * (heads[-1] if heads else 0) * facts.logit_s


def seconds_per_weight(facts: ProductFacts, tokens: float) -> float:
    """Seconds for each weight of a product with so many tokens: a line between measured ones, beyond them the last
    one's speed."""
    points = list(zip(TOKENS, facts.weight_s, strict=True))
    for (one, first), (other, second) in pairwise(points):
        if tokens <= other:
            return first + (second - first) * (tokens - one) / (other - one)
    return points[-1][1] * tokens / points[-1][0]


def decode_seconds(nodes: Sequence[Node], facts: CpuFacts, *, context: int, sequences: int = 1) -> float:
    """Seconds of a step that makes one token for each sequence, with so many positions in each cache."""
    return price_step(nodes, Step(1, sequences, context), facts).seconds


def prefill_seconds(nodes: Sequence[Node], facts: CpuFacts, *, tokens: int, chunk: int, context: int = 0) -> float:
    """Seconds to read one prompt of `tokens` tokens in calls of at most `chunk`, after `context` known positions.

    Each call makes one row of logits, which is what the executor asks for, but only the last one's is sampled.
    """
    starts = range(0, tokens, chunk)
    return sum(
        price_step(nodes, Step(min(chunk, tokens - start), 1, context + start, 1), facts).seconds for start in starts
    )


def _attention(node: Attention, step: Step, facts: CpuFacts) -> NodePrice:
    """A new token reads keys and values of all positions before it and its own; a token of many has its share of a
    product of all new tokens with all positions, as the kernel computes what it then masks. Rows of latent attention
    are read anew by each head, as keys and as values: no core's cache holds them (`targets/cpu/latent.py`)."""
    positions = step.context + step.tokens
    seen = positions if node.window is None else min(positions, node.window + step.tokens - 1)
    readers = node.heads if node.values_are_keys else node.kv_heads
    read = 2 * NUMBER_BYTES * readers * node.head_dim * seen * step.sequences
    operations = 4 * node.heads * node.head_dim * seen * step.tokens * step.sequences
    # one token's products are bound by reading; those of many by their operations
    by_operations = operations * facts.attention_operation_s if step.tokens > 1 else 0.0
    start = facts.product_s + node.heads * step.sequences * facts.attention_head_s
    seconds = start + max(read * facts.attention_byte_s, by_operations)
    return NodePrice(node, read, operations, seconds)
