"""Joins a job whose processes a launcher has started: finds rank 0, tells hosts apart, and picks the transports."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from queue import Empty, SimpleQueue
from typing import Any

from ..environment import Launched
from ..errors import LlmcError, RecipeError, ResourceError
from ..files.strict_json import canonical, loads
from ..machine import cpu_count
from .control import Control
from .data import memory
from .data.gloo import Gloo, distributed
from .data.mesh import Mesh
from .frames import Connection, Frame
from .hello import Hello, gather, hello, listen
from .job import START, Job

_SLICE = 0.1
_joined = 0
"""Jobs that this process has joined: the ranks of each find each other under another name."""


def join(launched: Launched, *, ranks: int, tp: int, profile: str, start: float = START, share: bool = True) -> Job:
    """This process's job; on ranks above 0 Ctrl-C has no effect until it is closed.

    `start` is how many seconds the ranks have to come. Without `share` each rank counts as a host of its own.

    Raises:
        RecipeError: the launcher has started another number of processes than the profile has ranks.
        ResourceError: a rank does not come, or there is no torch.distributed.
    """
    if launched.ranks != ranks:
        raise RecipeError(
            f"expected {ranks} processes: profile {profile} has {ranks} ranks",
            found=f"WORLD_SIZE={launched.ranks}",
            fix=f"a launcher of {ranks} processes, or a profile of {launched.ranks} rank{'s' * (launched.ranks > 1)}",
        )
    store = _store(launched, start)
    file = memory.create(ranks)
    try:
        control, machines = _meet(launched, store, hello(launched.rank, file, ranks), start)
    except BaseException:
        os.close(file)
        raise
    try:
        placed = (
            _place(control, machines, file, ranks, start, share)
            if launched.rank == 0
            else _placed(control, file, ranks, start)
        )
        return _job(control, store, placed, tp, start, launched.local_rank)
    except BaseException as problem:
        error = control.fail(problem)
        control.close()
        if isinstance(problem, LlmcError):
            raise error from None
        raise


def _patiently(function: Callable[[], Any], seconds: float, asked: str) -> Any:
    """What a function of torch gives, which may hang: called on a thread, so that Ctrl-C is heard."""
    answer = SimpleQueue[Any]()

    def call() -> None:
        try:
            answer.put((True, function()))
        except BaseException as problem:
            answer.put((False, problem))

    threading.Thread(target=call, name="llmc-join", daemon=True).start()
    late = time.monotonic() + seconds + 1
    while time.monotonic() < late:
        try:
            done, value = answer.get(timeout=_SLICE)
        except Empty:
            continue
        if done:
            return value
        found = next(iter(str(value).splitlines()), "")[:200]
        raise ResourceError(asked, found=f"{type(value).__name__}: {found}") from value
    raise ResourceError(asked, found=f"no answer in {seconds:.0f} s")


def _store(launched: Launched, start: float) -> Any:
    """The key-value store of this job, which torchrun has opened; under other launchers rank 0 opens it."""
    global _joined
    dist = distributed()
    _joined += 1
    number = _joined

    def connect() -> Any:
        store = dist.TCPStore(
            launched.address,
            launched.port,
            is_master=launched.rank == 0 and not launched.store,
            timeout=timedelta(seconds=start),
            wait_for_workers=False,
            multi_tenant=True,
        )
        return dist.PrefixStore(f"llmc/{launched.attempt}/{number}", store)

    where = f"{launched.address}:{launched.port}"
    return _patiently(connect, start, f"cannot find the other ranks at {where} (MASTER_ADDR, MASTER_PORT)")


def _meet(launched: Launched, store: Any, own: Hello, start: float) -> tuple[Control, Sequence[Hello]]:
    """This rank's control plane; on rank 0 also what all ranks have said."""
    if launched.rank == 0:
        with listen(launched.address) as listener:
            token = secrets.token_hex(32)
            published = {"name": own.name, "port": listener.getsockname()[1], "token": token}
            _patiently(lambda: store.set("rank0", canonical(published).decode()), start, "cannot publish rank 0")
            return gather(listener, launched.ranks, token, own, start)
    asked = f"cannot find rank 0 at {launched.address}:{launched.port}"
    found = loads(_patiently(lambda: store.get("rank0"), start, asked), what="rank 0's address", error=ResourceError)
    match found:
        case {"name": str(name), "port": int(port), "token": str(token)}:
            pass
        case _:
            raise ResourceError(asked, found=f"{found!r}"[:200])
    try:
        connection = Connection(socket.create_connection((launched.address, port), start), 0)
    except OSError as error:
        raise ResourceError(f"cannot connect to rank 0 at {launched.address}:{port}", found=str(error)) from error
    connection.name = name
    connection.send(Frame("hello", {**asdict(own), "token": token}))
    return Control(launched.rank, [connection]), []


