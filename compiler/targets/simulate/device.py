"""A device made of torch tensors on the CPU and Triton's interpreter, to test a plan without a GPU."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
import torch

from ....runtime.engine_file.bind import evaluate_weight, from_json
from ....runtime.engine_file.file import EngineFile
from ....runtime.errors import EngineError
from ....runtime.plan.between import Collective
from ....runtime.plan.formula import value
from ....runtime.plan.plan import Launch, Plan, Tensor
from ....runtime.progress import timed
from ..cuda.call import Kernel
from ..cuda.cubins.cache import source_digest
from ..cuda.kernels import suites
from .call import TORCH_DTYPE, execute
from .world import Exchange, Run, Steps, World

_NAN_BYTE = 0xFF
"""Fills unwritten memory: NaN in every float dtype, -1 in every signed integer dtype."""


class SimulatedDevice:
    """A loaded plan (`runtime.plan.executor.Device`): every launch is interpreted, without a thread of its own."""

    def __init__(self, engine: EngineFile, profile: str, plan: Plan, slots: int, *, world: World | None = None) -> None:
        """Bind weights; allocate caches for every sequence at full length and fill them with garbage.

        `world` has the devices of the other ranks.

        Raises:
            EngineError: the plan was made with kernels that differ from this llmc's.
        """
        if plan.kernels != source_digest():
            raise EngineError(
                f"cannot interpret profile {profile!r} of {engine.path} with this llmc's kernels",
                found="a plan made with others",
                fix="build the engine again, or verify it on its GPU",
            )
        self.blocks: Mapping[str, int] = {cache.size: slots * cache.blocks for cache in plan.caches}
        self.notes = ()
        self._plan = plan
        self._world = World() if world is None else world
        self._kernels: dict[str, Kernel] = {k.name: k for suite in suites().values() for k in suite.kernels}
        self._fixed: dict[str, torch.Tensor] = {}
        bindings = engine.profile(profile).weights
        for name, tensor in plan.tensors.items():
            if tensor.kind == "weight":
                array = evaluate_weight(from_json(bindings[name]), engine.tensor, initializer=name)
                self._fixed[name] = _typed(torch.from_numpy(array.copy().reshape(-1).view(np.uint8)), tensor, {})
            elif tensor.kind in ("cache", "state"):
                sizes = {**self.blocks, "slots": slots}
                filler = _NAN_BYTE if tensor.kind == "cache" else 0
                blank = torch.full((tensor.bytes(sizes),), filler, dtype=torch.uint8)
                self._fixed[name] = _typed(blank, tensor, sizes)
        if plan.setup is not None:
            for launch in plan.setup.kernels:
                self._launch(launch, self._fixed, plan.setup.limits)

    def run(
        self, program: int, sizes: Mapping[str, int], inputs: Mapping[str, np.ndarray], wanted: Collection[str]
    ) -> Run:
        return self._world.start(self._plan.rank, self._steps(program, sizes, inputs, wanted))

    def read(self, handle: Run) -> Mapping[str, np.ndarray]:
        return self._world.finish(handle)

    def close(self) -> None:
        self._fixed.clear()

    def _steps(
        self, program: int, sizes: Mapping[str, int], inputs: Mapping[str, np.ndarray], wanted: Collection[str]
    ) -> Steps:
        """Interpret a program; stops at every exchange with other ranks."""
        chosen = self._plan.programs[program]
        arena = torch.full((max(chosen.arena, 1),), _NAN_BYTE, dtype=torch.uint8)
        tensors = {**self._fixed, **{name: torch.from_numpy(array) for name, array in inputs.items()}}
        for name, tensor in chosen.buffers.items():
            part = arena[tensor.offset : tensor.offset + tensor.bytes(sizes)]
            tensors[name] = _typed(part, tensor, sizes)
        for launch in chosen.launches:
            if isinstance(launch, Collective):
                sends, receives = (None if name is None else tensors[name] for name in (launch.sends, launch.receives))
                yield Exchange(launch, value(launch.count, sizes), sends, receives)
            else:
                self._launch(launch, tensors, sizes)
        return {name: tensors[name].numpy().copy() for name in wanted}

    def _launch(self, launch: Launch, tensors: Mapping[str, torch.Tensor], sizes: Mapping[str, int]) -> None:
        module = self._plan.modules[launch.module]
        kernel = self._kernels[module.kernel]
        values = [argument.resolve(tensors, sizes) for argument in launch.arguments]
        grid = tuple(value(formula, sizes) for formula in launch.grid)
        label = f"{launch.label} ({module.kernel}), grid {'x'.join(map(str, grid))}, interpreted"
        with timed(3, label):
            execute(kernel, dict(zip(kernel.given(module.constants), values, strict=True)), module.constants, grid)


def _typed(flat: torch.Tensor, tensor: Tensor, sizes: Mapping[str, int]) -> torch.Tensor:
    """A view of the bytes with the tensor's dtype and shape."""
    return flat.view(TORCH_DTYPE[tensor.dtype]).reshape(tensor.dims(sizes))
