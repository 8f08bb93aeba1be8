"""How rank 0 waits for processes that a launcher has started, and what each says first."""

from __future__ import annotations

import hmac
import os
import selectors
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import LlmcError, RecipeError, ResourceError
from . import faults
from .control import Control
from .data import memory
from .frames import Connection
from .job import identity

_SLICE = 0.1
_STRANGERS = 64
"""Connections that may wait with their token."""


@dataclass(frozen=True)
class Hello:
    """What a rank says first."""

    token: str
    rank: int
    name: str
    machine: str
    """Ranks with equal ones may share memory, if they can open it."""
    memory: str
    nonce: str


def hello(rank: int, file: int, ranks: int) -> Hello:
    view = memory.SharedMemory(os.dup(file), ranks, lambda: None, spin=False)
    nonce = view.nonce
    view.close()
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    machine = f"{boot} {os.readlink('/proc/self/ns/pid')}"
    return Hello("", rank, identity(rank, os.getpid()), machine, f"/proc/{os.getpid()}/fd/{file}", nonce)


def listen(address: str) -> socket.socket:
    """Where the others reach rank 0: on all addresses, unless they all are on this host."""
    if address == "localhost" or address.startswith("127."):
        return socket.create_server(("127.0.0.1", 0))
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", 0))


def gather(
    listener: socket.socket, ranks: int, token: str, own: Hello, start: float
) -> tuple[Control, Sequence[Hello]]:
    """Rank 0: wait for all others; who does not say the token is sent away."""
    said, come = {0: own}, dict[int, Connection]()
    late = time.monotonic() + start
    listener.setblocking(False)
    with selectors.DefaultSelector() as selector:
        selector.register(listener, selectors.EVENT_READ)
        try:
            while len(said) < ranks:
                if time.monotonic() > late:
                    absent = ", ".join(str(rank) for rank in range(ranks) if rank not in said)
                    raise ResourceError(
                        f"cannot start {ranks} ranks: not all came in {start:.0f} s", found=f"nothing of rank {absent}"
                    )
                for key, _ in selector.select(_SLICE):
                    if key.data is None:
                        if len(selector.get_map()) < ranks + _STRANGERS:
                            peer, _ = listener.accept()
                            selector.register(peer, selectors.EVENT_READ, Connection(peer, -1))
                        continue
                    one: Connection = key.data
                    try:
                        hello = _heard(one, token)
                    except (EOFError, LlmcError):
                        selector.unregister(one.socket)
                        one.close()
                        if one.rank > 0:
                            raise faults.ended(one.name, None) from None
                        continue
                    if hello is None:
                        continue
                    if hello.rank in said or not 0 < hello.rank < ranks:
                        raise RecipeError("expected one process for each rank", found=f"{hello.name} once more")
                    one.rank, one.name, one.heard = hello.rank, hello.name, True
                    said[hello.rank], come[hello.rank] = hello, one
        except BaseException as problem:
            control = Control(0, [*come.values()])
            error = control.fail(problem)
            control.close()
            raise error if isinstance(problem, LlmcError) else problem from None
        finally:
            for key in list(selector.get_map().values()):
                if key.data is not None and key.data.rank < 0:
                    key.data.close()
    return Control(0, [come[rank] for rank in range(1, ranks)]), [said[rank] for rank in range(ranks)]


def _heard(one: Connection, token: str) -> Hello | None:
    """What a connection says: None if that is not all yet."""
    for frame in one.reader.fill(one.socket):
        if frame is None:
            continue
        match frame.header:
            case {"token": str(said), "rank": int(), "name": str(), "machine": str(), "memory": str(), "nonce": str()}:
                if one.rank < 0 and frame.kind == "hello" and hmac.compare_digest(said.encode(), token.encode()):
                    return Hello(**frame.header)
        raise ResourceError("expected the token of this job", found="another peer")
    return None