@dataclass(frozen=True)
class _Placed:
    """Where the ranks are."""

    hosts: Sequence[int]
    """A number for each rank, equal for those that share memory."""
    addresses: Sequence[str]
    file: int
    """The memory of this rank's host."""


def _place(control: Control, said: Sequence[Hello], file: int, ranks: int, start: float, share: bool) -> _Placed:
    """Rank 0: ranks share the memory that the first rank of their machine made, if all of them can open it."""
    leaders = [next(i for i, one in enumerate(said) if one.machine == mine.machine) for mine in said]
    if not share:
        leaders = list(range(ranks))
    for rank in range(1, ranks):
        leader = said[leaders[rank]]
        control.tell(rank, "open", {"memory": leader.memory if leader is not said[rank] else "", "nonce": leader.nonce})
    opened = dict[int, bool]()
    while len(opened) < ranks - 1:
        frame = control.hear("opened", start, lambda: f"only rank {', '.join(map(str, opened))}")
        opened[frame.rank] = frame.header["opened"] is True
    closed = {leaders[rank] for rank, able in opened.items() if not able}
    hosts = [rank if leader in closed else leader for rank, leader in enumerate(leaders)]
    addresses = control.addresses([one.machine == said[0].machine for one in said])
    placed = {"hosts": hosts, "addresses": addresses}
    for rank in range(1, ranks):
        control.tell(rank, "placed", placed)
    return _Placed(hosts, addresses, file)


def _placed(control: Control, file: int, ranks: int, start: float) -> _Placed:
    """Another rank: the same."""
    asked: Mapping[str, Any] = control.hear("open", 2 * start, lambda: "none of rank 0").header
    opened, theirs = True, -1
    if asked["memory"]:
        try:
            theirs = memory.reopen(asked["memory"], ranks)
            view = memory.SharedMemory(os.dup(theirs), ranks, lambda: None, spin=False)
            opened = view.nonce == asked["nonce"]
            view.close()
        except OSError:
            opened = False
    control.tell(0, "opened", {"opened": opened})
    told = control.hear("placed").header
    if theirs >= 0 and told["hosts"][control.rank] != control.rank:
        file, theirs = theirs, file
    if theirs >= 0:
        os.close(theirs)
    return _Placed(told["hosts"], told["addresses"], file)


def _job(control: Control, store: Any, placed: _Placed, tp: int, start: float, local_rank: int | None) -> Job:
    rank, hosts = control.rank, placed.hosts
    shared = memory.SharedMemory(placed.file, len(hosts), control.check, spin=cpu_count() >= hosts.count(hosts[rank]))
    gloo = None
    if len({*hosts}) > 1:
        gloo = Gloo(store, rank, len(hosts), placed.addresses[rank], control.check, start)
    mesh = Mesh(rank, tp, hosts, shared, gloo)
    quiet = rank > 0 and threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGINT, signal.SIG_IGN) if quiet else None

    def release() -> None:
        mesh.close()
        if quiet:
            signal.signal(signal.SIGINT, before)

    return Job(mesh, control, start=start, release=release, local_rank=local_rank)
