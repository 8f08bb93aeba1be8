"""Cache-sized chunks over all cores: why quantizing runs at a fraction of memory speed with plain torch operators.

A format is a chain of twenty cheap passes. Over a whole tensor each pass would go through memory; over a chunk it stays
in the cache. The chunks are spread over threads of our own, because starting torch's thread team for every pass costs
more than the pass. Every pass is elementwise or a maximum, so neither chunk size nor thread count changes a bit.
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
"""Weights per chunk. Its float32 and int16 copies (1.5 MiB) stay in cache; half of it costs up to a third in calls."""


_cores = functools.cache(cpu_count)
_local = threading.local()


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    """Threads in which torch itself stays serial.

    The first call of `get_num_threads` in a thread overwrites its setting with the process's, so it comes before ours;
    all threads start here and the process's own setting is put back once.
    """
    started = threading.Barrier(threads + 1)

    def start() -> None:
        torch.get_num_threads()
        torch.set_num_threads(1)
        _local.inside = True
        started.wait()

    before = torch.get_num_threads()
    pool = ThreadPoolExecutor(threads, thread_name_prefix="llmc-quantize", initializer=start)
    for _ in range(threads):
        pool.submit(int)
    started.wait()
    torch.set_num_threads(before)
    return pool


def result(shape: tuple[int, ...], dtype: np.dtype | type) -> tuple[np.ndarray, torch.Tensor]:
    """An uninitialised array and the tensor over it. numpy asks for huge pages, which makes the first touch of a large
    result three times cheaper than in a tensor of torch's own."""
    array = np.empty(shape, dtype)
    return array, torch.from_numpy(array)


def each_chunk(units: int, weights_per_unit: int, worker: Callable[[Iterator[slice], int], None]) -> None:
    """Run `worker(slices, most)` on every core until the slices of range(units) are used up.

    A unit (a row, a block) is never split. Each worker draws slices of at most `most` units from one shared iterator,
    so a busy core takes fewer; it allocates its scratch once. The first exception of a worker is raised here. Called
    from a task of `on_all_cores`, it is serial.
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
    """Run every task, in no order, in threads where torch and `each_chunk` are serial; raises the first exception."""
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
