"""Steps the scheduler on one thread, so that requests from any thread can join and leave between steps."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection
from functools import partial
from queue import SimpleQueue

from ..errors import EngineError, RecipeError, ResourceError
from ..guard.forks import forked, hold
from ..guard.shortage import shortage
from .executor import Executor
from .request import Request, wait
from .scheduler import Scheduler


class Loop:
    """Owns an executor. Its thread starts with the first request and ends with `close` or an executor's exception."""

    def __init__(
        self, executor: Executor, eos_ids: Collection[int], demand_unchanged: Callable[[], None] = lambda: None
    ) -> None:
        """`demand_unchanged` raises an EngineError if the file that the executor reads was changed."""
        self._executor = executor
        self._demand_unchanged = demand_unchanged
        self._scheduler = Scheduler(executor, eos_ids, demand_unchanged)
        # SimpleQueue.put is reentrant, unlike a lock: __del__ may call it at any moment, on any thread
        self._inbox: SimpleQueue[Callable[[], object]] = SimpleQueue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._closing = False
        self._failure: BaseException | None = None
        self._forked = False
        hold(self)

    @property
    def capacity(self) -> int:
        """Tokens, prompt and output together, that one request can have."""
        return self._scheduler.capacity

    def submit(self, request: Request) -> None:
        """Starts a request.

        Raises:
            RecipeError: the request can never run, or the loop is closed.
            EngineError: an earlier step failed, or the engine's file was changed.
        """
        if self._forked:
            raise forked()
        self._demand_unchanged()
        self._scheduler.check(request)
        with self._lock:
            if self._closing:
                raise RecipeError("cannot run a request", found="a closed engine", fix="load the engine again")
            if self._failure is not None:
                kind = EngineError if shortage(self._failure) is None else ResourceError
                raise kind(
                    "cannot run a request on a broken engine",
                    found=f"an earlier step failed: {type(self._failure).__name__}: {self._failure}",
                    fix="load the engine again",
                ) from self._failure
            if self._thread is None:
                thread = threading.Thread(target=self._run, name="llmc-loop", daemon=True)
                thread.start()  # may fail for lack of threads: then the next request tries again
                self._thread = thread
            self._inbox.put(partial(self._scheduler.queue, request))

    def cancel(self, request: Request | None) -> None:
        """Ends a request (None: all) soon; does nothing if it is over. Any thread and destructors may call it."""
        self._inbox.put(partial(self._scheduler.cancel, request))

    def close(self) -> None:
        """Cancels all requests, waits for the thread and closes the executor; a second call only waits."""
        if self._forked:  # the lock may be held by a thread that is not here
            return
        with self._lock:
            first, self._closing = not self._closing, True
            thread = self._thread
        if thread is None:
            if first:
                self._executor.close()
            return
        self._inbox.put(lambda: None)
        if thread is not threading.current_thread():
            wait(lambda seconds: thread.join(seconds) or not thread.is_alive())

    def leave(self) -> Executor:
        """Refuse all requests in a child made by fork."""
        self._forked = True
        return self._executor

    def _run(self) -> None:
        scheduler = self._scheduler
        try:
            while not self._closing:
                if scheduler.idle:
                    self._inbox.get()()
                self._drain_inbox()
                scheduler.step()
            self._drain_inbox()
            scheduler.cancel()
            while not scheduler.idle:
                scheduler.step()
        except BaseException as error:
            with self._lock:
                # from here on `submit` refuses; requests it accepted before are in the inbox
                self._failure = error
            scheduler.fail(error)
            self._drain_inbox()
            scheduler.fail(error)
        self._executor.close()

    def _drain_inbox(self) -> None:
        while not self._inbox.empty():
            self._inbox.get()()
