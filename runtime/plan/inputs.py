"""The inputs of a step: what each is, what an idle one holds, and how those of hundreds of sequences are filled in.

Filling is array operations over all sequences of a step: what depends on a sequence alone is kept by its slot.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..dtypes import KERNEL_DTYPES
from ..errors import EngineError, nearest
from ..sampling.params import SamplingParams
from .plan import BLOCK_TOKENS, KVCache, Plan, Tensor


@dataclass(frozen=True)
class Input:
    """A dtype, what the first dimension counts (a formula), and what padding holds; XX."""

    dtype: str
    size: str
    idle: float = 0
    per_plan: bool = False

    def idle_array(self, shape: tuple[int, ...]) -> np.ndarray:
        return np.full(shape, self.idle, KERNEL_DTYPES[self.dtype].numpy)


_OF_SEQUENCE = {
    "temperature": Input("f32", "rows"),
    "top_k": Input("i32", "rows"),
    "top_p": Input("f32", "rows", 1),
    "min_p": Input("f32", "rows"),
    "seed": Input("i64", "rows"),
    "logprobs": Input("i32", "rows"),
    "sample_slots": Input("i32", "rows", -1),
    "penalty_slots": Input("i32", "rows", -1),
}
"""Of a row, as its sequence's parameters say. sample_slots: where its token is
kept; penalty_slots: the same where logits change."""
_OF_EDITS = {
    "repetition_penalty": Input("f32", "rows", 1),
    "presence_penalty": Input("f32", "rows"),
    "frequency_penalty": Input("f32", "rows"),
    "logit_bias_ids": Input("i32", "rows", -1, per_plan=True),
    "logit_bias": Input("f32", "rows", per_plan=True),
}
"""Of a row whose logits are changed before a token is chosen."""
INPUTS: Mapping[str, Input] = {
    "token_ids": Input("i32", "tokens"),
    "positions": Input("i32", "tokens"),
    "slot_mapping": Input("i32", "tokens", -1),
    "prompt_slots": Input("i32", "tokens", -1),
    "seq_lens": Input("i32", "sequences"),
    "block_tables": Input("i32", "sequences", per_plan=True),
    "query_start_loc": Input("i32", "sequences + 1"),
    "reset_slots": Input("i32", "sequences", -1),
    "logits_indices": Input("i32", "rows"),
    "sample_positions": Input("i32", "rows"),
    **_OF_SEQUENCE,
    **_OF_EDITS,
}
"""All inputs of a plan; those of a cache once for every kind of cache.

A slot is a sequence's place in the batch. token_ids: below zero, the token kept by slot -1 - id. slot_mapping: where in
the cache a token's key and value go, -1: nowhere. prompt_slots: the slot whose prompt holds the token. seq_lens:
positions of a sequence after the step. query_start_loc: its first token. reset_slots: its slot, if it is new.
logits_indices: the token whose logits are wanted. sample_positions: the position of the token that is chosen.
"""

_AS_GIVEN = ("top_k", "top_p", "min_p", "logprobs", "repetition_penalty", "presence_penalty", "frequency_penalty")
"""Those that are SamplingParams' fields of the same names."""
_OF_CACHE = ("slot_mapping", "block_tables")
"""Those whose names have the suffix of their kind of cache."""


def inputs_for(caches: Sequence[KVCache]) -> dict[str, Input]:
    """The inputs of a plan with these kinds of cache, by name."""
    suffixes = [cache.suffix for cache in caches]
    return {
        name + suffix: made for name, made in INPUTS.items() for suffix in (suffixes if name in _OF_CACHE else ("",))
    }


def check_inputs(plan: Plan, what: str) -> None:
    """EngineError unless the plan has these inputs and no others."""
    given = {name: tensor for name, tensor in plan.tensors.items() if tensor.kind == "input"}
    wanted = inputs_for(plan.caches)
    for name, tensor in given.items():
        if name not in wanted:
            raise EngineError(f"{what}: input {name!r}", found=f"no such input{nearest(name, wanted)}")
        _check_input(name, wanted[name], tensor, what)
    for name in wanted:
        if name not in given:
            raise EngineError(f"{what}: an input {name!r}", found="none", fix="build the engine again")
    tables = [f"block_tables{cache.suffix}" for cache in plan.caches]
    wide = any(given[name].shape[1] != str(plan.max_blocks) for name in tables)
    if wide or given["logit_bias_ids"].shape != given["logit_bias"].shape:
        found = ", ".join(
            f"{name} [{', '.join(given[name].shape)}]" for name in (*tables, "logit_bias_ids", "logit_bias")
        )
        raise EngineError(f"{what}: tables of {plan.max_blocks} blocks, and a bias for every biased token", found=found)


def _check_input(name: str, made: Input, tensor: Tensor, what: str) -> None:
    fits = tensor.dtype == made.dtype and tensor.shape[:1] == (made.size,)
    if not fits or len(tensor.shape) != 1 + made.per_plan or not all(size.isdecimal() for size in tensor.shape[1:]):
        wanted = f"{made.dtype} [{made.size}{', a number' if made.per_plan else ''}]"
        raise EngineError(f"{what}: input {name!r}: {wanted}", found=f"{tensor.dtype} [{', '.join(tensor.shape)}]"[:80])


