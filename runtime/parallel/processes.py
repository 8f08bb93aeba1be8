"""The processes of the other ranks, as far as rank 0 knows them."""

from __future__ import annotations

from typing import Protocol


class Processes(Protocol):
    """Those that rank 0 has started."""

    def died(self, rank: int) -> int | None:
        """The exit code of one whose connection has ended; None if it is not known."""
        ...

    def end(self) -> None:
        """Kill those that still run, and wait for all."""
        ...


class Strangers:
    """Processes that others have started."""

    def died(self, rank: int) -> int | None:
        return None

    def end(self) -> None:
        pass
