"""The frontier of a machine as a picture: an SVG file of its own, the same bytes for the same plan."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # so that its MARK is known before the planner is imported
    from .frontier import Place

MARK = '<svg xmlns="http://www.w3.org/2000/svg" data-llmc="plan"'
"""The first bytes of a picture."""
_WIDTH, _HEIGHT = 1000, 600
_LEFT, _RIGHT, _TOP, _BOTTOM = 90, 260, 60, 70
_COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#17becf", "#8c564b", "#e377c2")
"""Of the splits that the frontier has, the most frequent first; other splits are grey."""
_OTHER = "#c4c4c4"
_STEPS = (1, 2, 5)
_NEAR = 34
"""Pixels between labels."""


class _Axis:
    """A logarithmic axis from a tick below the least value to one above the largest."""

    def __init__(self, values: Sequence[float], start: float, stop: float) -> None:
        ticks = [step * 10.0**power for power in range(-4, 10) for step in _STEPS]
        low = max((one for one in ticks if one <= min(values)), default=ticks[0])
        high = min((one for one in ticks if one >= max(values) and one > low), default=ticks[-1])
        self.ticks = [one for one in ticks if low <= one <= high]
        self._start, self._stop, self._low, self._high = start, stop, math.log(low), math.log(high)

    def at(self, value: float) -> float:
        """Pixels of a value."""
        share = (math.log(value) - self._low) / (self._high - self._low)
        return self._start + share * (self._stop - self._start)


def picture(places: Sequence[Place], line: Sequence[Place], title: str) -> str:
    """All places of one machine as points, its frontier as a line, and a legend of the splits that the frontier has.

    `line` are the places of the frontier, at least one.
    """
    x = _Axis([one.user for one in places], _LEFT, _WIDTH - _RIGHT)
    y = _Axis([one.machine for one in places], _HEIGHT - _BOTTOM, _TOP)
    names = [one.candidate.split.name for one in line]
    ordered = sorted(dict.fromkeys(names), key=lambda name: -names.count(name))
    colours = dict(zip(ordered, _COLOURS, strict=False))
    body = [
        _text(_LEFT, 28, title, size=17, bold=True),
        *_axes(x, y, line[0].candidate.machine.name),
        *_points(places, x, y, colours),
        _line(line, x, y),
        *_labels(line, x, y),
        *_legend(colours, has_others=any(one.candidate.split.name not in colours for one in places)),
    ]
    head = f'{MARK} width="{_WIDTH}" height="{_HEIGHT}" viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif">'
    return "\n".join([head, f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>', *body, "</svg>\n"])


def _axes(x: _Axis, y: _Axis, machine: str) -> Iterator[str]:
    right, bottom = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM
    for tick in x.ticks:
        at = f"{x.at(tick):.1f}"
        yield f'<path d="M{at} {_TOP}V{bottom}" stroke="#ececec"/>'
        yield _text(x.at(tick), bottom + 18, f"{tick:g}", anchor="middle")
    for tick in y.ticks:
        at = f"{y.at(tick):.1f}"
        yield f'<path d="M{_LEFT} {at}H{right}" stroke="#ececec"/>'
        yield _text(_LEFT - 8, y.at(tick) + 4, f"{tick:,.10g}", anchor="end")
    yield f'<path d="M{_LEFT} {_TOP}V{bottom}H{right}" fill="none" stroke="#555"/>'
    middle = (_LEFT + right) / 2, (_TOP + bottom) / 2
    yield _text(middle[0], bottom + 46, "tokens/s of one request (1 / time per token)", size=13, anchor="middle")
    turned = f'transform="rotate(-90 24 {middle[1]:.1f})"'
    yield _text(24, middle[1], f"generated tokens/s of {machine}", size=13, anchor="middle", more=turned)


def _points(places: Iterable[Place], x: _Axis, y: _Axis, colours: Mapping[str, str]) -> Iterator[str]:
    """Grey ones first, so that those of the legend lie over them."""
    for one in sorted(places, key=lambda place: place.candidate.split.name in colours):
        colour = colours.get(one.candidate.split.name, _OTHER)
        name = html.escape(_name(one))
        at = f'cx="{x.at(one.user):.1f}" cy="{y.at(one.machine):.1f}"'
        yield f'<circle {at} r="3" fill="{colour}" fill-opacity="0.6"><title>{name}</title></circle>'


def _name(one: Place) -> str:
    figures = f"{one.user:.3g} tokens/s each, {one.machine:.4g} in all"
    return f"{one.candidate.profile}, {one.candidate.recipe.default_format}, {one.requests} at once: {figures}"


def _line(line: Sequence[Place], x: _Axis, y: _Axis) -> str:
    points = " ".join(f"{x.at(one.user):.1f},{y.at(one.machine):.1f}" for one in line)
    return f'<polyline points="{points}" fill="none" stroke="#222" stroke-width="1.6"/>'


def _labels(line: Sequence[Place], x: _Axis, y: _Axis) -> Iterator[str]:
    """What stands where on the frontier; a label that would lie on the one before is left out."""
    last = (math.inf, math.inf)
    for one in line:
        at = x.at(one.user), y.at(one.machine)
        if math.dist(at, last) >= _NEAR:
            text = f"{one.candidate.split.name} {one.candidate.recipe.default_format} x{one.requests}"
            yield _text(at[0] + 7, at[1] - 5, text, size=11)
            last = at


def _legend(colours: Mapping[str, str], has_others: bool) -> Iterator[str]:
    left, top = _WIDTH - _RIGHT + 110, _TOP + 6
    rows = [*((colour, name) for name, colour in colours.items()), *([(_OTHER, "other splits")] if has_others else [])]
    yield _text(left, top, "split", size=13, bold=True)
    for index, (colour, name) in enumerate(rows, 1):
        yield f'<circle cx="{left + 5}" cy="{top + 20 * index - 4}" r="5" fill="{colour}"/>'
        yield _text(left + 18, top + 20 * index, name)
    below = top + 20 * (len(rows) + 1)
    yield f'<path d="M{left} {below - 4}h12" stroke="#222" stroke-width="1.6"/>'
    yield _text(left + 18, below, "frontier")
    yield _text(left, below + 22, "xN: N requests at once", size=11)


def _text(
    x: float, y: float, text: str, *, size: int = 12, anchor: str = "start", bold: bool = False, more: str = ""
) -> str:
    weight = ' font-weight="bold"' if bold else ""
    where = f'x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}"'
    return f'<text {where} fill="#222"{weight}{" " if more else ""}{more}>{html.escape(text)}</text>'
