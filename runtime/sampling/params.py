"""Sampling parameters of a request, their ranges, and the checkpoint's defaults."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypedDict

from ..errors import EngineError, RecipeError, shown

MAX_LOGPROBS = 20
MAX_BIASES = 1024
_MAX_BIAS = 100.0
_GREEDY_BELOW = 1e-5
"""Temperatures below this choose the best token: a float32 division by them overflows."""


@dataclass(frozen=True)
class Range:
    """The legal numbers of a parameter, `low` to `high`, and its help text."""

    low: float
    high: float
    help: str
    whole: bool = False

    def check(self, name: str, value: Any) -> None:
        """Check the value of parameter `name`.

        Raises:
            RecipeError: the value is not a number in this range.
        """
        if not (type(value) is int if self.whole else _is_number(value)) or not self.low <= value <= self.high:
            kind, high = ("whole number", str(self.high)) if self.whole else ("number", f"{self.high:g}")
            raise RecipeError(f"expected {name} as a {kind} from {self.low:g} to {high}", found=shown(value))


def _real(default: float, low: float, high: float, help: str) -> Any:
    return field(default=default, metadata={"range": Range(low, high, help)})


def _whole(default: int | None, high: int, help: str) -> Any:
    return field(default=default, metadata={"range": Range(0, high, help, whole=True)})


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the tokens of one request are chosen. The defaults are greedy; top_k 0, top_p 1 and min_p 0 cut nothing.

    Raises:
        RecipeError: a field is out of range; names it.
    """

    temperature: float = _real(0.0, 0.0, 5.0, "0 always takes the likeliest token.")
    """0 takes the best token; of equals the one with the lowest id."""
    top_k: int = _whole(0, 2**31 - 1, "Choose among the K likeliest tokens; 0 is all.")
    top_p: float = _real(1.0, 0.0, 1.0, "Choose among the likeliest tokens that have this probability together.")
    min_p: float = _real(0.0, 0.0, 1.0, "Leave out tokens less likely than this share of the likeliest.")
    repetition_penalty: float = _real(1.0, 0.01, 100.0, "Above 1 makes used tokens less likely.")
    """Divides positive and multiplies negative logits of tokens in prompt or output (Keskar et al., CTRL, 2019)."""
    presence_penalty: float = _real(0.0, -2.0, 2.0, "Subtracted from tokens already generated.")
    """Subtracted from logits of tokens in the output, not the prompt (OpenAI); so is frequency_penalty."""
    frequency_penalty: float = _real(0.0, -2.0, 2.0, "Subtracted for each time a token was generated.")
    logit_bias: tuple[tuple[int, float], ...] = ()
    seed: int | None = _whole(None, 2**64 - 1, "Equal seeds give equal texts.")
    """None: `seeded` draws one."""
    logprobs: int = _whole(0, MAX_LOGPROBS, "With --json: log-probabilities of this many best tokens.")
    """n > 0: the log-probabilities of the chosen token and of the n best, by the model's own distribution (log-softmax
    of the raw logits, before penalties and temperature)."""

    def __post_init__(self) -> None:
        for name, allowed in RANGES.items():
            if name != "seed" or self.seed is not None:
                allowed.check(name, getattr(self, name))
        if len(self.logit_bias) > MAX_BIASES:
            raise RecipeError(
                f"expected logit_bias of at most {MAX_BIASES} tokens", found=f"{len(self.logit_bias)} entries"
            )
        for token, bias in self.logit_bias:
            if type(token) is not int or token < 0:
                raise RecipeError("expected token ids from 0 in logit_bias", found=f"token id {shown(token)}")
            if not _is_number(bias) or abs(bias) > _MAX_BIAS:
                raise RecipeError(
                    f"expected logit_bias of token {token} as a number from -{_MAX_BIAS:g} to {_MAX_BIAS:g}",
                    found=shown(bias),
                )

    @property
    def greedy(self) -> bool:
        """True if the best token is always chosen, without a random number."""
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
        """The same parameters with a seed: the given one, else one drawn from the operating system."""
        if self.seed is not None or self.greedy:
            return self
        return replace(self, seed=int.from_bytes(os.urandom(8)))

    def check_vocab(self, vocab: int) -> None:
        """Check that the model has all biased tokens.

        Raises:
            RecipeError: a biased token is not below `vocab`.
        """
        for token, _ in self.logit_bias:
            if token >= vocab:
                raise RecipeError(f"expected token ids below {vocab} in logit_bias", found=f"token id {shown(token)}")


RANGES: Mapping[str, Range] = {
    one.name: one.metadata["range"] for one in fields(SamplingParams) if "range" in one.metadata
}
"""The parameters that are one number; they are options of a request and of the command line too."""


class SamplingOptions(TypedDict, total=False):
    """Options of a request. An absent or None option has the value of generation_config.json, else the default of
    SamplingParams. With a temperature of 0, seed, top_k, top_p and min_p change nothing: the best token is taken."""

    max_tokens: int | None
    """Most tokens to generate (default 512), reduced to the room in the context."""
    temperature: float | None
    top_k: int | None
    top_p: float | None
    min_p: float | None
    repetition_penalty: float | None
    presence_penalty: float | None
    frequency_penalty: float | None
    logit_bias: Mapping[int, float] | None
    """Token id to the number added to its logit."""
    seed: int | None
    stop: str | Sequence[str] | None
    """Up to 16 strings; the text ends before the first one."""
    logprobs: int | None
    special: bool | None
    """Special tokens spelled in a text prompt become special tokens."""
    ignore_eos: bool | None
    """End-of-sequence tokens do not end the text (for measurements)."""


OF_MODEL = {field.name for field in fields(SamplingParams)} - {"seed", "logprobs", "logit_bias"}
"""Parameters for which a checkpoint can have defaults."""


def defaults_of(generation: Mapping[str, Any]) -> SamplingParams:
    """The parameters of a checkpoint's generation_config.json; without `do_sample: true` they are greedy.

    Null values count as absent, keys that are not about sampling are ignored, numbers are clamped to their range.

    Raises:
        EngineError: a value is not a number.
    """
    given = {name: value for name, value in generation.items() if name in OF_MODEL and value is not None}
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
        found = f"{error.found}; {error.asked}"
        raise EngineError("cannot use the generation defaults of the checkpoint", found=found) from None


def _is_number(value: object) -> bool:
    return type(value) is int or (isinstance(value, float) and math.isfinite(value))  # isfinite of 10**400 fails
