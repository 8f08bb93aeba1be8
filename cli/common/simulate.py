"""`--simulate`: a GPU's profile through Triton's interpreter, so that any machine can check it, slowly."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...runtime.engine_file.split import parts_of
from . import console, extras

if TYPE_CHECKING:
    from ...compiler.targets.simulate.world import World
    from ...runtime.engine_file.file import EngineFile
    from ...runtime.plan.executor import Device, MakeDevice
    from ...runtime.plan.plan import Plan


def stand_in(wanted: bool) -> MakeDevice | None:
    """The factory of simulated devices, which may be the ranks of one job, if `wanted`, else None."""
    return _Interpreter() if wanted else None


class _Interpreter:
    def __init__(self) -> None:
        self._world: World | None = None

    def __call__(self, engine: EngineFile, profile: str, plan: Plan, slots: int) -> Device:
        # imported once the profile is known to be a GPU's: torch takes seconds
        extras.need("cuda-build", "--simulate")
        from ...compiler.targets.simulate.device import SimulatedDevice
        from ...compiler.targets.simulate.world import World

        if self._world is None:
            name = parts_of(profile)[0]
            console.note(f"profile {name} is interpreted on the CPU: its numbers, not its speed")
        self._world = self._world or World()
        return SimulatedDevice(engine, profile, plan, slots, world=self._world)
