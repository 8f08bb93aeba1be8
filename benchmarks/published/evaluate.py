"""Every published figure beside the planner's, as JSON."""

from __future__ import annotations

from collections.abc import Iterable
from statistics import median
from typing import Any

from llmc.compiler.planner.rates import Rates

from . import figures, predict
from .ablation import missing
from .figures import Deployment, Figure, Latency, Table


def evaluated(rates: Rates) -> dict[str, Any]:
    latencies = [_latency(row, rates) for row in (*figures.LATENCIES, *figures.MORE_LATENCIES)]
    return {
        "constants": vars(rates),
        "tables": [_table(table, rates) for table in figures.TABLES],
        "ratios": {"source": figures.RATIOS_SOURCE, "rows": [ratio(name, rates) for name in figures.RATIOS]},
        "latencies": {"source": figures.LATENCIES_SOURCE, "rows": latencies},
        "not_priced": figures.NOT_PRICED,
    }


def summary(ratios: Iterable[float]) -> dict[str, float]:
    """Median and worst |predicted / published - 1|."""
    found = [abs(one - 1) for one in ratios]
    return {"median": round(median(found), 4), "worst": round(max(found), 4)}


def _table(table: Table, rates: Rates) -> dict[str, Any]:
    rows = [_row(one, rates) for one in table.figures]
    found = {"title": table.title, "role": table.role, "source": table.source}
    more = {}
    if all("missing" in one for one in rows):
        more["with_missing"] = summary(one["with_missing"] / one["published"] for one in rows)
    return {**found, **summary(one["predicted"] / one["published"] for one in rows), **more, "rows": rows}


def _row(figure: Figure, rates: Rates) -> dict[str, Any]:
    made = predict.throughput(figure, rates)
    lacks = missing(figure)
    more = {} if lacks is None else {"missing": lacks[0], "with_missing": _rounded(lacks[1](figure, rates))}
    return {
        **_deployment(figure.deployment),
        "input": figure.input,
        "output": figure.output,
        "requests": made.sequences,
        "published": figure.tokens_per_s,
        "predicted": _rounded(made.decode),
        "bound": made.bound,
        **more,
    }


def ratio(name: str, rates: Rates) -> dict[str, Any]:
    """Tokens/s of TENSOR and PIPELINE, and how much faster the faster is, of "latency" or "throughput"."""
    input, output = figures.RATIOS_LOADS[name]
    found = [_speed(one, name == "latency", input, output, rates) for one in (figures.TENSOR, figures.PIPELINE)]
    return {
        "name": name,
        "input": input,
        "output": output,
        "published": figures.RATIOS[name],
        "published_tokens_per_s": figures.ABSOLUTE[name],
        "predicted": round(max(found) / min(found), 3),
        "predicted_tokens_per_s": [_rounded(one) for one in found],
    }


def _speed(deployment: Deployment, alone: bool, input: int, output: int, rates: Rates) -> float:
    requests = 1 if alone else predict.room(deployment, input, output)
    return predict.served(deployment, input, output, requests, rates).decode


def _latency(row: Latency, rates: Rates) -> dict[str, Any]:
    made = predict.latency(row, rates)
    mixed = predict.served(row.deployment, row.input, row.output, row.requests, rates)
    return {
        **_deployment(row.deployment),
        "engine": row.engine,
        "role": figures.HELD_OUT if row in figures.LATENCIES else figures.REPORTED,
        "schedule": "waves" if row.waves else "mixed",
        "input": row.input,
        "output": row.output,
        "requests": row.requests,
        "published_tpot_ms": row.tpot_ms,
        "predicted_tpot_ms": _rounded(made.tpot * 1e3),
        "mixed_tpot_ms": _rounded(mixed.tpot * 1e3),
        "published_ttft_ms": row.ttft_ms,
        "predicted_ttft_ms": _rounded(made.ttft * 1e3),
    }


def _deployment(found: Deployment) -> dict[str, Any]:
    machine = f"{found.gpus}x{found.chip}"
    return {"model": found.model, "machine": machine, "split": found.split, "format": found.recipe}


def _rounded(value: float) -> float:
    """To four digits."""
    return float(f"{value:.4g}")