def idle_inputs(plan: Plan, sizes: Mapping[str, int]) -> dict[str, np.ndarray]:
    """Inputs of a step that does nothing: padding tokens of empty sequences, greedy rows that nobody keeps."""
    return {name: made.idle_array(plan.tensors[name].dims(sizes)) for name, made in inputs_for(plan.caches).items()}


@dataclass(slots=True)
class PlacedSequence:
    """A scheduled sequence in its slot."""

    slot: int
    ids: tuple[int, ...]
    """Of its new tokens."""
    start: int
    """Position of the first of them."""
    rows: int
    """Rows of logits wanted, those of its last tokens."""
    sampled: bool
    """The device samples a token."""
    prompt: bool
    """The tokens are prompt."""
    new: bool
    """This is the first step of the sequence."""


class Slots:
    """Sequences under way by number: their block tables, and how their tokens are chosen."""

    def __init__(self, plan: Plan, count: int) -> None:
        self.max_biases = int(plan.tensors["logit_bias_ids"].shape[1])
        self._free = list(range(count))[::-1]
        self._tables = {cache.suffix: np.zeros((count, plan.max_blocks), np.int32) for cache in plan.caches}
        self._kept = {
            name: made.idle_array((count, *map(int, plan.tensors[name].shape[1:])))
            for name, made in (_OF_SEQUENCE | _OF_EDITS).items()
        }

    def take(self, blocks: Sequence[Sequence[int]]) -> int | None:
        """A slot for a sequence with these blocks of each kind of cache, if one is free."""
        if not self._free:
            return None
        slot = self._free.pop()
        for tables, own in zip(self._tables.values(), blocks, strict=True):
            tables[slot] = np.resize(own, tables.shape[1])  # a ring; the rest of a table that is none is not read
        return slot

    def give(self, slot: int) -> None:
        self._free.append(slot)

    def set_sampling(self, slot: int, params: SamplingParams) -> None:
        """How tokens of a slot are chosen; it has no more biases than fit."""
        kept = self._kept
        for name, array in kept.items():
            array[slot] = INPUTS[name].idle
        for name in _AS_GIVEN:
            kept[name][slot] = getattr(params, name)
        kept["sample_slots"][slot] = slot
        kept["temperature"][slot] = 0.0 if params.greedy else params.temperature
        kept["seed"][slot] = np.uint64(params.seed or 0).astype(np.int64)
        if params.edits_logits:
            kept["penalty_slots"][slot] = slot
            for index, (token, bias) in enumerate(params.logit_bias):
                kept["logit_bias_ids"][slot, index], kept["logit_bias"][slot, index] = token, bias

    def fill(self, arrays: Mapping[str, np.ndarray], placed: Sequence[PlacedSequence]) -> list[range]:
        """Fill in idle inputs for a step of these sequences, and give the rows of each."""
        slots = np.array([one.slot for one in placed])
        firsts = np.array([one.start for one in placed])
        counts = np.array([len(one.ids) for one in placed])
        ends, stops, sequences = firsts + counts, counts.cumsum(), len(placed)
        total, of = int(stops[-1]), np.repeat(np.arange(sequences), counts)
        positions = np.arange(total) + (ends - stops)[of]
        arrays["token_ids"][:total] = [token for one in placed for token in one.ids]
        arrays["positions"][:total] = positions
        for suffix, tables in self._tables.items():
            blocks = tables[slots[of], positions // BLOCK_TOKENS]
            arrays[f"slot_mapping{suffix}"][:total] = blocks * BLOCK_TOKENS + positions % BLOCK_TOKENS
            arrays[f"block_tables{suffix}"][:sequences] = tables[slots]
        arrays["prompt_slots"][:total] = np.array([one.slot if one.prompt else -1 for one in placed])[of]
        arrays["seq_lens"][:sequences] = ends
        arrays["query_start_loc"][1 : sequences + 1] = stops
        arrays["query_start_loc"][sequences + 1 :] = total
        arrays["reset_slots"][:sequences] = [one.slot if one.new else -1 for one in placed]
        wanted = np.array([one.rows for one in placed])
        last = wanted.cumsum()
        arrays["logits_indices"][: last[-1]] = np.arange(last[-1]) + np.repeat(stops - last, wanted)
        chosen = np.array([one.sampled for one in placed])
        self._fill_rows(arrays, last[chosen] - 1, slots[chosen], ends[chosen])
        return [range(stop - count, stop) for stop, count in zip(last.tolist(), wanted.tolist(), strict=True)]

    def _fill_rows(self, arrays: Mapping[str, np.ndarray], rows: np.ndarray, slots: np.ndarray, ends: np.ndarray):
        arrays["sample_positions"][rows] = ends
        for name in _OF_SEQUENCE:
            arrays[name][rows] = self._kept[name][slots]
        if (self._kept["penalty_slots"][slots] >= 0).any():
            for name in _OF_EDITS:
                arrays[name][rows] = self._kept[name][slots]
