"""The inputs of a step: what each is, what an idle one holds, and how those of hundreds of sequences are filled in.

Filling is array operations over all sequences of a step: what depends on a sequence alone is kept by its lane.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import EngineError, nearest
from ..sampling.params import SamplingParams
from .plan import BLOCK_TOKENS, Plan, Tensor

NUMPY: Mapping[str, np.dtype] = {
    name: np.dtype(kind)
    for name, kind in {"f32": "<f4", "i32": "<i4", "i64": "<i8", "u8": "u1", "f16": "<f2", "bf16": "<u2"}.items()
}
"""What holds numbers of a plan on the host."""


@dataclass(frozen=True)
class Input:
    """A dtype, what the first dimension counts (a formula), and what padding holds; wide: a second one, the plan's."""

    dtype: str
    size: str
    idle: float = 0
    wide: bool = False


_OF_SEQUENCE = {
    "temperature": Input("f32", "rows"),
    "top_k": Input("i32", "rows"),
    "top_p": Input("f32", "rows", 1),
    "min_p": Input("f32", "rows"),
    "seed": Input("i64", "rows"),
    "logprobs": Input("i32", "rows"),
    "lanes": Input("i32", "rows", -1),
    "edits": Input("i32", "rows", -1),
}
"""Of a row, as its sequence's parameters say. lanes: where its token is kept; edits: the same where logits change."""
_OF_EDITS = {
    "repetition": Input("f32", "rows", 1),
    "presence": Input("f32", "rows"),
    "frequency": Input("f32", "rows"),
    "bias_ids": Input("i32", "rows", -1, wide=True),
    "biases": Input("f32", "rows", wide=True),
}
"""Of a row whose logits are changed before a token is chosen."""
INPUTS: Mapping[str, Input] = {
    "token_ids": Input("i32", "tokens"),
    "positions": Input("i32", "tokens"),
    "slots": Input("i32", "tokens", -1),
    "marks": Input("i32", "tokens", -1),
    "lengths": Input("i32", "sequences"),
    "tables": Input("i32", "sequences", wide=True),
    "starts": Input("i32", "sequences + 1"),
    "forget": Input("i32", "sequences", -1),
    "rows": Input("i32", "rows"),
    "place": Input("i32", "rows"),
    **_OF_SEQUENCE,
    **_OF_EDITS,
}
"""All inputs of a plan.

token_ids: below zero, the token kept by lane -1 - id. slots: of the cache, -1: none. marks: the lane whose prompt holds
the token. lengths: positions of a sequence after the step. starts: its first token. forget: its lane, if it is new.
rows: the token whose logits are wanted. place: the position of the token that is chosen.
"""


def check_inputs(plan: Plan, what: str) -> None:
    """EngineError unless the plan has these inputs and no others."""
    given = {name: tensor for name, tensor in plan.tensors.items() if tensor.kind == "input"}
    for name, tensor in given.items():
        if name not in INPUTS:
            raise EngineError(f"{what}: input {name!r}", found=f"no such input{nearest(name, INPUTS)}")
        _check_input(name, tensor, what)
    for name in INPUTS:
        if name not in given:
            raise EngineError(f"{what}: an input {name!r}", found="none", fix="build the engine again")
    if given["tables"].shape[1] != str(plan.max_blocks) or given["bias_ids"].shape != given["biases"].shape:
        found = ", ".join(f"{name} [{', '.join(given[name].shape)}]" for name in ("tables", "bias_ids", "biases"))
        raise EngineError(f"{what}: tables of {plan.max_blocks} blocks, and a bias for every biased token", found=found)


def _check_input(name: str, tensor: Tensor, what: str) -> None:
    made = INPUTS[name]
    fits = tensor.dtype == made.dtype and tensor.shape[:1] == (made.size,)
    if not fits or len(tensor.shape) != 1 + made.wide or not all(size.isdecimal() for size in tensor.shape[1:]):
        wanted = f"{made.dtype} [{made.size}{', a number' if made.wide else ''}]"
        raise EngineError(f"{what}: input {name!r}: {wanted}", found=f"{tensor.dtype} [{', '.join(tensor.shape)}]"[:80])


def idle_inputs(plan: Plan, sizes: Mapping[str, int]) -> dict[str, np.ndarray]:
    """Inputs of a step that does nothing: padding tokens of empty sequences, greedy rows that nobody keeps."""
    return {
        name: np.full(plan.tensors[name].dims(sizes), made.idle, NUMPY[made.dtype]) for name, made in INPUTS.items()
    }


