"""The inputs of a step: their dtypes and shapes, their idle values, and how they are filled for hundreds of sequences.

Inputs are filled by array operations over all sequences of a step; a sequence's constants are stored by its slot.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..dtypes import KERNEL_DTYPES
from ..engine_file.rope import LengthRope, table_inputs
from ..engine_file.rope_tables import fill_tables
from ..errors import EngineError, nearest
from ..sampling.params import SamplingParams
from .between import ALONE, RankOf
from .plan import BLOCK_TOKENS, KVCache, Plan, Tensor


@dataclass(frozen=True)
class Input:
    """An input of a step."""

    dtype: str
    size: str
    """Formula of the first dimension."""
    idle: float = 0
    """Value of the padding."""
    per_plan: bool = False
    """True if it has a second dimension, whose size the plan gives."""

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
"""Per row: the sampling parameters of its sequence. `sample_slots` is the slot that stores the sampled token,
`penalty_slots` the same slot if the row's logits are edited, else -1."""
_OF_EDITS = {
    "repetition_penalty": Input("f32", "rows", 1),
    "presence_penalty": Input("f32", "rows"),
    "frequency_penalty": Input("f32", "rows"),
    "logit_bias_ids": Input("i32", "rows", -1, per_plan=True),
    "logit_bias": Input("f32", "rows", per_plan=True),
}
"""Per row whose logits are edited before sampling."""
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
"""All inputs of a plan; inputs of a cache exist once per cache kind. A slot is a sequence's index in the batch.

Per token: `token_ids` (an id below 0 means the token stored in slot -1 - id), `positions` (rows of the rotary tables,
which are the positions in the sequence unless the tables are inputs too), `slot_mapping` (index in the
cache for its key and value, -1: not written), `prompt_slots` (the slot if the token is part of a prompt, else -1).
Per sequence: `seq_lens` (positions after the step), `block_tables`, `query_start_loc` (index of its first token),
`reset_slots` (its slot if the sequence is new, else -1).
Per row: `logits_indices` (the token whose logits are computed), `sample_positions` (position of the sampled token).
"""

ROTARY = Input("f32", "tokens", per_plan=True)
"""Cosines or sines of each token's position, if a rope depends on the sequence's length (`engine_file/rope.py`)."""

_OF_LOGITS = frozenset(("prompt_slots", "reset_slots", "logits_indices", "sample_positions", *_OF_SEQUENCE, *_OF_EDITS))
"""Inputs of ranks that compute logits and sample; `token_ids` is one of theirs and of ranks with the embedding."""
_AS_GIVEN = ("top_k", "top_p", "min_p", "logprobs", "repetition_penalty", "presence_penalty", "frequency_penalty")
"""Inputs that equal the field of SamplingParams with the same name."""
_OF_CACHE = ("slot_mapping", "block_tables")
"""Inputs whose names end with the suffix of their cache kind."""


def inputs_for(
    caches: Sequence[KVCache], rotary: Sequence[int] | None = None, rank: RankOf = ALONE
) -> dict[str, Input]:
    """The inputs of a plan with these cache kinds and rotary tables (`Plan.rotary`), by name."""
    suffixes = [cache.suffix for cache in caches]
    unread = frozenset() if rank.is_last else _OF_LOGITS
    if rank.stage and not rank.is_last:
        unread |= {"token_ids"}
    return {
        name + suffix: made
        for name, made in INPUTS.items()
        if name not in unread
        for suffix in (suffixes if name in _OF_CACHE else ("",))
    } | {name: ROTARY for number in range(len(rotary or ())) for name in table_inputs(number)}


def check_inputs(plan: Plan, what: str) -> None:
    """Check that the plan, called `what` in errors, has exactly the inputs of `inputs_for`.

    Raises:
        EngineError: an input is unknown, missing, or has another dtype or shape.
    """
    given = {name: tensor for name, tensor in plan.tensors.items() if tensor.kind == "input"}
    wanted = inputs_for(plan.caches, plan.rotary, plan.rank)
    for name, tensor in given.items():
        if name not in wanted:
            raise EngineError(f"cannot fill in input {name!r} of {what}", found=f"no such input{nearest(name, wanted)}")
        _check_input(name, wanted[name], tensor, what)
    for name in wanted:
        if name not in given:
            raise EngineError(f"expected an input {name!r} in {what}", found="none", fix="build the engine again")
    tables = [f"block_tables{cache.suffix}" for cache in plan.caches]
    wide = any(given[name].shape[1] != str(plan.max_blocks) for name in tables)
    for number, pairs in enumerate(plan.rotary or ()):
        for name in table_inputs(number):
            if given[name].shape[1] != str(pairs):
                found = f"[{', '.join(given[name].shape)}]"
                raise EngineError(f"expected {pairs} pairs a token in input {name!r} of {what}", found=found)
    if wide or (plan.rank.is_last and given["logit_bias_ids"].shape != given["logit_bias"].shape):
        biases = ("logit_bias_ids", "logit_bias") if plan.rank.is_last else ()
        found = ", ".join(f"{name} [{', '.join(given[name].shape)}]" for name in (*tables, *biases))
        tables_and_biases = f"tables of {plan.max_blocks} blocks, and a bias for every biased token"
        raise EngineError(f"expected {tables_and_biases}, in {what}", found=found)


