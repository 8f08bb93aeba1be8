"""Cache-sized chunks over all cores, so that quantizing with plain torch operators is not bound by memory.

A format is a chain of about twenty cheap passes. Over a whole tensor each pass would read and write memory; a chunk
stays in the cache. The chunks are spread over our own threads, because to start torch's thread team for a pass takes
longer than the pass. Each pass is elementwise or a maximum, so chunk size and thread count change no bit of the result.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import torch

from ..runtime.machine import cpu_count

Task = TypeVar("Task")

CHUNK = 1 << 18
"""Weights per chunk. The float32 and int16 copies (1.5 MiB) stay in cache; half the chunk was up to a third slower."""


_cores = functools.cache(cpu_count)
_local = threading.local()


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    """Threads in which torch itself is serial.

    The first call of `get_num_threads` in a thread overwrites the thread's setting with the process's, so it is called
    before `set_num_threads`. All threads start here; then the process's own setting is restored.
    """
    started = threading.Barrier(threads + 1)

    def start() -> None:
        torch.get_num_threads()
        torch.set_num_threads(1)
        _local.inside = True
        started.wait()

    before = torch.get_num_threads()
    pool = ThreadPoolExecutor(threads, thread_name_prefix="llmc-quantize", initializer=start)
    try:
        for _ in range(threads):
            pool.submit(int)
    except BaseException:  # for lack of threads: those that wait would wait for ever, and the process with them
        started.abort()
        raise
    started.wait()
    torch.set_num_threads(before)
    return pool


def result(shape: tuple[int, ...], dtype: np.dtype | type) -> tuple[np.ndarray, torch.Tensor]:
    """An uninitialised array, and a tensor over the same memory. numpy allocates large arrays in huge pages, so the
    first write is three times faster than to a tensor that torch allocates."""
    array = np.empty(shape, dtype)
    return array, torch.from_numpy(array)


def each_chunk(units: int, weights_per_unit: int, worker: Callable[[Iterator[slice], int], None]) -> None:
    """Run `worker(slices, most)` on every core, until all slices of range(units) are done.

    A unit (a row, a block) is never split. Each worker takes slices of at most `most` units from one shared iterator,
    so a busy core takes fewer, and allocates its scratch memory once. The first exception of a worker is raised here.
    Within a task of `on_all_cores` this is serial.
    """
    most = min(max(1, CHUNK // weights_per_unit), max(1, units))
    starts = iter(range(0, units, most))  # next() on a range iterator is one atomic step
    threads = _cores()

    def slices() -> Iterator[slice]:
        for start in starts:
            yield slice(start, min(start + most, units))

    def work() -> None:
        with torch.inference_mode():
            worker(slices(), most)

    if getattr(_local, "inside", False):
        work()
        return
    workers = min(threads, -(-units // most))
    for future in [_pool(threads).submit(work) for _ in range(workers)]:
        future.result()


def on_all_cores(tasks: Iterable[Task], run: Callable[[Task], None]) -> None:
    """Run all tasks, in no order, in threads where torch and `each_chunk` are serial; raises the first exception."""
    left, lock = iter(tasks), threading.Lock()

    def work() -> None:
        with torch.inference_mode():
            while True:
                with lock:
                    task = next(left, None)
                if task is None:
                    return
                run(task)

    threads = _cores()
    for future in [_pool(threads).submit(work) for _ in range(threads)]:
        future.result()
