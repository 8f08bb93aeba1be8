"""`llmc` for the scripts of tests/scripts: a process that has imported everything forks once per command.

So a command of a script is a process with its own streams, folder and variables, without seconds of imports.
"""

from __future__ import annotations

import ast
import gc
import os
import select
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_CLIENT = """#!{python} -IS
import os, socket, sys
with socket.socket(socket.AF_UNIX) as server:
    server.connect({address!r})
    request = repr((sys.argv[1:], os.getcwd(), dict(os.environ))).encode("utf-8", "surrogateescape")
    socket.send_fds(server, [request + b"\\n"], [0, 1, 2])
    sys.exit(server.recv(1)[0])
"""

_IMPORTED = (
    "llmc.cli.prompts.conversation",
    "llmc.compiler.build",
    "llmc.compiler.cache.find",
    "llmc.compiler.deploy.auto",
    "llmc.runtime.cpu.executor",
    "llmc.runtime.cpu.ort",
    "llmc.runtime.evaluate",
    "llmc.runtime.load",
    "tokenizers",
    "typer._adapters",  # with pydantic, 0.15 s of CPU
)
"""What commands import when they begin to work."""


@contextmanager
def forked_llmc(folder: Path) -> Iterator[Path]:
    """A file named `llmc` in the folder, which runs one as long as the context lasts."""
    address, client = folder / "socket", folder / "llmc"
    client.write_text(_CLIENT.format(python=sys.executable, address=str(address)))
    client.chmod(0o755)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(address))
        listener.listen()
        command = [sys.executable, "-P", __file__, str(listener.fileno())]
        with subprocess.Popen(command, stdin=subprocess.PIPE, pass_fds=[listener.fileno()]) as server:
            try:
                yield client
            finally:
                server.kill()


def _serve(listener: socket.socket) -> None:
    """Fork for every connection, until stdin ends: whoever started this process has ended."""
    while listener in select.select([listener, 0], [], [])[0]:
        with suppress(ChildProcessError):  # reap: a child tells its exit code through its connection
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        connection, _ = listener.accept()
        with connection:
            request, streams, *_ = socket.recv_fds(connection, 1 << 20, 3)
            if os.fork() == 0:
                os._exit(_answer(connection, request, streams))
        for stream in streams:
            os.close(stream)


def _answer(connection: socket.socket, request: bytes, streams: list[int]) -> int:
    while not request.endswith(b"\n"):
        request += connection.recv(1 << 20)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    sys.stdin, sys.stdout, sys.stderr = (open(n, "w" if n else "r", closefd=False) for n in range(3))  # noqa: SIM115
    arguments, folder, variables = ast.literal_eval(request.decode("utf-8", "surrogateescape"))
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(variables)
    connection.send(bytes([run(arguments)]))
    return 0


if __name__ == "__main__":
    from importlib import import_module

    for module in _IMPORTED:
        import_module(module)
    from llmc.cli.app import application, run

    application()  # imports all commands
    gc.freeze()  # a collection in a child would touch, and so copy, every page
    _serve(socket.socket(fileno=int(sys.argv[1])))
