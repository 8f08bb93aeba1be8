"""What `choose` takes and gives of every row: sampling parameters and results."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ......runtime.sampling.params import MAX_LOGPROBS
from ...call import Operand


@dataclass(frozen=True)
class SampledRows:
    """The sampling parameters of every row of logits, all [rows]; see `runtime/sampling/draw.py`."""

    temperature: Operand
    top_k: Operand
    top_p: Operand
    min_p: Operand
    seed: Operand
    sample_positions: Operand
    """The position of the sampled token."""
    penalty_slots: Operand
    """The slot of a row with penalties or biases, else -1."""
    logprobs: Operand
    """The number of log-probabilities, 0 to 20."""

    @staticmethod
    def of(make: Callable[..., Operand]) -> SampledRows:
        """`make` makes an operand of a name, dtype and shape."""
        return SampledRows(**{name: make(name, dtype, "rows") for name, dtype in ROW_DTYPES.items()})


ROW_DTYPES = {
    **{"temperature": "f32", "top_k": "i32", "top_p": "f32", "min_p": "f32", "seed": "i64", "sample_positions": "i32"},
    **{"penalty_slots": "i32", "logprobs": "i32"},
}


@dataclass(frozen=True)
class Chosen:
    """The results of every row; the last three are written for rows with log-probabilities."""

    sampled: Operand
    """The token, i32 [rows]."""
    status: Operand
    """1 if a logit is not finite, else 0, i32 [rows]."""
    top_ids: Operand
    """The ids of the best logits, unordered, i32 [rows, 20]."""
    top_logits: Operand
    """The best logits, in the same order, f32 [rows, 20]."""
    summary: Operand
    """The largest logit, the sum of exp(logit - largest), the token's logit, f32 [rows, 3]."""

    @staticmethod
    def of(make: Callable[..., Operand]) -> Chosen:
        """`make` makes an operand of a name, dtype and shape."""
        return Chosen(
            make("sampled", "i32", "rows"),
            make("status", "i32", "rows"),
            make("top_ids", "i32", "rows", MAX_LOGPROBS),
            make("top_logits", "f32", "rows", MAX_LOGPROBS),
            make("summary", "f32", "rows", 3),
        )
