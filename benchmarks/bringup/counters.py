"""Step B7: hardware counters of a linear with few tokens, by Nsight Compute, if the machine permits it."""

from __future__ import annotations

import csv
import io
import tempfile
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from bringup import beside, forms
from bringup.bench import Bench
from bringup.carry import Swept
from bringup.code import tools
from bringup.step import Item, Step

CALL = "counted"
"""The call whose only step launches the linears that are counted."""
TOOL = "ncu"
KERNEL = "linear_small"
FORMATS = ("fp8", "nvfp4")
LAUNCHES = 3
_LIMIT = 40.0
_REFUSED = "ERR_NVGPUCTRPERM"


def counted(bench: Bench, format: str) -> Mapping[str, Any]:
    """The metrics of a few launches of the largest linear of a format, by name and launch."""
    found = next(iter(tools(TOOL)), None)
    if found is None:
        return {"skipped": f"no {TOOL} here"}
    options = ["--clock-control", "none", "--set", "basic", "-c", str(LAUNCHES), "-k", f"regex:{KERNEL}"]
    with tempfile.TemporaryDirectory(prefix="llmc-counted-") as folder:
        run = beside.script("gpu_first.py", CALL, "--carry", bench.carry.folder, "--out", folder, "--only", format)
        command = [found, *options, "--target-processes", "all", "--csv", "--page", "details", *run]
        try:
            said = beside.ran(command, _LIMIT - 2)["said"]
        except RuntimeError as error:
            if _REFUSED in str(error):
                return {"skipped": f"{TOOL} may not read counters here ({_REFUSED})"}
            raise
    if _REFUSED in said:
        return {"skipped": f"{TOOL} may not read counters here ({_REFUSED})"}
    return {"metrics": metrics(said)}


def metrics(said: str) -> dict[str, list[str]]:
    """The values of each metric, one per launch. The CSV table stands between other lines."""
    lines = said.splitlines()
    first = next((index for index, line in enumerate(lines) if line.startswith('"ID"')), len(lines))
    found: dict[str, list[str]] = {}
    for row in csv.DictReader(io.StringIO("\n".join(line for line in lines[first:] if line.startswith('"')))):
        if row.get("Metric Name"):
            found.setdefault(f"{row['Metric Name']} [{row['Metric Unit']}]", []).append(row["Metric Value"])
    return found


def largest(bench: Bench, format: str) -> Swept:
    """The linear of one token with the most bytes of weights.

    LookupError: none of the format is carried.
    """
    found = [one for one in bench.carry.swept if (one.kind, one.format) == ("small", format)]
    if not found:
        raise LookupError(f"no linear of {format} is carried")
    return max(found, key=lambda one: (-one.tokens, one.bytes))


def launched(bench: Bench, format: str) -> Mapping[str, Any]:
    """Run that linear with the heuristic's tile, so that it can be counted."""
    linear = largest(bench, format)
    found = forms.measured(bench, linear, only=1, rounds=1)
    return {"n": linear.n, "k": linear.k, **found}


def _items(bench: Bench) -> Iterator[Item]:
    yield from (Item(format, partial(counted, format=format), _LIMIT) for format in FORMATS)


STEP = Step("counters", 15, _items)
LAUNCHED = tuple(
    Step(format, 30, lambda bench, format=format: (Item(KERNEL, partial(launched, format=format)),))
    for format in FORMATS
)