def _check_input(name: str, made: Input, tensor: Tensor, what: str) -> None:
    fits = tensor.dtype == made.dtype and tensor.shape[:1] == (made.size,)
    if not fits or len(tensor.shape) != 1 + made.per_plan or not all(size.isdecimal() for size in tensor.shape[1:]):
        wanted = f"{made.dtype} [{made.size}{', a number' if made.per_plan else ''}]"
        found = f"{tensor.dtype} [{', '.join(tensor.shape)}]"[:80]
        raise EngineError(f"expected input {name!r} as {wanted} in {what}", found=found)


def idle_inputs(plan: Plan, sizes: Mapping[str, int]) -> dict[str, np.ndarray]:
    """Inputs of a step without effect: padding tokens of empty sequences, greedy rows whose tokens are not stored."""
    wanted = inputs_for(plan.caches, plan.rotary, plan.rank)
    return {name: made.idle_array(plan.tensors[name].dims(sizes)) for name, made in wanted.items()}


@dataclass(slots=True)
class PlacedSequence:
    """A scheduled sequence in its slot."""

    slot: int
    ids: tuple[int, ...]
    """Ids of its new tokens."""
    start: int
    """Position of the first new token."""
    rows: int
    """Number of its last tokens whose logits are computed."""
    sampled: bool
    """True if the device samples a token."""
    prompt: bool
    """True if the tokens are part of the prompt."""
    new: bool
    """True in the first step of the sequence."""
    table: int = 0
    """The number of its rotary tables."""


class Slots:
    """Block tables and sampling parameters of running sequences, by slot."""

    def __init__(self, plan: Plan, count: int, ropes: Sequence[LengthRope] = ()) -> None:
        self._ropes = ropes
        self._samples = plan.rank.is_last
        self.max_biases = int(plan.tensors["logit_bias_ids"].shape[1]) if self._samples else 0
        self._free = list(range(count))[::-1]
        self._tables = {cache.suffix: np.zeros((count, plan.max_blocks), np.int32) for cache in plan.caches}
        self._kept = {
            name: made.idle_array((count, *map(int, plan.tensors[name].shape[1:])))
            for name, made in (_OF_SEQUENCE | _OF_EDITS).items()
            if self._samples
        }

    def take(self, blocks: Sequence[Sequence[int]]) -> int | None:
        """Assign a free slot to a sequence with these blocks per cache kind; None if no slot is free."""
        if not self._free:
            return None
        slot = self._free.pop()
        for tables, own in zip(self._tables.values(), blocks, strict=True):
            tables[slot] = np.resize(own, tables.shape[1])  # a window's table is a ring; otherwise the rest is not read
        return slot

    def give(self, slot: int) -> None:
        self._free.append(slot)

    def set_sampling(self, slot: int, params: SamplingParams) -> None:
        """Store the sampling parameters of a slot; the caller ensures at most `max_biases` biases."""
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
        """Write a step of these sequences into idle inputs; returns each sequence's rows of logits."""
        slots = np.array([one.slot for one in placed])
        firsts = np.array([one.start for one in placed])
        counts = np.array([len(one.ids) for one in placed])
        ends, stops, sequences = firsts + counts, counts.cumsum(), len(placed)
        total, of = int(stops[-1]), np.repeat(np.arange(sequences), counts)
        positions = np.arange(total) + (ends - stops)[of]
        if "token_ids" in arrays:
            arrays["token_ids"][:total] = [token for one in placed for token in one.ids]
        arrays["positions"][:total] = np.arange(total) if self._ropes else positions
        if self._ropes:
            names = map(table_inputs, range(len(self._ropes)))
            pairs = [(arrays[cos], arrays[sin]) for cos, sin in names]
            fill_tables(self._ropes, pairs, np.array([one.table for one in placed])[of], positions)
        for suffix, tables in self._tables.items():
            blocks = tables[slots[of], positions // BLOCK_TOKENS]
            arrays[f"slot_mapping{suffix}"][:total] = blocks * BLOCK_TOKENS + positions % BLOCK_TOKENS
            arrays[f"block_tables{suffix}"][:sequences] = tables[slots]
        arrays["seq_lens"][:sequences] = ends
        arrays["query_start_loc"][1 : sequences + 1] = stops
        arrays["query_start_loc"][sequences + 1 :] = total
        wanted = np.array([one.rows for one in placed])
        last = wanted.cumsum()
        rows_of = [range(stop - count, stop) for stop, count in zip(last.tolist(), wanted.tolist(), strict=True)]
        if not self._samples:
            return rows_of
        arrays["prompt_slots"][:total] = np.array([one.slot if one.prompt else -1 for one in placed])[of]
        arrays["reset_slots"][:sequences] = [one.slot if one.new else -1 for one in placed]
        arrays["logits_indices"][: last[-1]] = np.arange(last[-1]) + np.repeat(stops - last, wanted)
        chosen = np.array([one.sampled for one in placed])
        self._fill_rows(arrays, last[chosen] - 1, slots[chosen], ends[chosen])
        return rows_of

    def _fill_rows(self, arrays: Mapping[str, np.ndarray], rows: np.ndarray, slots: np.ndarray, ends: np.ndarray):
        arrays["sample_positions"][rows] = ends
        for name in _OF_SEQUENCE:
            arrays[name][rows] = self._kept[name][slots]
        if (self._kept["penalty_slots"][slots] >= 0).any():
            for name in _OF_EDITS:
                arrays[name][rows] = self._kept[name][slots]
