"""The golden probe: fixed ids and the oracle's top logits; a replay compares an engine's numbers on this machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .engine_file.file import EngineFile
from .engine_file.manifest import MEASURED
from .errors import EngineError
from .files.strict_json import loads
from .guard.limits import RUN_BYTES, demand_address_space
from .progress import debug

if TYPE_CHECKING:
    from .cuda.trust import Judge
    from .plan.executor import MakeDevice

IDS = 32
POSITIONS = 8
TOP = 8
DIGITS = 4
"""Decimals of a stored logit: the last bits are noise."""
_LARGEST = 1e30
MAX_BYTES = 8 << 10
"""Of a probe as JSON, and more: 32 ids, 64 pairs of an id and a logit."""


@dataclass(frozen=True)
class Probe:
    """Token ids, and per position of the last `POSITIONS` the oracle's largest logits as (id, logit)."""

    ids: tuple[int, ...]
    top: tuple[tuple[tuple[int, float], ...], ...]

    def to_json(self) -> dict[str, Any]:
        return {"ids": list(self.ids), "top": [[[i, v] for i, v in row] for row in self.top]}


@dataclass(frozen=True)
class ProbeReport:
    """A comparison of a profile's logits with the probe's."""

    ok: bool
    max_error: float
    """Largest error over the largest logit; of a model with experts that of the median position."""
    tolerance: float
    top1_agree: int
    """Positions at which both choose the same best token."""
    positions: int


def probe_ids(vocab: int) -> tuple[int, ...]:
    """32 fixed ids spread over the vocabulary: multiples of a prime, equal for all engines of one vocabulary size."""
    return tuple((7919 * (index + 1)) % vocab for index in range(IDS))


def probe_of(ids: tuple[int, ...], logits: np.ndarray) -> Probe:
    """The probe of the oracle's logits ``f32 [len(ids), V]``; rows of the last `POSITIONS` positions are enough."""
    rows = []
    for row in logits[-POSITIONS:]:
        best = np.argsort(-row, kind="stable")[:TOP]
        rows.append(tuple((int(i), round(float(row[i]), DIGITS)) for i in best))
    return Probe(ids, tuple(rows))


def compare(probe: Probe, logits: np.ndarray, tolerance: float, *, routed: bool = False) -> ProbeReport:
    """Compare logits ``f32 [positions, V]`` with the probe's.

    `routed`: the model has experts. Rounding changes the choice of two nearly equal ones at some position, whose logits
    then differ by a tenth and more; a wrong kernel changes all positions. So the median position counts.
    """
    expected = np.array([[value for _, value in row] for row in probe.top], np.float32)
    index = np.array([[i for i, _ in row] for row in probe.top])
    rows = logits[-len(probe.top) :]
    found = np.take_along_axis(rows, index, axis=1)
    finite = bool(np.isfinite(logits).all())
    errors = np.abs(found - expected).max(axis=1) / max(np.abs(expected).max(), 1e-9)
    error = float(np.median(errors) if routed else errors.max()) if finite else float("inf")
    agree = int((rows.argmax(axis=1) == index[:, 0]).sum())
    return ProbeReport(error <= tolerance, error, tolerance, agree, len(probe.top))


def read_probe(engine: EngineFile) -> Probe:
    """The probe of an engine.

    Raises:
        EngineError: the section is missing or malformed.
    """
    data = loads(engine.section(MEASURED), what=f"{engine.path}: {MEASURED}", error=EngineError)
    model = engine.manifest.model
    wrong = _fault(data, model.vocab_size, min(IDS, model.max_context))
    if wrong:
        raise EngineError(f"cannot read the golden probe of {engine.path}", found=wrong, fix="build the engine again")
    ids, top = data["probe"]["ids"], data["probe"]["top"]
    return Probe(tuple(ids), tuple(tuple((i, float(logit)) for i, logit in row) for row in top))


def _fault(data: Any, vocab: int, most: int) -> str:
    """Why `data` is not {"probe": {"ids": [id ...], "top": [[[id, logit] ...] ...]}}, or ""."""
    probe = data.get("probe") if isinstance(data, Mapping) else None
    if not isinstance(probe, Mapping) or probe.keys() != {"ids", "top"}:
        return "no object with ids and top"
    ids, top = probe["ids"], probe["top"]
    if not isinstance(ids, list) or not 0 < len(ids) <= most or not all(_is_id(i, vocab) for i in ids):
        return f"ids that are not 1 to {most} numbers below {vocab}"
    if not isinstance(top, list) or not 0 < len(top) <= len(ids) or not all(_is_row(row, vocab) for row in top):
        return f"top that is not 1 to {len(ids)} lists of [id, logit]"
    return "" if len({len(row) for row in top}) == 1 else "rows of different lengths"


def _is_id(value: Any, vocab: int) -> bool:
    return type(value) is int and 0 <= value < vocab


def _is_row(row: Any, vocab: int) -> bool:
    return (
        isinstance(row, list)
        and 0 < len(row) <= TOP
        and all(isinstance(pair, list) and len(pair) == 2 and _is_id(pair[0], vocab) for pair in row)
        and all(type(logit) in (int, float) and abs(logit) < _LARGEST for _, logit in row)
    )


def replay(
    path: str | Path,
    profile: str | None = None,
    *,
    threads: int | None = None,
    make_device: MakeDevice | None = None,
    judge: Judge | None = None,
) -> ProbeReport:
    """Run an engine's probe through one of its profiles on this machine, or on the substitute of a GPU.

    `judge` is asked before a GPU is given machine code.

    Raises:
        EngineError: the engine is damaged or has no such profile, or its logits are not finite.
        ResourceError: the profile does not fit this machine.
    """
    from .load import open_executor
    from .profiles import choose, why
    from .scheduling.executor import ScheduledSequence

    demand_address_space(RUN_BYTES, f"load {path}")
    with EngineFile.open(path) as engine:
        name, reasons = choose(engine, profile, simulated=make_device is not None)
        debug(1, why(engine, name, reasons))
        probe = read_probe(engine)
        executor = open_executor(engine, name, threads=threads, max_batch=1, make_device=make_device, judge=judge)
        try:
            ids, blocks, rows = probe.ids, ((0,),) * len(executor.caches), []
            most = min(executor.max_prefill, executor.max_rows)  # a short window takes fewer than IDS at once
            for start in range(0, len(ids), most):
                part = ids[start : start + most]
                scheduled = ScheduledSequence(0, part, start, blocks, None, len(ids), rows="all")
                (output,) = executor.collect(executor.submit((scheduled,)))
                assert output.logits is not None
                rows.append(output.logits)
            engine.demand_unchanged()
        finally:
            executor.close()
        facts = engine.manifest
        routed = facts.model.active_parameters is not None
        return compare(probe, np.concatenate(rows), facts.profiles[name].tolerance, routed=routed)
