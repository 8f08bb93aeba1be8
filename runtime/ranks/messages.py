"""Steps and results as messages between ranks: a JSON header, and arrays for token ids and logits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from ..errors import LlmcError
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


@dataclass
class StepWriter:
    """Makes messages of steps. The sampling parameters of a sequence are told once, and only if others sample."""

    others_sample: bool
    _told: set[int] = field(default_factory=set)

    def write(self, step: Step) -> Message:
        return {"step": [self._scheduled(one) for one in step]}, [_ids(step)]

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


def _ids(step: Step) -> np.ndarray:
    return np.array([token for one in step for name in _IDS for token in getattr(one, name)], np.int64)


def write_outputs(outputs: Sequence[Output]) -> Message:
    """The results of a step."""
    told_, arrays = [], []
    for one in outputs:
        header: dict[str, Any] = {"logits": one.logits is not None}
        if one.sampled is not None:
            header |= {"token": one.sampled.token, "logprob": one.sampled.logprob, "top": one.sampled.top}
        if one.error is not None:
            header["error"] = told(one.error)
        if one.logits is not None:
            arrays.append(one.logits)
        told_.append(header)
    return {"outputs": told_}, arrays


def read_outputs(header: Mapping[str, Any], arrays: Sequence[np.ndarray]) -> tuple[Output, ...]:
    """The inverse of `write_outputs`; the logits are the receiver's own."""
    rest, found = iter(arrays), []
    for one in header["outputs"]:
        sampled = None
        if "token" in one:
            sampled = Sampled(one["token"], one["logprob"], tuple((token, value) for token, value in one["top"]))
        error: LlmcError | None = heard(one["error"], "") if "error" in one else None
        found.append(Output(sampled, np.array(next(rest)) if one["logits"] else None, error))
    return tuple(found)