@dataclass(slots=True)
class Part:
    """A sequence's share of a step: its lane, the ids of its new tokens from position `start` on, the rows wanted of
    the last ones; sampled: the device chooses a token; prompt: these are its prompt's; new: nothing came before."""

    lane: int
    ids: tuple[int, ...]
    start: int
    rows: int
    sampled: bool
    prompt: bool
    new: bool


class Lanes:
    """Sequences under way by number: their block tables, and how their tokens are chosen."""

    def __init__(self, plan: Plan, count: int) -> None:
        self.max_biases = int(plan.tensors["bias_ids"].shape[1])
        self._free = list(range(count))[::-1]
        self._tables = np.zeros((count, plan.max_blocks), np.int32)
        self._kept = {
            name: np.full((count, *map(int, plan.tensors[name].shape[1:])), made.idle, NUMPY[made.dtype])
            for name, made in {**_OF_SEQUENCE, **_OF_EDITS}.items()
        }

    def take(self, blocks: Sequence[int]) -> int | None:
        """A lane for a sequence with these blocks, if one is free."""
        if not self._free:
            return None
        lane = self._free.pop()
        self._tables[lane] = 0
        self._tables[lane, : len(blocks)] = blocks
        return lane

    def give(self, lane: int) -> None:
        self._free.append(lane)

    def choose_by(self, lane: int, params: SamplingParams) -> None:
        """How tokens of a lane are chosen; it has no more biases than fit."""
        kept = self._kept
        for name, made in {**_OF_SEQUENCE, **_OF_EDITS}.items():
            kept[name][lane] = made.idle
        kept["lanes"][lane] = lane
        kept["temperature"][lane] = 0.0 if params.greedy else params.temperature
        kept["top_k"][lane], kept["top_p"][lane], kept["min_p"][lane] = params.top_k, params.top_p, params.min_p
        kept["seed"][lane] = np.uint64(params.seed or 0).astype(np.int64)
        kept["logprobs"][lane] = params.logprobs
        if params.edits_logits:
            kept["edits"][lane] = lane
            for name in ("repetition", "presence", "frequency"):
                kept[name][lane] = getattr(params, f"{name}_penalty")
            for index, (token, bias) in enumerate(params.logit_bias):
                kept["bias_ids"][lane, index], kept["biases"][lane, index] = token, bias

    def fill(self, arrays: Mapping[str, np.ndarray], parts: Sequence[Part]) -> list[range]:
        """Fill in idle inputs for a step of these parts, and give the rows of each."""
        lanes = np.array([part.lane for part in parts])
        firsts = np.array([part.start for part in parts])
        counts = np.array([len(part.ids) for part in parts])
        ends, stops, sequences = firsts + counts, counts.cumsum(), len(parts)
        total, of = int(stops[-1]), np.repeat(np.arange(sequences), counts)
        positions = np.arange(total) + (ends - stops)[of]
        arrays["token_ids"][:total] = [token for part in parts for token in part.ids]
        arrays["positions"][:total] = positions
        blocks = self._tables[lanes[of], positions // BLOCK_TOKENS]
        arrays["slots"][:total] = blocks * BLOCK_TOKENS + positions % BLOCK_TOKENS
        arrays["marks"][:total] = np.array([part.lane if part.prompt else -1 for part in parts])[of]
        arrays["lengths"][:sequences] = ends
        arrays["tables"][:sequences] = self._tables[lanes]
        arrays["starts"][1 : sequences + 1] = stops
        arrays["starts"][sequences + 1 :] = total
        arrays["forget"][:sequences] = [part.lane if part.new else -1 for part in parts]
        wanted = np.array([part.rows for part in parts])
        last = wanted.cumsum()
        arrays["rows"][: last[-1]] = np.arange(last[-1]) + np.repeat(stops - last, wanted)
        chosen = np.array([part.sampled for part in parts])
        self._fill_rows(arrays, last[chosen] - 1, lanes[chosen], ends[chosen])
        return [range(stop - count, stop) for stop, count in zip(last.tolist(), wanted.tolist(), strict=True)]

    def _fill_rows(self, arrays: Mapping[str, np.ndarray], rows: np.ndarray, lanes: np.ndarray, ends: np.ndarray):
        arrays["place"][rows] = ends
        for name in _OF_SEQUENCE:
            arrays[name][rows] = self._kept[name][lanes]
        if (self._kept["edits"][lanes] >= 0).any():
            for name in _OF_EDITS:
                arrays[name][rows] = self._kept[name][lanes]
