"""Rank 0 waits for its ranks and for nobody else."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import pytest

from llmc.runtime.errors import LlmcError, RecipeError, ResourceError
from llmc.runtime.parallel.control import Control
from llmc.runtime.parallel.frames import Connection, Frame
from llmc.runtime.parallel.hello import Hello, gather

TOKEN = "a" * 64


def hello(rank: int) -> Hello:
    return Hello(TOKEN, rank, f"rank {rank} (host h, pid {rank})", "m", "", "")


def called(port: int, header: Mapping[str, Any] | bytes) -> Connection:
    """A peer that has said something."""
    one = Connection(socket.create_connection(("127.0.0.1", port)), 0)
    if isinstance(header, bytes):
        one.socket.send(header)
    else:
        one.send(Frame("hello", header))
    return one


def gathered(ranks: int, peers: Callable[[int], list[Connection]], start: float = 20) -> Any:
    """What rank 0 gets while peers call, or its error, and the peers."""
    found: list[Any] = []

    def wait() -> None:
        try:
            found.append(gather(listener, ranks, TOKEN, hello(0), start))
        except LlmcError as error:
            found.append(error)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=wait)
        thread.start()
        others = peers(listener.getsockname()[1])
        thread.join()
    return found[0], others


def test_strangers_are_sent_away_and_ranks_are_met():
    def peers(port: int) -> list[Connection]:
        wrong = {**asdict(hello(1)), "token": "b" * 64}
        short = {"token": TOKEN, "rank": 1}
        strangers = [called(port, one) for one in (b"GET / HTTP/1.1\r\n\r\n", b"", wrong, short, {})]
        return [*strangers, called(port, asdict(hello(2))), called(port, asdict(hello(1)))]

    (control, said), others = gathered(3, peers)
    assert isinstance(control, Control) and list(said) == [hello(0), hello(1), hello(2)]
    controls = [Control(2, others[-2:-1]), Control(1, others[-1:])]
    control.tell(2, "placed", {"hosts": []})
    assert controls[0].hear("placed").header == {"hosts": []}
    for stranger in others[:-2]:
        stranger.socket.settimeout(10)
        with contextlib.suppress(ConnectionResetError):  # what it said was not read
            assert stranger.socket.recv(1) == b""
        stranger.close()
    for one in controls:
        threading.Thread(target=one.receive).start()
    closing = threading.Thread(target=control.close)
    closing.start()
    for one in controls:
        one.close()
    closing.join()


@pytest.mark.parametrize(
    ("second", "error", "text"),
    [
        (hello(1), RecipeError, "expected one process for each rank\n  found: rank 1 (host h, pid 1) once more"),
        (None, ResourceError, "cannot start 3 ranks: not all came in 1 s\n  found: nothing of rank 2"),
    ],
)
def test_what_rank_0_says_all_that_came_are_told(second: Hello | None, error: type[LlmcError], text: str):
    def peers(port: int) -> list[Connection]:
        first = called(port, asdict(hello(1)))
        more = [] if second is None else [called(port, asdict(second))]
        control = Control(1, [first])
        with pytest.raises(error) as caught:
            control.hear("open")
        assert str(caught.value) == text
        control.close()
        for one in more:
            one.close()
        return []

    found, _ = gathered(3, peers, 1)
    assert isinstance(found, error) and str(found) == text
