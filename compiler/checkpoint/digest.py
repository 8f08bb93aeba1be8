"""The files of an open checkpoint: each is read once, and all cores compute SHA-256 while other work runs."""

from __future__ import annotations

import hashlib
import threading
import weakref
from collections.abc import Callable, Mapping
from concurrent.futures import CancelledError, Future, wait
from queue import Empty, SimpleQueue
from types import MappingProxyType

from ...runtime.errors import CheckpointError
from ...runtime.machine import cpu_count
from .folder import FileFacts, Folder, OpenFile, is_unchanged

_HASH_BYTES = 4 << 20
_SHOW_S = 0.2
_MAX_SMALL_BYTES = 16 << 20


class Files:
    """The small files read from a folder so far, and its weight files, which stay open."""

    def __init__(self, folder: Folder) -> None:
        self.folder = folder
        self.shards: list[OpenFile] = []
        self.small_digests: dict[str, str] = {}
        """SHA-256 by file name of the files read whole, computed from the bytes that were parsed."""
        self._small: list[FileFacts] = []
        self._shard_digests: dict[str, Future[str]] | None = None
        self._hashed = [0]
        """Bytes of weight files that are hashed so far; a list, which the threads share without this object."""

    @property
    def facts(self) -> tuple[FileFacts, ...]:
        """Every file read or opened so far, as it was then."""
        return (*self._small, *(shard.facts for shard in self.shards))

    def need(self, name: str, max_bytes: int = _MAX_SMALL_BYTES) -> bytes:
        """The content of a small file.

        Raises:
            CheckpointError: the file is missing, unreadable, a hard link or larger than `max_bytes`.
        """
        return self.add(*self.folder.read(name, max_bytes, one_name=True))

    def get(self, name: str, max_bytes: int = _MAX_SMALL_BYTES) -> bytes | None:
        """The content of a small file as `need` returns it; None if the file does not exist."""
        return self.need(name, max_bytes) if self.folder.has(name) else None

    def add(self, data: bytes, facts: FileFacts) -> bytes:
        """Record a file that was read; returns its content."""
        self._small.append(facts)
        self.small_digests[facts.name] = hashlib.sha256(data).hexdigest()
        return data

    def start_digest(self, known: Mapping[str, str] = MappingProxyType({})) -> None:
        """Begin to hash the weight files in daemon threads; dropping the object stops them.

        Files of `known` digests, by name, are not read.
        """
        self._shard_digests = {opened.facts.name: Future() for opened in self.shards}
        waiting: SimpleQueue[tuple[OpenFile, Future[str]]] = SimpleQueue()
        for opened, digest in zip(self.shards, self._shard_digests.values(), strict=True):
            if opened.facts.name in known:
                digest.set_result(known[opened.facts.name])
            else:
                waiting.put((opened, digest))
        dropped = threading.Event()
        weakref.finalize(self, dropped.set)
        for _ in range(min(cpu_count(), waiting.qsize())):
            threading.Thread(
                target=_hash_files, args=(waiting, dropped, self._hashed), name="llmc-digest", daemon=True
            ).start()

    @property
    def shard_bytes(self) -> int:
        """Bytes of the weight files."""
        return sum(shard.facts.bytes for shard in self.shards)

    def digests(self, advance: Callable[[int], None] = lambda _: None) -> dict[str, str]:
        """SHA-256 of every file by name; waits until all files are hashed.

        `advance` receives the bytes hashed since it was called last, from all that were hashed before on.

        Raises:
            CheckpointError: a file cannot be read.
        """
        if self._shard_digests is None:
            self.start_digest()
        waiting, shown = self._shard_digests or {}, 0
        while True:
            running = wait(waiting.values(), timeout=_SHOW_S).not_done
            hashed = self._hashed[0]
            advance(hashed - shown)
            shown = hashed
            if not running:
                break
        shards = {name: digest.result() for name, digest in waiting.items()}
        return dict(sorted({**self.small_digests, **shards}.items()))

    def require_unchanged(self) -> None:
        """Check that the build read one state of the checkpoint.

        Raises:
            CheckpointError: a file was replaced, written to or removed since it was opened.
        """
        for facts in self.facts:
            if not is_unchanged(facts):
                raise CheckpointError(
                    f"expected {facts.shown} to stay unchanged while the engine is built",
                    found="it was changed, replaced or removed",
                    fix="wait until the download has finished, then build again",
                )


def _hash_files(
    waiting: SimpleQueue[tuple[OpenFile, Future[str]]], dropped: threading.Event, hashed: list[int]
) -> None:
    while True:
        try:
            opened, digest = waiting.get_nowait()
        except Empty:
            return
        try:
            digest.set_result(_sha256(opened, dropped, hashed))
        except BaseException as error:
            digest.set_exception(error)


def _sha256(opened: OpenFile, dropped: threading.Event, hashed: list[int]) -> str:
    digest, buffer = hashlib.sha256(), memoryview(bytearray(_HASH_BYTES))
    for start in range(0, opened.facts.bytes, _HASH_BYTES):
        if dropped.is_set():
            raise CancelledError
        part = buffer[: min(_HASH_BYTES, opened.facts.bytes - start)]
        opened.read_into(part, start)
        digest.update(part)
        hashed[0] += len(part)  # a count for people: two threads at once may lose a part
    return digest.hexdigest()
