"""How a request chooses its tokens: parameters, their ranges, and the checkpoint's own defaults."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypedDict

from ..errors import EngineError, RecipeError

MAX_LOGPROBS = 20
MAX_BIASES = 1024
_MAX_BIAS = 100.0
_GREEDY_BELOW = 1e-5
"""Temperatures below this choose the best token: float32 could not divide by them anyway."""


@dataclass(frozen=True)
class Range:
    """The numbers, or whole numbers, from `low` to `high` that a parameter may be, and its help for people."""

    low: float
    high: float
    help: str
    whole: bool = False

    def check(self, name: str, value: Any) -> None:
        """RecipeError unless the value is one of them."""
        if not (type(value) is int if self.whole else _is_number(value)) or not self.low <= value <= self.high:
            kind, high = ("whole number", str(self.high)) if self.whole else ("number", f"{self.high:g}")
            raise RecipeError(f"{name} = {value!r}", found="out of range", fix=f"a {kind} from {self.low:g} to {high}")


def _real(default: float, low: float, high: float, help: str) -> Any:
    return field(default=default, metadata={"range": Range(low, high, help)})


def _whole(default: int | None, high: int, help: str) -> Any:
    return field(default=default, metadata={"range": Range(0, high, help, whole=True)})


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the tokens of one request are chosen; the defaults are greedy. RecipeError names the field that is out of
    range.

    temperature 0 takes the best token (lowest id of equals). top_k 0, top_p 1 and min_p 0 cut nothing.
    repetition_penalty divides positive and multiplies negative logits of tokens seen in prompt or output (Keskar et
    al., CTRL, 2019); presence_penalty and frequency_penalty subtract from tokens of the output only (OpenAI). logprobs
    n > 0 gives the chosen token's log-probability and the n best, of the model's own distribution (log-softmax of the
    raw logits, before penalties and temperature). seed None draws one (see `seeded`).
    """

    temperature: float = _real(0.0, 0.0, 5.0, "0 always takes the likeliest token.")
    top_k: int = _whole(0, 2**31 - 1, "Choose among the K likeliest tokens; 0 is all.")
    top_p: float = _real(1.0, 0.0, 1.0, "Choose among the likeliest tokens that have this probability together.")
    min_p: float = _real(0.0, 0.0, 1.0, "Leave out tokens less likely than this share of the likeliest.")
    repetition_penalty: float = _real(1.0, 0.01, 100.0, "Above 1 makes used tokens less likely.")
    presence_penalty: float = _real(0.0, -2.0, 2.0, "Subtracted from tokens already generated.")
    frequency_penalty: float = _real(0.0, -2.0, 2.0, "Subtracted for each time a token was generated.")
    logit_bias: tuple[tuple[int, float], ...] = ()
    seed: int | None = _whole(None, 2**64 - 1, "Equal seeds give equal texts.")
    logprobs: int = _whole(0, MAX_LOGPROBS, "With --json: log-probabilities of this many best tokens.")

    def __post_init__(self) -> None:
        for name, allowed in RANGES.items():
            if name != "seed" or self.seed is not None:
                allowed.check(name, getattr(self, name))
        if len(self.logit_bias) > MAX_BIASES:
            raise RecipeError("logit_bias", found=f"{len(self.logit_bias)} entries", fix=f"at most {MAX_BIASES} tokens")
        for token, bias in self.logit_bias:
            if type(token) is not int or token < 0:
                raise RecipeError("logit_bias", found=f"token id {token!r}", fix="token ids from 0")
            if not _is_number(bias) or abs(bias) > _MAX_BIAS:
                fix = f"a number from -{_MAX_BIAS:g} to {_MAX_BIAS:g}"
                raise RecipeError(f"logit_bias of token {token}", found=repr(bias), fix=fix)

    @property
    def greedy(self) -> bool:
        """True if no random number is used."""
        return self.temperature < _GREEDY_BELOW

    @property
    def edits_logits(self) -> bool:
        """True if penalties or biases change the logits before a token is chosen."""
        return bool(
            self.logit_bias
            or self.repetition_penalty != 1.0
            or self.presence_penalty != 0.0
            or self.frequency_penalty != 0.0
        )

    def seeded(self) -> SamplingParams:
        """The same parameters with a seed: the given one, else one of the operating system's."""
        if self.seed is not None or self.greedy:
            return self
        return replace(self, seed=int.from_bytes(os.urandom(8)))

    def check_vocab(self, vocab: int) -> None:
        """RecipeError if a biased token is not one of the model's `vocab` tokens."""
        for token, _ in self.logit_bias:
            if token >= vocab:
                raise RecipeError("logit_bias", found=f"token id {token}", fix=f"token ids below {vocab}")


RANGES: Mapping[str, Range] = {
    one.name: one.metadata["range"] for one in fields(SamplingParams) if "range" in one.metadata
}
"""The parameters that are one number, which are also options of a request and of the command line."""


class SamplingOptions(TypedDict, total=False):
    """How to generate. What is absent or None is the checkpoint's generation_config, else greedy; see SamplingParams.

    max_tokens: most tokens to generate (default 512), cut to what the context holds. stop: up to 16 strings that end
    the text and are not in it. logit_bias: token id -> number added to its logit. special: special tokens spelled in
    a text prompt count as such. ignore_eos: end-of-sequence tokens do not end the text (for measurements).
    """

    max_tokens: int | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    min_p: float | None
    repetition_penalty: float | None
    presence_penalty: float | None
    frequency_penalty: float | None
    logit_bias: Mapping[int, float] | None
    seed: int | None
    stop: str | Sequence[str] | None
    logprobs: int | None
    special: bool | None
    ignore_eos: bool | None


def defaults_of(generation: Mapping[str, Any]) -> SamplingParams:
    """What a checkpoint's generation_config.json asks for; without `do_sample: true` that is greedy.

    Null values count as absent, keys that are not about sampling are ignored, numbers out of range are cut to it.
    EngineError if a value is no number.
    """
    known = {field.name for field in fields(SamplingParams)} - {"seed", "logprobs", "logit_bias"}
    given = {name: value for name, value in generation.items() if name in known and value is not None}
    if generation.get("do_sample"):
        given = {"temperature": 1.0, **given}
    else:
        given = {name: value for name, value in given.items() if name.endswith("_penalty")}
    for name, allowed in RANGES.items():
        if not allowed.whole and _is_number(given.get(name)):
            given[name] = min(max(given[name], allowed.low), allowed.high)
    try:
        return SamplingParams(**given)
    except RecipeError as error:
        raise EngineError(f"generation defaults: {error.asked}", found=error.found, fix=error.fix) from None


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
