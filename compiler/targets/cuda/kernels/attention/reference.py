"""Paged attention in float32 torch, and random caches for it: the reference of the attention kernels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from ......quantize.activations import quantize_activations
from ...call import Case, KernelCall, Operand
from ..quantize_fp4 import narrow

PAGE = 64


ORDER = 8
"""See `linear/parts/fused.py`."""


@dataclass(frozen=True)
class AttentionOptions:
    """The parameters of an attention case: see `flash_prefill.Heads`."""

    heads: int
    kv_heads: int
    head_dim: int
    window: int = 0
    softcap: float = 0.0
    sinks: bool = False
    cache: str = "bf16"
    """The cache's dtype: "bf16", or "u8" for E4M3."""
    ordered: bool = False
    """The result lies in ORDER, as an 8-bit activation of a 4-bit weight does."""
    size: float = 1.0
    """About how large queries are, a power of two; scores do not depend on it."""

    @property
    def scale(self) -> float:
        return self.head_dim**-0.5 / self.size

    @property
    def name(self) -> str:
        extra = {"window": self.window, "softcap": self.softcap, "sinks": self.sinks, "fp8": self.cache == "u8"}
        extra["ordered"] = self.ordered
        extra |= {"large": self.size > 1, "small": self.size < 1}
        return "-".join([f"{self.heads}-{self.kv_heads}x{self.head_dim}", *(name for name, on in extra.items() if on)])

    @property
    def order(self) -> int:
        return ORDER if self.ordered else 0


def in_order(result: torch.Tensor) -> torch.Tensor:
    """The columns of a result [tokens, N] in ORDER; 128 divides N."""
    parts = result.reshape(len(result), -1, 4, 4, 2, 4)
    return parts.permute(0, 1, 3, 5, 2, 4).reshape(result.shape)


@dataclass(frozen=True)
class Paged:
    """Sequences of `seq_lens` positions in scattered blocks of a cache; the last `new_tokens` of each are queries."""

    options: AttentionOptions
    seq_lens: tuple[int, ...]
    new_tokens: tuple[int, ...]
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    expected: torch.Tensor = field(default_factory=lambda: torch.empty(0))

    @property
    def max_blocks(self) -> int:
        return self.tensors["block_tables"].shape[1]

    def operands(self, *names: str) -> tuple[Operand, ...]:
        o, blocks = self.options, self.tensors["key"].shape[0]
        shapes: dict[str, tuple[str, tuple[int | str, ...]]] = {
            "q": ("bf16", ("tokens", o.heads * o.head_dim)),
            "key": (o.cache, (blocks, o.kv_heads, PAGE, o.head_dim)),
            "value": (o.cache, (blocks, o.kv_heads, PAGE, o.head_dim)),
            "block_tables": ("i32", ("sequences", self.max_blocks)),
            "query_start_loc": ("i32", ("sequences + 1",)),
            "seq_lens": ("i32", ("sequences",)),
            "out": ("bf16", ("tokens", o.heads * o.head_dim)),
            "sinks": ("f32", (o.heads,)),
        }
        return tuple(Operand(name, *shapes[name]) for name in names)


