"""SHA-256 of a checkpoint's files on all cores, hidden behind what a build does meanwhile."""

from __future__ import annotations

import hashlib
import threading
import weakref
from collections.abc import Sequence
from concurrent.futures import CancelledError, Future
from queue import Empty, SimpleQueue

from ...runtime.machine import cpu_count
from .folder import OpenFile

_HASH_BYTES = 4 << 20


class Hashing:
    """SHA-256 of files, under way on all cores. Daemon threads; dropping the object stops them."""

    def __init__(self, files: Sequence[OpenFile]) -> None:
        self._digests: dict[str, Future[str]] = {opened.facts.name: Future() for opened in files}
        waiting: SimpleQueue[tuple[OpenFile, Future[str]]] = SimpleQueue()
        for entry in zip(files, self._digests.values(), strict=True):
            waiting.put(entry)
        dropped = threading.Event()
        weakref.finalize(self, dropped.set)
        for _ in range(min(cpu_count(), len(files))):
            threading.Thread(target=_hash_files, args=(waiting, dropped), name="llmc-digest", daemon=True).start()

    def result(self) -> dict[str, str]:
        """Hex digests by file name, when all are there; CheckpointError for a file that cannot be read."""
        return {name: digest.result() for name, digest in self._digests.items()}


def _hash_files(waiting: SimpleQueue[tuple[OpenFile, Future[str]]], dropped: threading.Event) -> None:
    while True:
        try:
            opened, digest = waiting.get_nowait()
        except Empty:
            return
        try:
            digest.set_result(_sha256(opened, dropped))
        except BaseException as error:
            digest.set_exception(error)


def _sha256(opened: OpenFile, dropped: threading.Event) -> str:
    digest, buffer = hashlib.sha256(), memoryview(bytearray(_HASH_BYTES))
    for start in range(0, opened.facts.bytes, _HASH_BYTES):
        if dropped.is_set():
            raise CancelledError
        part = buffer[: min(_HASH_BYTES, opened.facts.bytes - start)]
        opened.read_into(part, start)
        digest.update(part)
    return digest.hexdigest()
