"""What a control plane asks about the processes of other ranks, and the answers where others have started them."""

from __future__ import annotations

from typing import Protocol


class Processes(Protocol):
    """The processes of the other ranks, as far as rank 0 has started them."""

    def died(self, rank: int) -> int | None:
        """The exit code of one whose connection has ended; None if it is not known."""
        ...

    def stopped(self, rank: int) -> bool:
        """True if it is known to be stopped (SIGSTOP)."""
        ...

    def end(self) -> None:
        """Kill those that still run, and wait for all."""
        ...


class Strangers:
    """Processes that others have started."""

    def died(self, rank: int) -> int | None:
        return None

    def stopped(self, rank: int) -> bool:
        return False

    def end(self) -> None:
        pass
