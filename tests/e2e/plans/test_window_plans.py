"""Launch plans of layers with a window: their rings of blocks wrap, and interpreted logits stay the oracle's."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from support.engines import quantized_logits, relative, some_ids
from support.samples.windowed import FAMILY, FULL, SLIDING, windowed_checkpoint

import llmc
from llmc.compiler.families import FAMILIES
from llmc.compiler.targets.cuda import emit
from llmc.compiler.targets.simulate.device import SimulatedDevice
from llmc.runtime.engine_file.file import EngineFile
from llmc.runtime.plan.executor import PagedExecutor
from llmc.runtime.plan.plan import KVCache
from llmc.runtime.scheduling.executor import CacheKind, ScheduledSequence
from llmc.runtime.scheduling.kept import KeptPool
from llmc.runtime.scheduling.request import Request
from llmc.runtime.scheduling.scheduler import Scheduler

BOUND = 3e-2
VOCAB, WINDOW, CONTEXT, CHUNK = 512, 64, 512, 64


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A layer with a window and one without; chunks of 64 tokens make rings of three blocks, a context has eight."""
    folder = tmp_path_factory.mktemp("windows")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(FAMILIES, FAMILY.architecture, FAMILY)
        patch.setattr(emit, "MAX_PREFILL", CHUNK)
        checkpoint = windowed_checkpoint(folder / "c", WINDOW, SLIDING, FULL, max_position_embeddings=CONTEXT)
        targets = ["cpu", "sm_90"]
        yield llmc.build(checkpoint, folder / "e.llmc", targets=targets, max_batch=2, quantize="none")


def opened(path: Path) -> PagedExecutor:
    return PagedExecutor(EngineFile.open(path), "sm_90", SimulatedDevice, max_batch=None)


def ids(count: int, seed: int) -> list[int]:
    return some_ids(count, seed, VOCAB)


def oracle(path: Path, tokens: list[int]) -> np.ndarray:
    return quantized_logits(path, "none", tokens, path.parent / "c")


def test_a_ring_that_wraps_gives_the_oracles_logits(engine: Path):
    executor = opened(engine)
    assert executor._plan.caches == (KVCache(8), KVCache(3, WINDOW)) and isinstance(executor.pool(), KeptPool)
    assert executor.caches == (CacheKind(16), CacheKind(6, 192, WINDOW))
    prompt, rows = ids(300, 1), []
    for start, stop in ((0, 63), (63, 127), (127, 128), (128, 192), (192, 250), (250, 299), (299, 300)):
        tokens = tuple(prompt[start:stop])
        scheduled = ScheduledSequence(0, tokens, start, ((3, 0, 2, 5, 7), (4, 1, 2)), None, len(prompt), rows="all")
        (output,) = executor.collect(executor.submit((scheduled,)))
        rows.append(output.logits)
    executor.close()
    assert relative(np.concatenate(rows), oracle(engine, prompt)) < BOUND


def test_requests_at_once_keep_to_their_rings(engine: Path):
    requests = [Request(tuple(ids(count, count)), 4) for count in (190, 5)]
    executor = opened(engine)
    scheduler = Scheduler(executor)
    for request in requests:
        scheduler.add(request)
    while not scheduler.idle:
        scheduler.step()
    assert scheduler.free_blocks == (16, 6)
    executor.close()
    check(engine, requests)


def check(engine: Path, requests: list[Request]) -> None:
    """Each token is the oracle's choice, or within the bound of it."""
    for request in requests:
        request.wait()
        rows = oracle(engine, [*request.prompt, *request.tokens])[len(request.prompt) - 1 : -1]
        margin = rows.max(axis=1) - rows[np.arange(len(request.tokens)), request.tokens]
        assert (margin <= 2 * BOUND * np.abs(rows).max()).all()


def test_the_next_turn_continues_blocks_and_ring(engine: Path):
    """Of 192 positions in the ring the window is 64: an answer that is taken back stays within the other 128."""
    executor = opened(engine)
    scheduler = Scheduler(executor)
    requests = [scheduler.add(Request(tuple(ids(230, 3)), 4))]
    for back, cached in ((0, 233), (3, 239), (130, 0)):
        while not scheduler.idle:
            scheduler.step()
        spoken = (*requests[-1].prompt, *requests[-1].tokens)
        requests.append(scheduler.add(Request((*spoken[: len(spoken) - back], *ids(5, back)), 3)))
        scheduler.step()
        assert requests[-1].lease.cached == cached
    while not scheduler.idle:
        scheduler.step()
    assert scheduler.free_blocks == (16, 6)
    executor.close()
    check(engine, requests)
