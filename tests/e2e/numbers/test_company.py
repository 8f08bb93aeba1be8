"""Do other requests change a request's logits on the CPU? docs/architecture.md has a table, and this measures it.

Which of its kernels ONNX Runtime takes depends on the CPU, and the table is that of CPUs with AVX-512 and VNNI.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from support.engines import HAS_VNNI, PicoEngine, small_checkpoint, some_ids
from support.paths import ROOT

import llmc
from llmc.runtime.cpu.executor import CpuExecutor
from llmc.runtime.dtypes import WEIGHT_FORMATS
from llmc.runtime.engine_file.file import EngineFile
from llmc.runtime.scheduling.executor import Lease, ScheduledSequence

FORMATS = ("none", *WEIGHT_FORMATS)
MOST = 8
STEPS = 4
PROMPTS = [some_ids(90 - 7 * index, index) for index in range(MOST)]
FORCED = [some_ids(STEPS, 100 + index) for index in range(MOST)]
WIDE = {
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 512,
}

pytestmark = pytest.mark.skipif(not HAS_VNNI, reason="the table is of CPUs with AVX-512 and VNNI")


class Running:
    """Sequences of one executor, whose tokens are given."""

    def __init__(self, path: Path) -> None:
        self.executor = CpuExecutor(EngineFile.open(path), "cpu", threads=2, max_batch=MOST)
        self._pool = self.executor.pool()
        self._begun: dict[int, tuple[Lease, list[int]]] = {}
        self._last = 0

    def begin(self, prompt: Sequence[int], sizes: Callable[[int], int]) -> tuple[int, np.ndarray]:
        """A sequence and the logits f32 [T, V] of its prompt, computed in steps of `sizes(start)` tokens."""
        lease = self._pool.take(prompt, len(prompt) + 2 * STEPS, reuse=False)
        assert lease is not None
        self._last += 1
        rows: list[np.ndarray] = []
        start = 0
        while start < len(prompt):
            tokens = tuple(prompt[start : start + sizes(start)])
            one = ScheduledSequence(self._last, tokens, start, lease.blocks, None, len(prompt), "all")
            rows += self._step(one)
            start += len(tokens)
        self._begun[self._last] = lease, [*prompt]
        return self._last, np.concatenate(rows)

    def decode(self, given: dict[int, int]) -> dict[int, np.ndarray]:
        """The logits f32 [V] of sequences that run together, after one more token each."""
        step = [
            ScheduledSequence(one, (token,), len(self._begun[one][1]), self._begun[one][0].blocks, None, 1, "last")
            for one, token in given.items()
        ]
        for one, token in given.items():
            self._begun[one][1].append(token)
        return {one: rows[0] for one, rows in zip(given, self._step(*step), strict=True)}

    def end(self) -> None:
        for one, (lease, tokens) in self._begun.items():
            self._pool.give(tokens, lease, len(tokens))
            self.executor.release(one)
        self._begun.clear()

    def _step(self, *step: ScheduledSequence) -> list[np.ndarray]:
        outputs = self.executor.collect(self.executor.submit(step))
        return [output.logits for output in outputs if output.logits is not None]


def together(running: Running, count: int, sizes: Callable[[int], int] = lambda start: 512) -> list[np.ndarray]:
    """Of the first `count` prompts, the logits of prompt and answer f32 [T, V]; the answers are decoded together."""
    begun = [running.begin(prompt, sizes) for prompt in PROMPTS[:count]]
    rows = {one: [prompt] for one, prompt in begun}
    for step in range(STEPS):
        for one, logits in running.decode({one: FORCED[i][step] for i, one in enumerate(rows)}).items():
            rows[one].append(logits[None].copy())
    running.end()
    return [np.concatenate(found) for found in rows.values()]


def largest(found: Sequence[np.ndarray], expected: Sequence[np.ndarray]) -> float:
    """max|a-b| / max|b|; 0 only for equal bits."""
    worst = max(float(np.abs(a - b).max()) for a, b in zip(found, expected, strict=True))
    same = all(a.tobytes() == b.tobytes() for a, b in zip(found, expected, strict=True))
    return 0.0 if same else max(worst, 1e-30) / max(float(np.abs(one).max()) for one in expected)


def measure(path: Path) -> tuple[float, float, float]:
    """How far a request's logits move beside others, with its prompt in other steps, with its answer as a prompt."""
    running = Running(path)
    with closing(running.executor):
        alone: list[np.ndarray] = []
        for index in range(MOST):
            _, prompt = running.begin(PROMPTS[index], lambda start: 512)
            one = running._last
            answer = [running.decode({one: token})[one][None].copy() for token in FORCED[index]]
            running.end()
            alone.append(np.concatenate([prompt, *answer]))
        beside = max(largest(together(running, count), alone[:count]) for count in range(2, MOST + 1))
        cuts = [lambda start, size=size: size for size in (2, 3, 16, 64)]
        cuts += [lambda start, first=first: 512 if start else first for first in (2, 31, len(PROMPTS[0]) - 2)]
        steps = max(largest(together(running, 1, sizes), alone[:1]) for sizes in cuts)
        _, whole = running.begin([*PROMPTS[0], *FORCED[0]], lambda start: 512)
        running.end()
        return beside, steps, largest([whole], alone[:1])


@cache
def stated() -> dict[str, tuple[float, ...]]:
    """The table of the page: a bound for each format and column, 0 for the same bits."""
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    _, _, table = page.partition("**What others change in a request's numbers")
    rows = re.findall(r"^\| ((?:`\S+`(?:, )?)+) \| (.+) \| (.+) \| (.+) \|$", table, re.MULTILINE)
    return {
        name: tuple(0.0 if one == "same bits" else float(one.removeprefix("at most ")) for one in columns)
        for names, *columns in rows
        for name in re.findall(r"`(\S+)`", names)
    }


def test_the_table_has_every_format():
    assert {*stated()} == {*FORMATS}


def check(path: Path, fmt: str) -> None:
    found = measure(path)
    for moved, most in zip(found, stated()[fmt], strict=True):
        assert moved <= most, (fmt, found)
        assert most == 0 or moved > 0, f"{fmt} has the same bits, which the page does not say: {found}"


@pytest.mark.parametrize("fmt", FORMATS)
def test_others_change_what_the_table_says(pico_engine: PicoEngine, fmt: str):
    check(pico_engine(fmt), fmt)


@pytest.mark.soak
@pytest.mark.parametrize("fmt", ["none", "fp8", "int8", "int8-g128"])
def test_others_change_what_the_table_says_in_wide_layers(tmp_path: Path, fmt: str):
    made = small_checkpoint(tmp_path / "c", tokenizer=False, **WIDE)
    check(llmc.build(made, tmp_path / "e.llmc", quantize=fmt), fmt)
