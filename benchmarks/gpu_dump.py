"""Records an engine's steps in the interpreter, launch by launch, to compare a GPU with them (bringup/dump.py).

A launch's changes are the numbers of the step's buffers that differ after it, so padding rows and leftovers of another
buffer in the arena do not count.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np
import torch
from bringup import dump
from bringup.agree import plan_digest
from bringup.dump import Recorded, RecordedLaunch, RecordedStep
from gpu_tokens import traces

from llmc.compiler.targets.simulate.device import SimulatedDevice
from llmc.compiler.targets.simulate.world import Run
from llmc.runtime.engine_file.file import EngineFile
from llmc.runtime.plan.executor import PagedExecutor
from llmc.runtime.plan.formula import value
from llmc.runtime.plan.plan import Launch, Plan

PROMPT = (3, 1, 4, 1, 5, 9, 2, 6)


class _Recording(SimulatedDevice):
    """An interpreted plan that records the changes of its launches."""

    def __init__(self, engine: EngineFile, profile: str, plan: Plan, slots: int) -> None:
        super().__init__(engine, profile, plan, slots)
        self.steps: list[RecordedStep] = []
        self._launches: list[RecordedLaunch] = []
        self._buffers: frozenset[str] = frozenset()

    def run(
        self, program: int, sizes: Mapping[str, int], inputs: Mapping[str, np.ndarray], wanted: Collection[str]
    ) -> Run:
        kept = {name: array.copy() for name, array in inputs.items()}
        self._launches, self._buffers = [], frozenset(self._plan.programs[program].buffers)
        found = super().run(program, sizes, inputs, wanted)
        self.steps.append(RecordedStep(program, dict(sizes), kept, tuple(self._launches)))
        return found

    def _launch(self, launch: Launch, tensors: Mapping[str, torch.Tensor], sizes: Mapping[str, int]) -> None:
        names = [name for name in launch.writes if name in self._buffers]
        before = {name: tensors[name].clone() for name in names}
        super()._launch(launch, tensors, sizes)
        if all(value(formula, sizes) for formula in launch.grid):
            written = {name: _changed(before[name], tensors[name]) for name in names}
            self._launches.append(RecordedLaunch(launch.label, self._plan.modules[launch.module].kernel, written))


def record(engine: Path, sm: int, path: Path, *, prompt: tuple[int, ...] = PROMPT, tokens: int = 1) -> None:
    """Write the steps of a prompt and of `tokens` that follow it."""
    made: list[_Recording] = []

    def make(opened: EngineFile, profile: str, plan: Plan, slots: int) -> _Recording:
        made.append(_Recording(opened, profile, plan, slots))
        return made[0]

    executor = PagedExecutor(EngineFile.open(engine), f"sm_{sm}", make, max_batch=1)
    traces(executor, [prompt], 1 + tokens)
    executor.close()
    dump.write(path, Recorded(plan_digest(engine, sm), tuple(made[0].steps)))


def _changed(before: torch.Tensor, after: torch.Tensor) -> np.ndarray:
    """The changed numbers as float32, NaN elsewhere."""
    bits = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[after.element_size()]
    same = before.reshape(-1).view(bits) == after.reshape(-1).view(bits)
    found = after.reshape(-1).to(torch.float32)
    found[same] = float("nan")
    return found.reshape(after.shape).numpy()
