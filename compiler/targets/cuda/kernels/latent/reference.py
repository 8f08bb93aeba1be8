"""Latent attention in float32 torch, and random queries, weights and paged rows for it: what its kernels must give."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, field

import torch

from .shape import PAGE, LatentShape

EPSILON, POSITIONS, BLOCKS = 1e-6, 80, 3


@dataclass(frozen=True)
class LatentOptions:
    """The parameters of a case."""

    shape: LatentShape
    cache: str = "bf16"
    """The dtype of the rows: "bf16", or "u8" for E4M3."""

    @property
    def scale(self) -> float:
        return self.shape.head**-0.5

    @property
    def name(self) -> str:
        s = self.shape
        return f"{s.heads}x{s.nope}+{s.rope}-{s.rank}-{s.value}{'-fp8' if self.cache == 'u8' else ''}"


def bits(rows: torch.Tensor, stored: str) -> torch.Tensor:
    """Rows as a cache in dtype `stored` holds them."""
    return rows.to(torch.bfloat16) if stored == "bf16" else rows.to(torch.float8_e4m3fn).view(torch.uint8)


def numbers(rows: torch.Tensor) -> torch.Tensor:
    """f32 numbers of stored rows."""
    return (rows.view(torch.float8_e4m3fn) if rows.dtype == torch.uint8 else rows).float()


def new_rows(
    random: torch.Generator, options: LatentOptions, has: Collection[str]
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], dict[str, int]]:
    """(inputs, what is written, sizes) of `latent_rows`.

    `has`: halves, pairs of rope are not neighbours; tempered, queries have factors; merged, q and x are columns of
    wider rows.
    """
    shape, slots = options.shape, torch.tensor([2 * PAGE + 5, 0, PAGE - 1, -1, PAGE + 1], dtype=torch.int32)
    tokens, extra = len(slots), 24 if "merged" in has else 0
    q = torch.randn(tokens, shape.heads * shape.head + extra, generator=random).to(torch.bfloat16)
    x = torch.randn(tokens, extra + shape.row, generator=random).to(torch.bfloat16)
    norm = torch.randn(shape.rank, generator=random).to(torch.bfloat16)
    positions = torch.tensor([0, 3, 70, 7, 1], dtype=torch.int32)
    angle = torch.rand(POSITIONS, shape.rope // 2, generator=random) * 6
    factors = torch.rand(POSITIONS, 1, generator=random) + 0.5 if "tempered" in has else torch.ones(POSITIONS, 1)
    inputs = {"q": q, "x": x, "norm": norm, "positions": positions, "slot_mapping": slots, "factors": factors}
    inputs |= {
        "cos": angle.cos(),
        "sin": angle.sin(),
        "rows": bits(torch.zeros(BLOCKS, 1, PAGE, shape.row), options.cache),
    }
    here = angle[positions.long()]
    heads = q[:, : shape.heads * shape.head].float().reshape(tokens, shape.heads, shape.head)
    query = torch.full((tokens, shape.heads, shape.row), float("nan"))
    turned = _turned(heads[..., shape.nope :], here[:, None], "halves" not in has)
    query[..., shape.rank :] = turned * factors[positions.long()][:, None]
    latent, key = x[:, extra:].float().split([shape.rank, shape.rope], dim=1)
    row = [torch.nn.functional.rms_norm(latent, (shape.rank,), norm.float(), EPSILON)]
    row.append(_turned(key, here, "halves" not in has))
    cache = torch.zeros(BLOCKS, 1, PAGE, shape.row)
    for slot, one in zip(slots.tolist(), torch.cat(row, dim=1), strict=True):
        if slot >= 0:
            cache[slot // PAGE, 0, slot % PAGE] = one
    expected = {"query": query, "rows": cache if options.cache == "bf16" else bits(cache, options.cache)}
    return inputs, expected, {"tokens": tokens}


def _turned(x: torch.Tensor, angle: torch.Tensor, interleaved: bool) -> torch.Tensor:
    """x [..., R] turned by angle [..., R / 2]."""
    pairs = x.unflatten(-1, (-1, 2)) if interleaved else x.unflatten(-1, (2, -1)).transpose(-1, -2)
    a, b = pairs.unbind(-1)
    made = torch.stack([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], dim=-1)
    return made.flatten(-2) if interleaved else made.transpose(-1, -2).flatten(-2)


@dataclass(frozen=True)
class PagedRows:
    """Sequences of `seq_lens` positions in scattered blocks of rows; the last `new_tokens` of each are queries."""

    options: LatentOptions
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    """query, rows, block_tables, query_start_loc, seq_lens."""
    mixed: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    """f32 [tokens, A, L]: the rows' latents, mixed."""

    def parts(self, splits: int) -> dict[str, torch.Tensor]:
        """mixed, and with more than one split lse, of tokens that are alone in their sequences: of each split."""
        if splits == 1:
            return {"mixed": self.mixed}
        shape, rows = self.options.shape, numbers(self.tensors["rows"])
        lead = (len(self.tensors["seq_lens"]), shape.heads, splits)
        mixed, lse = torch.zeros(*lead, shape.rank), torch.full(lead, -1e30)
        for index, length in enumerate(self.tensors["seq_lens"].tolist()):
            pages = -(-length // PAGE)
            seen = rows[self.tensors["block_tables"][index, :pages].long()].reshape(-1, shape.row)[:length]
            scores = self.tensors["query"][index].float() @ seen.T * self.options.scale
            share = -(-pages // splits) * PAGE
            for split in range(splits if length else 0):
                part = slice(split * share, min((split + 1) * share, length))
                if part.start < length:
                    mixed[index, :, split] = scores[:, part].softmax(-1) @ seen[part, : shape.rank]
                    lse[index, :, split] = scores[:, part].logsumexp(-1) / math.log(2.0)
        empty = lse == -1e30
        # Beside -1e30 no error of another number would show.
        return {"mixed": mixed, "lse": lse.masked_fill(~empty, float("nan")) if empty.any() else lse}


def paged_rows(
    options: LatentOptions, seq_lens: tuple[int, ...], new_tokens: tuple[int, ...], seed: int = 0
) -> PagedRows:
    """Random tensors and what attention gives. A length of 0 is padding, which gives zeros."""
    random, shape = torch.Generator().manual_seed(seed), options.shape
    counts = [-(-length // PAGE) for length in seq_lens]
    order = torch.randperm(sum(counts) + 2, generator=random).tolist()
    stored = torch.bfloat16 if options.cache == "bf16" else torch.float8_e4m3fn
    rows = torch.randn(sum(counts) + 2, 1, PAGE, shape.row, generator=random).to(stored).float()
    query = torch.randn(sum(new_tokens), shape.heads, shape.row, generator=random).to(torch.bfloat16)
    block_tables = torch.full((len(seq_lens), max(*counts, 1) + 1), 10**6, dtype=torch.int32)
    used, mixed, at = torch.zeros(len(rows), 1, PAGE, 1, dtype=torch.bool), [], 0
    for index, (length, count, new) in enumerate(zip(seq_lens, counts, new_tokens, strict=True)):
        blocks = [order.pop() for _ in range(count)]
        block_tables[index, :count] = torch.tensor(blocks, dtype=torch.int32)
        for position in range(length):
            used[blocks[position // PAGE], 0, position % PAGE] = True
        seen = rows[blocks].reshape(-1, shape.row)[:length]
        scores = torch.einsum("tar,lr->atl", query[at : at + new].float(), seen) * options.scale
        hidden = torch.arange(length)[None] > torch.arange(length - new, length)[:, None]
        weights = scores.masked_fill(hidden, float("-inf")).softmax(-1)
        some = torch.einsum("atl,lr->tar", weights, seen[:, : shape.rank])
        mixed.append(some if length else torch.zeros(new, shape.heads, shape.rank))
        at += new
    rows = rows.masked_fill(~used, float("nan"))  # positions that no sequence has written must not matter
    starts = [0, *torch.tensor(new_tokens).cumsum(0).tolist()]
    tensors = {
        "query": query,
        "rows": bits(rows, options.cache),
        "block_tables": block_tables,
        "query_start_loc": torch.tensor(starts, dtype=torch.int32),
        "seq_lens": torch.tensor(seq_lens, dtype=torch.int32),
    }
    return PagedRows(options, tensors, torch.cat(mixed))
