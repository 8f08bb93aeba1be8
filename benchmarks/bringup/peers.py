"""Step B3's peers: torch's products of the shapes of the carried prompt linears, in a process that imports it once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from bringup import beside
from bringup.bench import Bench
from bringup.step import Item, Step
from bringup.sweep import PROMPT

_LIMIT = 40.0


def torch_products(bench: Bench) -> Mapping[str, Any]:
    """TFLOP/s in bf16, and in FP8 with one scale per tensor and with one per row."""
    shapes = dict.fromkeys(f"{one.n}x{one.k}" for one in bench.carry.swept if one.tokens >= PROMPT)
    tokens = next(one.tokens for one in bench.carry.swept if one.tokens >= PROMPT)
    command = beside.script("gpu_torch.py", "--tokens", tokens, "--shapes", *shapes)
    found = beside.ran(command, _LIMIT - 2)
    return {"program_s": found["program_s"], **found["told"]}


def _items(bench: Bench) -> Iterator[Item]:
    if any(one.tokens >= PROMPT for one in bench.carry.swept):
        yield Item("torch", torch_products, _LIMIT)


STEP = Step("torch", 25, _items)
