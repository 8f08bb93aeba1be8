"""One thread steps the scheduler, so that requests of any thread join and leave between steps."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection
from functools import partial
from queue import SimpleQueue
from typing import Protocol

from ..errors import EngineError, RecipeError
from .executor import Executor
from .scheduler import Event, Request, Scheduler

_POLL_S = 0.2
"""Longest wait without a chance for Ctrl-C, where a platform's locks cannot be interrupted."""


class Listener(Protocol):
    """The receiving end of a request; called on the loop's thread, so it must be quick."""

    def receive(self, event: Event) -> bool:
        """Takes an event; True: nothing more is wanted. After an event with a `finish` nothing more comes."""
        ...

    def end(self, error: BaseException | None) -> None:
        """The request ends before it was finished: cancelled (None) or failed."""
        ...


class Loop:
    """Owns an executor. The thread starts with the first request and ends with `close` or an executor's exception."""

    def __init__(self, executor: Executor, eos_ids: Collection[int]) -> None:
        self._executor = executor
        self._scheduler = Scheduler(executor, eos_ids)
        self._listeners: dict[int, Listener] = {}
        # a SimpleQueue's put is safe where locks are not: in __del__, at any moment of any thread
        self._inbox: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._closing = False
        self._failure: BaseException | None = None

    @property
    def capacity(self) -> int:
        """Tokens, prompt and output together, that one request can have."""
        return self._scheduler.capacity

    def submit(self, request: Request, listener: Listener) -> None:
        """Starts a request; RecipeError if it can never run or the loop is closed, EngineError after a failed step."""
        request = self._scheduler.check(request)
        with self._lock:
            if self._closing:
                raise RecipeError("a request to a closed engine", fix="load the engine again")
            if self._failure is not None:
                raise EngineError(
                    "a request to a broken engine",
                    found=f"an earlier step failed: {type(self._failure).__name__}: {self._failure}",
                    fix="load the engine again",
                ) from self._failure
            self._inbox.put(partial(self._add, request, listener))
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="llmc-loop", daemon=True)
                self._thread.start()

    def cancel(self, listener: Listener | None) -> None:
        """Ends a request (None: all), soon; harmless if it is over. From any thread, also from a destructor."""
        self._inbox.put(partial(self._cancel, listener))

    def close(self) -> None:
        """Cancels all requests, waits for the thread and closes the executor; a second call only waits."""
        with self._lock:
            first, self._closing = not self._closing, True
            thread = self._thread
        if thread is None:
            if first:
                self._executor.close()
            return
        self._inbox.put(lambda: None)
        while thread.is_alive() and thread is not threading.current_thread():
            thread.join(_POLL_S)

    def _run(self) -> None:
        try:
            while not self._closing:
                if self._scheduler.idle:
                    self._inbox.get()()
                while not self._inbox.empty():
                    self._inbox.get()()
                if not self._scheduler.idle:
                    for event in self._scheduler.step():
                        self._deliver(event)
            self._cancel(None)
            while not self._scheduler.idle:
                self._scheduler.step()
        except BaseException as error:
            self._failure = error
        with self._lock:
            # from here on `submit` refuses, and what it let in before is in the inbox
            failure = self._failure
        for listener in list(self._listeners.values()):
            listener.end(failure)
        self._listeners.clear()
        while not self._inbox.empty():
            self._inbox.get()()
        self._executor.close()

    def _add(self, request: Request, listener: Listener) -> None:
        if self._closing or self._failure is not None:
            listener.end(self._failure)
        else:
            self._listeners[self._scheduler.add(request)] = listener

    def _cancel(self, listener: Listener | None) -> None:
        for sequence, known in list(self._listeners.items()):
            if listener is None or known is listener:
                self._drop(sequence)
                known.end(None)

    def _deliver(self, event: Event) -> None:
        sequence = event.output.sequence
        listener = self._listeners[sequence]
        try:
            enough = listener.receive(event)
        except Exception as error:
            # a fault in one request's text must not end the others
            listener.end(error)
            enough = True
        if event.finish is not None:
            del self._listeners[sequence]
        elif enough:
            self._drop(sequence)

    def _drop(self, sequence: int) -> None:
        del self._listeners[sequence]
        self._scheduler.finish(sequence)
