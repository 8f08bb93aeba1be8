"""Messages between ranks: what is read is what was written, for every step and every result, through a real frame."""

from __future__ import annotations

import math
import socket
from collections.abc import Sequence
from dataclasses import fields

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from llmc.runtime.errors import EngineError, LlmcError
from llmc.runtime.parallel.frames import Connection, Frame
from llmc.runtime.ranks.messages import Message, Step, StepReader, StepWriter, read_outputs, write_outputs
from llmc.runtime.sampling.draw import Sampled
from llmc.runtime.sampling.params import SamplingParams
from llmc.runtime.scheduling.executor import Output, ScheduledSequence

tokens = st.integers(0, 2**32)
ids = st.lists(tokens, max_size=5).map(tuple)
params = st.builds(
    SamplingParams,
    temperature=st.floats(0, 5),
    top_k=st.integers(0, 2**31 - 1),
    top_p=st.floats(0, 1),
    min_p=st.floats(0, 1),
    repetition_penalty=st.floats(0.01, 100),
    presence_penalty=st.floats(-2, 2),
    frequency_penalty=st.floats(-2, 2),
    logit_bias=st.lists(st.tuples(tokens, st.floats(-100, 100) | st.integers(-100, 100)), max_size=4).map(tuple),
    seed=st.none() | st.integers(0, 2**64 - 1) | st.just(2**64 - 1),
    logprobs=st.integers(0, 20),
)
scheduled = st.builds(
    ScheduledSequence,
    sequence=st.integers(0, 3),
    tokens=ids,
    start=st.integers(0, 2**40),
    blocks=st.lists(ids, min_size=1, max_size=2).map(tuple),
    sample=st.none() | params,
    prompt_tokens=st.integers(0, 2**40),
    rows=st.sampled_from(["none", "last", "all"]),
    cached=ids,
    table=st.integers(0, 2**40),
    generated=ids,
)
steps = st.lists(scheduled, max_size=4, unique_by=lambda one: one.sequence).map(tuple)
numbers = st.floats(allow_nan=True, allow_infinity=True)
outputs = st.lists(
    st.builds(
        Output,
        sampled=st.none()
        | st.builds(
            Sampled,
            token=tokens,
            logprob=st.none() | numbers,
            top=st.lists(st.tuples(tokens, numbers), max_size=3).map(tuple),
        ),
        logits=st.none() | st.integers(0, 3).map(lambda rows: np.full((rows, 2), np.nan, np.float32)),
        error=st.none() | st.sampled_from([EngineError("cannot go on", found="x"), LlmcError("expected y", fix="z")]),
    ),
    max_size=4,
)


def sent(message: Message) -> Message:
    """A message after its way through a socket."""
    one, other = socket.socketpair()
    with one, other:
        to, from_ = Connection(one, 1), Connection(other, 0)
        from_.reader.trusted = True
        to.send(Frame("x", *message))
        found: list[Frame | None] = []
        while not found:
            to.flush()
            found.extend(from_.reader.fill(other))
    assert found[0] is not None
    return dict(found[0].header), list(found[0].arrays)


@given(st.lists(steps, min_size=1, max_size=3), st.booleans())
def test_steps(all_steps: Sequence[Step], others_sample: bool):
    """Sampling parameters are those that a sequence had first, and only told to ranks that sample."""
    writer, reader, first = StepWriter(others_sample), StepReader(), dict[int, SamplingParams]()
    for step in all_steps:
        found = reader.read(*sent(writer.write(step)))
        assert len(found) == len(step)
        for ours, theirs in zip(found, step, strict=True):
            if theirs.sample is not None:
                first.setdefault(theirs.sequence, theirs.sample)
            wanted = theirs.sample and (first[theirs.sequence] if others_sample else SamplingParams())
            for field in fields(ScheduledSequence):
                assert getattr(ours, field.name) == (wanted if field.name == "sample" else getattr(theirs, field.name))


@given(params, params)
def test_a_number_that_comes_again_has_its_own_parameters(one: SamplingParams, other: SamplingParams):
    writer, reader = StepWriter(True), StepReader()
    for wanted in (one, other):
        step = (ScheduledSequence(0, (1,), 0, ((0,),), wanted, 1),)
        assert reader.read(*sent(writer.write(step)))[0].sample == wanted
        writer.release(0)
        reader.release(0)


@given(outputs)
def test_outputs(results: Sequence[Output]):
    for ours, theirs in zip(read_outputs(*sent(write_outputs(results))), results, strict=True):
        assert (ours.sampled is None) == (theirs.sampled is None)
        if ours.sampled is not None and theirs.sampled is not None:
            assert ours.sampled.token == theirs.sampled.token
            assert (ours.sampled.logprob is None) == (theirs.sampled.logprob is None)
            assert [token for token, _ in ours.sampled.top] == [token for token, _ in theirs.sampled.top]
            for one, other in zip(_numbers(ours.sampled), _numbers(theirs.sampled), strict=True):
                assert one == other or (math.isnan(one) and math.isnan(other))
        assert (ours.logits is None) == (theirs.logits is None)
        if ours.logits is not None and theirs.logits is not None:
            np.testing.assert_array_equal(ours.logits, theirs.logits)
            assert ours.logits.flags.writeable  # the receiver's own
        assert str(ours.error) == str(theirs.error) and type(ours.error) is type(theirs.error)


def _numbers(sampled: Sampled) -> list[float]:
    return [*(() if sampled.logprob is None else (sampled.logprob,)), *(value for _, value in sampled.top)]
