"""`--simulate`: a GPU's profile through Triton's interpreter, so that any machine can check it, slowly."""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import console, extras

if TYPE_CHECKING:
    from ...runtime.engine_file.file import EngineFile
    from ...runtime.plan.executor import Device, MakeDevice
    from ...runtime.plan.plan import Plan


def stand_in(wanted: bool) -> MakeDevice | None:
    """The factory of simulated devices if `wanted`, else None."""
    return _interpreter if wanted else None


def _interpreter(engine: EngineFile, profile: str, plan: Plan, slots: int) -> Device:
    # imported once the profile is known to be a GPU's: torch takes seconds
    extras.need("cuda-build", "--simulate")
    from ...compiler.targets.simulate.device import SimulatedDevice

    console.note(f"profile {profile} is interpreted on the CPU: its numbers, not its speed")
    return SimulatedDevice(engine, profile, plan, slots)
