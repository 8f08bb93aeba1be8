"""Call B: the tiles of the linears of decode steps, and of prompts, timed in turns (carried machine code)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from bringup import forms
from bringup.bench import Bench
from bringup.carry import Swept
from bringup.step import Item, Step

PROMPT = 1024
"""Tokens from which on a linear is one of prompts."""


def decode_items(bench: Bench) -> Iterator[Item]:
    """Linears of decode steps, in the order in which they are carried: the most wanted first."""
    yield from (_item(linear) for linear in bench.carry.swept if linear.tokens < PROMPT)


def prompt_items(bench: Bench) -> Iterator[Item]:
    """Linears over whole prompts."""
    yield from (_item(linear) for linear in bench.carry.swept if linear.tokens >= PROMPT)


def name_of(linear: Swept) -> str:
    return f"{linear.kind} {linear.n}x{linear.k} {linear.format} {linear.tokens}"


def _item(linear: Swept) -> Item:
    return Item(name_of(linear), partial(_run, linear=linear), limit=15)


def _run(bench: Bench, linear: Swept) -> Mapping[str, Any]:
    found = forms.measured(bench, linear)
    key = {name: getattr(linear, name) for name in ("kind", "n", "k", "format", "tokens", "bytes", "operations")}
    rows = found["candidates"]
    others = sum(not row["agrees"] for row in rows if "agrees" in row)
    broken = sum(not row["finite"] for row in rows if "finite" in row)
    told = {"tiles with another result": others, "tiles with numbers that are not finite": broken}
    wrong = {name: count for name, count in told.items() if count}
    return {"ok": not wrong, **wrong, **key, **forms.summary(linear, rows), **found}


DECODING, PROMPTS = Step("sweep", 75, decode_items), Step("prompts", 20, prompt_items)
