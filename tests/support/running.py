"""Requests through a scheduler in turn, so that prompts and decoding share steps."""

from __future__ import annotations

from collections.abc import Sequence

from llmc.runtime.scheduling.request import Request
from llmc.runtime.scheduling.scheduler import Scheduler


def run_some(scheduler: Scheduler, requests: Sequence[Request], together: int) -> None:
    """Runs requests to their ends; the next comes when one of the `together` before it has ended."""
    waiting, running = list(requests), []
    while waiting or not scheduler.idle:
        running = [request for request in running if request.finish is None]
        while waiting and len(running) < together:
            running.append(scheduler.add(waiting.pop(0)))
        scheduler.step()
