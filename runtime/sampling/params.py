"""How a request chooses its tokens: parameters, their ranges, and the checkpoint's own defaults."""

from __future__ import annotations

import math
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from ..errors import EngineError, RecipeError

MAX_LOGPROBS = 20
MAX_BIASES = 1024
_RANGES: Mapping[str, tuple[float, float]] = {
    "temperature": (0.0, 5.0),
    "top_p": (0.0, 1.0),
    "min_p": (0.0, 1.0),
    "repetition_penalty": (0.01, 100.0),
    "presence_penalty": (-2.0, 2.0),
    "frequency_penalty": (-2.0, 2.0),
}
_COUNTS: Mapping[str, int] = {"top_k": 2**31 - 1, "logprobs": MAX_LOGPROBS, "seed": 2**64 - 1}
_BIAS_LIMIT = 100.0
_GREEDY_BELOW = 1e-5
"""Temperatures below this choose the best token: float32 could not divide by them anyway."""


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

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    seed: int | None = None
    logprobs: int = 0

    def __post_init__(self) -> None:
        for name, (low, high) in _RANGES.items():
            value = getattr(self, name)
            if not _is_number(value) or not low <= value <= high:
                raise RecipeError(f"{name} = {value!r}", found="out of range", fix=f"a number from {low:g} to {high:g}")
        for name, most in _COUNTS.items():
            value = getattr(self, name)
            if name == "seed" and value is None:
                continue
            if type(value) is not int or not 0 <= value <= most:
                raise RecipeError(f"{name} = {value!r}", found="out of range", fix=f"a whole number from 0 to {most}")
        if len(self.logit_bias) > MAX_BIASES:
            raise RecipeError("logit_bias", found=f"{len(self.logit_bias)} entries", fix=f"at most {MAX_BIASES} tokens")
        for token, bias in self.logit_bias:
            if type(token) is not int or token < 0:
                raise RecipeError("logit_bias", found=f"token id {token!r}", fix="token ids from 0")
            if not _is_number(bias) or abs(bias) > _BIAS_LIMIT:
                raise RecipeError(
                    f"logit_bias of token {token}",
                    found=repr(bias),
                    fix=f"a number from -{_BIAS_LIMIT:g} to {_BIAS_LIMIT:g}",
                )

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
        return replace(self, seed=secrets.randbits(64))

    def check_vocab(self, vocab: int) -> None:
        """RecipeError if a biased token is not one of the model's `vocab` tokens."""
        for token, _ in self.logit_bias:
            if token >= vocab:
                raise RecipeError("logit_bias", found=f"token id {token}", fix=f"token ids below {vocab}")


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
    for name, (low, high) in _RANGES.items():
        if _is_number(given.get(name)):
            given[name] = min(max(given[name], low), high)
    try:
        return SamplingParams(**given)
    except RecipeError as error:
        raise EngineError(f"generation defaults: {error.asked}", found=error.found, fix=error.fix) from None


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
