"""Step A2: the limits of this GPU: bandwidth of copies and of reading alone, and the time of a launch.

A decode step only reads, so a copy is not its ceiling. The price of a launch is that of a kernel that does nothing:
launched one by one, as a node of a graph, and both with programmatic dependent launch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any

from bringup.bench import Bench
from bringup.loading import LADDER
from bringup.step import Item, Step
from bringup.weightless import scatter
from llmc.runtime.cuda.launches import pack
from llmc.runtime.errors import LlmcError

NULL, READ = "probe_null", "probe_read"
BYTES = 4 << 30
NODES = 64
_EAGER = 512
_LEAST = 1 << 20
BLOCK_BYTES = 4 << 17
"""That a block of READ reads: WORDS of compiler/targets/cuda/kernels/probe.py."""


def context(bench: Bench) -> Mapping[str, Any]:
    """Seconds to create a context, and the GPU's attributes."""
    driver = bench.driver
    free, total = driver.memory()
    head = bench.journal.head
    return {
        **{name: head.get(name) for name in ("card", "driver", "sm", "processors", "context_s")},
        "free_gb": free / 1e9,
        "total_gb": total / 1e9,
        "shared": driver.shared,
    }


def room(bench: Bench, parts: int) -> int:
    """BYTES, or less where so many parts of it would take more than half of the free memory."""
    free, _ = bench.driver.memory()
    nbytes = BYTES
    while nbytes > _LEAST and parts * nbytes > free // 2:
        nbytes //= 2
    return nbytes


def copy(bench: Bench) -> Mapping[str, Any]:
    """Bytes/s of a copy on the GPU, read and written counted."""
    driver, stream, nbytes = bench.driver, bench.stream, room(bench, 2)
    with ExitStack() as cleanup:
        source, target = (bench.allocate(nbytes, "a copy", cleanup) for _ in range(2))
        scatter(driver, "bf16", [(source, nbytes)])
        seconds = bench.seconds(lambda: driver.copy(target, source, nbytes, stream), rounds=10)
    return {"bytes": nbytes, "ms": 1e3 * seconds, "bytes_per_s": 2 * nbytes / seconds}


def read(bench: Bench) -> Mapping[str, Any]:
    """Bytes/s of the kernel that reads BLOCK_BYTES per block, and writes one sum of each.

    Raises:
        LlmcError: it is not carried.
    """
    driver, nbytes = bench.driver, room(bench, 1)
    with ExitStack() as cleanup:
        source = bench.allocate(nbytes, "reading", cleanup)
        scatter(driver, "bf16", [(source, nbytes)])
        blocks = nbytes // BLOCK_BYTES
        sums = bench.allocate(4 * blocks, "sums", cleanup)
        launch = prepared(bench, READ, (blocks, 1, 1), (source, sums))
        seconds = bench.seconds(launch, rounds=10)
    return {"bytes": nbytes, "ms": 1e3 * seconds, "bytes_per_s": nbytes / seconds}


def prepared(
    bench: Bench, kernel: str, grid: tuple[int, int, int], addresses: tuple[int, ...], *, pdl: bool = False
) -> Callable[[], None]:
    """What launches a carried kernel that takes only addresses.

    Raises:
        LlmcError: it is not carried.
    """
    name = bench.loader.named(kernel)
    if name is None:
        raise LlmcError(f"expected carried code of {kernel}", found="none", fix="make the carry again")
    loaded = bench.loader.kernel(name)
    parameters = pack([*loaded.code.types, "*i8", "*i8"], [*addresses, 0, 0], what=kernel)
    config = bench.driver.config(grid, loaded.code.warps, loaded.code.shared, bench.stream, pdl=pdl)
    return lambda: bench.driver.launch(config, loaded.function, parameters.address, f"launch {kernel}")


def launches(bench: Bench, *, graph: bool, pdl: bool) -> Mapping[str, Any]:
    """Microseconds per launch of many that wait for each other."""
    count = NODES if graph else _EAGER
    with ExitStack() as cleanup:
        target = bench.allocate(256, "a kernel that does nothing", cleanup)
        first = prepared(bench, NULL, (1, 1, 1), (target,))
        launch = prepared(bench, NULL, (1, 1, 1), (target,), pdl=pdl)

        def many() -> None:
            first()  # what precedes it may be no kernel
            for _ in range(count - 1):
                launch()

        work = bench.captured(many, cleanup) if graph else many
        seconds = bench.seconds(work, rounds=20 if graph else 4, warm=2)
    return {"launches": count, "us": 1e6 * seconds / count}


def _items(bench: Bench) -> Iterable[Item]:
    yield Item("context", context, 20.0)
    yield LADDER
    yield Item("copy", copy, 10.0)
    yield Item("read", read, 10.0)
    for graph in (False, True):
        for pdl in (False, True):
            name = f"{'graph node' if graph else 'launch'}{', pdl' if pdl else ''}"
            yield Item(name, partial(launches, graph=graph, pdl=pdl), 5.0)


STEP = Step("ceilings", 12, _items)
