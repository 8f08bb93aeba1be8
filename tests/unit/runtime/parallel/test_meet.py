"""Which ranks share memory is decided by rank 0, and what stands in the way of others is said."""

from __future__ import annotations

import os
import socket
import sys
import threading
from dataclasses import replace
from typing import Any

import pytest

from llmc.runtime.environment import Launched
from llmc.runtime.errors import RecipeError, ResourceError
from llmc.runtime.parallel import meet
from llmc.runtime.parallel.control import Control
from llmc.runtime.parallel.data import memory
from llmc.runtime.parallel.data.gloo import Gloo, distributed
from llmc.runtime.parallel.frames import Connection
from llmc.runtime.parallel.hello import hello


@pytest.mark.parametrize(
    ("changed", "share", "hosts", "same"),
    [
        ({}, True, [0, 0], True),
        ({}, False, [0, 1], False),
        ({"memory": "/proc/1/fd/9999"}, True, [0, 1], False),
        ({"memory": "/proc/self/status"}, True, [0, 1], False),
        ({"nonce": "00"}, True, [0, 1], False),
    ],
    ids=["shared", "apart", "closed", "another file", "another memory"],
)
def test_ranks_of_one_machine_share_memory_that_all_can_open(
    changed: dict[str, str], share: bool, hosts: list[int], same: bool
):
    files = [memory.create(2) for _ in range(2)]
    listener = socket.create_server(("127.0.0.1", 0))
    ends = [socket.create_connection(listener.getsockname()), listener.accept()[0]]
    controls = [Control(rank, [Connection(end, 1 - rank)]) for rank, end in enumerate(ends)]
    said = [hello(rank, files[rank], 2) for rank in range(2)]
    said[0] = replace(said[0], **changed)
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(meet._placed(controls[1], files[1], 2, 20)))
    thread.start()
    own = meet._place(controls[0], said, files[0], 2, 20, share)
    thread.join()
    [other] = found
    assert own.hosts == other.hosts == hosts
    assert own.addresses == other.addresses == ["127.0.0.1", "127.0.0.1"]
    one, two = (os.fstat(placed.file).st_ino for placed in (own, other))
    assert (one == two) is same
    for file in (own.file, other.file):
        os.close(file)
    threading.Thread(target=controls[0].close).start()
    assert controls[1].receive() is None
    controls[1].close()
    listener.close()


@pytest.mark.parametrize(("processes", "fitting"), [(4, "4 ranks"), (1, "1 rank")])
def test_another_number_of_processes(processes: int, fitting: str):
    with pytest.raises(RecipeError) as caught:
        meet.join(Launched(0, processes, "localhost", 1, False, "0"), ranks=2, tp=2, profile="cpu-tp2")
    assert str(caught.value) == (
        "expected 2 processes: profile cpu-tp2 has 2 ranks\n"
        f"  found: WORLD_SIZE={processes}\n"
        f"  try: a launcher of 2 processes, or a profile of {fitting}"
    )


def test_a_store_that_is_not_there():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(ResourceError) as caught:
        meet.join(Launched(1, 2, "127.0.0.1", port, False, "0"), ranks=2, tp=2, profile="cpu-tp2", start=1)
    assert str(caught.value).startswith(f"cannot find the other ranks at 127.0.0.1:{port} (MASTER_ADDR, MASTER_PORT)")


def test_a_host_that_cannot_be_reached():
    with pytest.raises(ResourceError, match=r"^cannot connect to the ranks on other hosts\n  found: nothing for 0 s"):
        Gloo(distributed().HashStore(), 0, 2, "127.0.0.1", lambda: None, 0.3)


def test_torch_is_an_extra(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ResourceError) as caught:
        distributed()
    asked, found, fix = str(caught.value).split("\n")
    assert asked == "cannot join ranks of several processes without the extra 'parallel'"
    assert found.startswith("  found: no torch.distributed: ")
    assert fix == "  try: pip install '.[parallel]' in a checkout of llmc"
