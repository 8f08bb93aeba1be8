"""What a device is filled with: machine code and weights, of an engine or of something that stands in for one."""

from __future__ import annotations

from typing import Protocol

from ..engine_file.file import EngineFile
from ..errors import EngineError
from ..plan.plan import MachineCode, Plan
from ..progress import Progress
from .driver import Driver
from .upload import Placement, place_weights, upload

CUBINS, PTX = "kernels.cubins", "kernels.ptx"
"""The sections beside the plan's that hold its machine code, and the PTX it was assembled from."""


class Contents(Protocol):
    """Machine code and weights of a plan. what: for errors. max_batch: sequences that its kernels were compiled for."""

    what: str
    max_batch: int

    def placement(self, plan: Plan) -> Placement:
        """Where the plan's weights lie in their one allocation."""
        ...

    def cubin(self, code: MachineCode, what: str) -> bytes:
        """The machine code of a kernel, called `what` in errors."""
        ...

    def ptx(self, code: MachineCode) -> str:
        """What it was assembled from, or ""."""
        ...

    def fill(self, placement: Placement, base: int, driver: Driver, progress: Progress) -> None:
        """Put the weights into their allocation at `base`; they are there when it returns."""
        ...


class EngineContents:
    """A profile of an engine file."""

    def __init__(self, engine: EngineFile, profile: str) -> None:
        facts = engine.manifest.profiles[profile]
        self._engine, self._profile = engine, profile
        self._folder = facts.graph.rpartition("/")[0]
        self._sections: dict[str, bytes] = {}
        self.what = f"{engine.path}: profile {profile!r}"
        self.max_batch = facts.max_batch

    def placement(self, plan: Plan) -> Placement:
        """Raises EngineError where the plan and the engine do not fit each other."""
        return place_weights(self._engine, self._profile, plan)

    def cubin(self, code: MachineCode, what: str) -> bytes:
        """Raises EngineError where the engine has no such bytes."""
        return self._part(CUBINS, code.offset, code.size, what)

    def ptx(self, code: MachineCode) -> str:
        """Raises EngineError where the engine has no such bytes."""
        return self._part(PTX, code.ptx_offset, code.ptx_size, code.entry).decode() if code.ptx_size else ""

    def fill(self, placement: Placement, base: int, driver: Driver, progress: Progress) -> None:
        """Raises EngineError for bytes that do not match their digest, ResourceError for a file that cannot be read."""
        upload(self._engine, placement, base, driver, progress)

    def _part(self, name: str, offset: int, size: int, what: str) -> bytes:
        section = f"{self._folder}/{name}"
        if section not in self._sections:
            self._sections[section] = self._engine.section(section)
        data = self._sections[section]
        if offset + size > len(data):
            asked = f"kernel {what} of {self._engine.path}: machine code in {section!r} of {len(data)} bytes"
            raise EngineError(asked, found=f"bytes {offset} to {offset + size}", fix="build the engine again")
        return data[offset : offset + size]