def paged(options: AttentionOptions, seq_lens: tuple[int, ...], new_tokens: tuple[int, ...], seed: int = 0) -> Paged:
    """Random tensors and the expected attention output. A length of 0 is padding, whose output is zero."""
    random = torch.Generator().manual_seed(seed)
    counts = [-(-length // PAGE) for length in seq_lens]
    order = torch.randperm(sum(counts) + 2, generator=random).tolist()
    shape = (sum(counts) + 2, options.kv_heads, PAGE, options.head_dim)
    stored = torch.bfloat16 if options.cache == "bf16" else torch.float8_e4m3fn
    key, value = (torch.randn(shape, generator=random).to(stored).to(torch.bfloat16) for _ in range(2))
    q = (
        torch.randn(sum(new_tokens), options.heads * options.head_dim, generator=random).to(torch.bfloat16)
        * options.size
    )
    sinks = torch.randn(options.heads, generator=random)
    block_tables = torch.full((len(seq_lens), max(*counts, 1) + 1), 10**6, dtype=torch.int32)
    used = torch.zeros(shape[0], PAGE, dtype=torch.bool)
    rows, at = [], 0
    for index, (length, count, new) in enumerate(zip(seq_lens, counts, new_tokens, strict=True)):
        blocks = [order.pop() for _ in range(count)]
        block_tables[index, :count] = torch.tensor(blocks, dtype=torch.int32)
        for position in range(length):
            used[blocks[position // PAGE], position % PAGE] = True
        keys, values = (
            cache[blocks].transpose(0, 1).flatten(1, 2)[:, :length].float() if count else cache.new_zeros(0)
            for cache in (key, value)
        )
        queries = q[at : at + new].float().reshape(new, options.heads, options.head_dim)
        rows.append(_attend(queries, keys, values, options, sinks) if length else torch.zeros(new, q.shape[1]))
        at += new
    for cache in (key, value):  # positions that no sequence has written must not matter
        cache.masked_fill_(~used[:, None, :, None], float("nan"))
    query_start_loc = torch.tensor([0, *torch.tensor(new_tokens).cumsum(0).tolist()], dtype=torch.int32)
    tensors = {
        "q": q,
        "key": key if options.cache == "bf16" else key.to(stored).view(torch.uint8),
        "value": value if options.cache == "bf16" else value.to(stored).view(torch.uint8),
        "block_tables": block_tables,
        "seq_lens": torch.tensor(seq_lens, dtype=torch.int32),
        "query_start_loc": query_start_loc,
        "sinks": sinks,
    }
    return Paged(options, seq_lens, new_tokens, tensors, torch.cat(rows))


def _attend(
    q: torch.Tensor, key: torch.Tensor, value: torch.Tensor, options: AttentionOptions, sinks: torch.Tensor
) -> torch.Tensor:
    """q [T, A, D], key and value [K, L, D] -> [T, A * D]; the queries are the last T positions."""
    tokens, heads, _ = q.shape
    length = key.shape[1]
    group = heads // key.shape[0]
    key, value = key.repeat_interleave(group, 0), value.repeat_interleave(group, 0)
    scores = torch.einsum("tad,ald->atl", q, key) * options.scale
    if options.softcap:
        scores = options.softcap * (scores / options.softcap).tanh()
    position = torch.arange(length - tokens, length)[:, None]
    other = torch.arange(length)[None]
    seen = other <= position
    if options.window:
        seen &= position - other < options.window
    scores = scores.masked_fill(~seen, float("-inf"))
    if options.sinks:
        scores = torch.cat([scores, sinks[:, None, None].expand(heads, tokens, 1)], dim=-1)
    weights = scores.softmax(-1)[..., :length]
    return torch.einsum("atl,ald->tad", weights, value).reshape(tokens, -1)


def fp4_case(build: Callable[..., KernelCall], format: str) -> Case:
    """Sequences of one position, whose attention is their value: so codes do not depend on how weights are rounded."""
    options = AttentionOptions(6, 2, 96, cache="u8")
    made, width = paged(options, (1, 1, 1), (1, 1, 1), seed=5), options.heads * options.head_dim
    out, scales = narrow(width, format)
    given = made.operands("q", "key", "value", "block_tables", "query_start_loc", "seq_lens")
    shape = {name: getattr(options, name) for name in ("heads", "kv_heads", "head_dim", "scale")}
    call = build(*given, out, sm=100, scales=scales, **shape)
    inputs = {one.name: made.tensors[one.name] for one in given}
    codes, stored = quantize_activations(made.expected, format)
    sizes, expected = {"tokens": 3, "sequences": 3}, {"codes": codes, "scales": stored}
    return Case(f"{options.name}-{format}", call, inputs, sizes, expected)
