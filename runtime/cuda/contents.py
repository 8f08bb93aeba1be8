"""The machine code and weights that a device loads, from an engine or a substitute for one."""

from __future__ import annotations

from typing import Protocol

from ..engine_file.file import EngineFile
from ..errors import EngineError
from ..plan.plan import MachineCode, Plan
from ..progress import Progress
from .driver import Driver
from .placement import Placement, place_weights
from .upload import upload

CUBINS, PTX = "kernels.cubins", "kernels.ptx"
"""Sections in the plan's folder: its machine code, and the PTX that the code was assembled from."""


class Contents(Protocol):
    """Machine code and weights of a plan."""

    what: str
    """Its name in errors."""
    max_batch: int
    """Sequences that its kernels were compiled for."""

    def placement(self, plan: Plan) -> Placement:
        """The offsets of the plan's weights in their one allocation."""
        ...

    def cubin(self, code: MachineCode, what: str) -> bytes:
        """The machine code of a kernel, called `what` in errors."""
        ...

    def ptx(self, code: MachineCode) -> str:
        """The PTX that the code was assembled from, or ""."""
        ...

    def fill(self, placement: Placement, base: int, driver: Driver, progress: Progress) -> None:
        """Copy the weights into their allocation at `base`; returns when the copies are complete."""
        ...


def sources(engine: EngineFile, profile: str) -> str:
    """The PTX of a profile's kernels, each after a line with its name; spaces for its tabs, as it is for a terminal.

    Raises:
        EngineError: the plan or its PTX is not one of ours.
    """
    graph = engine.profile(profile).graph
    contents = EngineContents(engine, profile)
    parts = [f"PTX of {contents.what}"]
    for index, module in enumerate(Plan.from_json(engine.section(graph), what=f"{engine.path}: {graph}").modules):
        parts.append(f"kernel {index}: {module.kernel}\n{contents.ptx(module.code) if module.code else ''}")
    return "\n".join(parts).expandtabs()


class EngineContents:
    """A profile of an engine file."""

    def __init__(self, engine: EngineFile, profile: str) -> None:
        facts = engine.profile(profile)
        self._engine, self._profile = engine, profile
        self._file = facts.file
        self._sections: dict[str, bytes] = {}
        self.what = f"profile {profile!r} of {engine.path}"
        self.max_batch = facts.max_batch

    def placement(self, plan: Plan) -> Placement:
        """The offsets of the plan's weights in their one allocation.

        Raises:
            EngineError: the plan's weights do not match the engine's bindings.
        """
        return place_weights(self._engine, self._profile, plan)

    def cubin(self, code: MachineCode, what: str) -> bytes:
        """The machine code of a kernel, called `what` in errors.

        Raises:
            EngineError: the section is shorter than the plan says.
        """
        return self._part(CUBINS, code.offset, code.size, what)

    def ptx(self, code: MachineCode) -> str:
        """The PTX that the code was assembled from, or "".

        Raises:
            EngineError: the section is shorter than the plan says.
        """
        return self._part(PTX, code.ptx_offset, code.ptx_size, code.entry).decode() if code.ptx_size else ""

    def fill(self, placement: Placement, base: int, driver: Driver, progress: Progress) -> None:
        """Copy the weights into their allocation at `base`; returns when the copies are complete.

        Raises:
            EngineError: bytes do not match their digest.
            ResourceError: the file cannot be read.
        """
        upload(self._engine, placement, base, driver, progress)

    def _part(self, name: str, offset: int, size: int, what: str) -> bytes:
        section = self._file(name)
        if section not in self._sections:
            self._sections[section] = self._engine.section(section)
        data = self._sections[section]
        if offset + size > len(data):
            where = f"{section!r} of {len(data)} bytes in {self._engine.path}"
            found = f"bytes {offset} to {offset + size}"
            fix = "build the engine again"
            raise EngineError(f"expected machine code of kernel {what} inside {where}", found=found, fix=fix)
        return data[offset : offset + size]
