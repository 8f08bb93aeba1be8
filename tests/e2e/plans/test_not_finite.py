"""NaN behind FP8 activations and an FP8 cache: the sequence it is in ends with an error, the one beside it goes on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from support.engines import NARROW, NARROW_BATCH, forge, small_checkpoint, some_ids

import llmc
from llmc.compiler.targets.simulate.device import SimulatedDevice
from llmc.runtime.engine_file.file import EngineFile
from llmc.runtime.plan.executor import PagedExecutor
from llmc.runtime.sampling.params import SamplingParams
from llmc.runtime.scheduling.executor import Output, ScheduledSequence

GREEDY = SamplingParams()
LONG, SHORT = 70, 30
"""Tokens of the two prompts: together a step large enough for FP8 activations."""

pytestmark = pytest.mark.filterwarnings("ignore:All-NaN slice encountered:RuntimeWarning")


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("nan")
    return llmc.build(
        small_checkpoint(folder / "c", tokenizer=False, num_hidden_layers=1, **NARROW),
        folder / "e.llmc",
        targets=["cpu", "sm_90"],
        max_batch=NARROW_BATCH,
        quantize="fp8",
        activations="fp8",
        kv="fp8",
    )


@contextmanager
def spoiled(engine: Path, position: int) -> Iterator[PagedExecutor]:
    """The engine with NaN as the cosines of a position, so in the q and k of its token alone."""
    with EngineFile.open(engine) as file:
        cosines = np.array(file.tensor("rope.cos"))
    cosines[position] = np.nan
    path = forge(engine, engine.with_name(f"{position}.llmc"), tensors={"rope.cos": cosines})
    executor = PagedExecutor(EngineFile.open(path), "sm_90", SimulatedDevice, max_batch=2)
    try:
        yield executor
    finally:
        executor.close()


def step(executor: PagedExecutor, *step: tuple[tuple[int, ...], int]) -> list[Output]:
    """The outputs of the two sequences, which get tokens from a position on."""
    chosen = [
        ScheduledSequence(
            sequence, tokens, start, (((0, 1), (2,))[sequence],), GREEDY, (LONG, SHORT)[sequence], rows="last"
        )
        for sequence, (tokens, start) in enumerate(step)
    ]
    return list(executor.collect(executor.submit(tuple(chosen))))


def check(outputs: list[Output], position: int) -> None:
    long, short = outputs
    assert long.sampled is None
    assert str(long.error).startswith(
        f"cannot choose the token at position {position}\n  found: logits that are not finite"
    )
    assert short.error is None and short.sampled is not None


@pytest.mark.parametrize("position", [LONG - 1, 40])
def test_nan_of_one_token_ends_its_sequence_only(engine: Path, position: int):
    """In the last token of a prompt NaN comes with its q, elsewhere from the cache; then the cache alone has it."""
    ids = tuple(token % NARROW["vocab_size"] for token in some_ids(LONG + SHORT, 3))
    with spoiled(engine, position) as executor:
        check(step(executor, (ids[:LONG], 0), (ids[LONG:], 0)), LONG)
        check(step(executor, ((5,), LONG), ((6,), SHORT)), LONG + 1)
