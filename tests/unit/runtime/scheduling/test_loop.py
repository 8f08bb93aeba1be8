"""The loop's thread takes what other threads ask of it in their order."""

from __future__ import annotations

import threading

from support.fakes.executor import FakeExecutor

from llmc.runtime.scheduling.executor import Output
from llmc.runtime.scheduling.loop import Loop
from llmc.runtime.scheduling.request import Request


class Held(FakeExecutor):
    """Gives no results before it may."""

    def __init__(self) -> None:
        super().__init__()
        self.may = threading.Event()

    def collect(self, ticket: object) -> tuple[Output, ...]:
        assert self.may.wait(20)
        return super().collect(ticket)


def test_cancelling_all_ends_what_was_there_and_not_what_comes_after():
    executor = Held()
    loop = Loop(executor, ())
    before, after = [Request((1,), 100), Request((2,), 100)], Request((3,), 3)
    for request in before:
        loop.submit(request)
    loop.cancel(None)
    loop.submit(after)
    executor.may.set()
    for request in (*before, after):
        request.wait()
    loop.close()
    assert [request.finish for request in (*before, after)] == ["cancelled", "cancelled", "length"]
    assert executor.live == 0 and executor.closed == 1
