"""Steps and results as messages between ranks: a JSON header, and arrays for token ids and logits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from ..parallel.faults import heard, told
from ..sampling.draw import Sampled
from ..sampling.params import SamplingParams
from ..scheduling.executor import Output, ScheduledSequence

Message = tuple[dict[str, Any], list[np.ndarray]]
"""A header and arrays."""
Step = tuple[ScheduledSequence, ...]
_PLAIN = ("sequence", "start", "blocks", "prompt_tokens", "rows", "table")
"""Fields of a scheduled sequence that are JSON as they are."""
_IDS = ("tokens", "cached", "generated")
"""Those that are token ids, which go into one array."""


@dataclass
class StepWriter:
    """Makes messages of steps. The sampling parameters of a sequence are told once, and only if others sample."""

    others_sample: bool
    """Another rank chooses tokens."""
    _told: set[int] = field(default_factory=set)

    def write(self, step: Step) -> Message:
        ids = [token for one in step for name in _IDS for token in getattr(one, name)]
        return {"step": [self._scheduled(one) for one in step]}, [np.array(ids, np.int64)]

    def release(self, sequence: int) -> None:
        self._told.discard(sequence)

    def _scheduled(self, one: ScheduledSequence) -> dict[str, Any]:
        header = {name: getattr(one, name) for name in _PLAIN}
        header["counts"] = [len(getattr(one, name)) for name in _IDS]
        header["sample"] = one.sample is not None
        if self.others_sample and one.sample is not None and one.sequence not in self._told:
            self._told.add(one.sequence)
            header["params"] = {item.name: getattr(one.sample, item.name) for item in fields(one.sample)}
        return header


@dataclass
class StepReader:
    """The inverse of `StepWriter`; a sequence that another rank samples has the default parameters."""

    _params: dict[int, SamplingParams] = field(default_factory=dict)

    def read(self, header: Mapping[str, Any], arrays: Sequence[np.ndarray]) -> Step:
        ids, step = iter(arrays[0].tolist()), []
        for one in header["step"]:
            sequence = one["sequence"]
            if "params" in one:
                given = dict(one["params"])
                given["logit_bias"] = tuple(map(tuple, given["logit_bias"]))
                self._params[sequence] = SamplingParams(**given)
            facts = {name: one[name] for name in _PLAIN}
            facts["blocks"] = tuple(map(tuple, facts["blocks"]))
            for name, count in zip(_IDS, one["counts"], strict=True):
                facts[name] = tuple(next(ids) for _ in range(count))
            sample = self._params.get(sequence, _ANY) if one["sample"] else None
            step.append(ScheduledSequence(**facts, sample=sample))
        return tuple(step)

    def release(self, sequence: int) -> None:
        self._params.pop(sequence, None)


_ANY = SamplingParams()


def write_outputs(outputs: Sequence[Output]) -> Message:
    """The results of a step."""
    headers, numbers, logits = [], list[float](), []
    for one in outputs:
        header: dict[str, Any] = {"logits": one.logits is not None}
        if (sampled := one.sampled) is not None:
            numbers += [] if sampled.logprob is None else [sampled.logprob]
            numbers += [value for _, value in sampled.top]
            header["sampled"] = [sampled.token, sampled.logprob is not None, [token for token, _ in sampled.top]]
        if one.error is not None:
            header["error"] = told(one.error)
        if one.logits is not None:
            logits.append(one.logits)
        headers.append(header)
    return {"outputs": headers}, [np.array(numbers, np.float64), *logits]


def read_outputs(header: Mapping[str, Any], arrays: Sequence[np.ndarray]) -> tuple[Output, ...]:
    """The inverse of `write_outputs`. Numbers are float64 in an array: JSON has no NaN and no infinity."""
    numbers, logits, found = iter(arrays[0].tolist()), iter(arrays[1:]), []
    for one in header["outputs"]:
        sampled = None
        if "sampled" in one:
            token, scored, top = one["sampled"]
            logprob = next(numbers) if scored else None
            sampled = Sampled(token, logprob, tuple((best, next(numbers)) for best in top))
        error = heard(one["error"], "") if "error" in one else None
        found.append(Output(sampled, next(logits) if one["logits"] else None, error))
    return tuple(found)
