"""The picture of docs/planner.md: predicted against published throughput, as SVG of logarithmic axes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any
from xml.sax.saxutils import escape

_SIZE, _LEFT, _TOP, _ROOM = 560, 70, 20, 240
"""Of the square of the axes, in pixels; and what is beside it."""
_LEAST, _MOST = 40.0, 100000.0
_TICKS = (100, 300, 1000, 3000, 10000, 30000)
_COLOURS = (
    "#777777",
    "#0060c0",
    "#c05000",
    "#108040",
    "#8030a0",
    "#b00050",
    "#806000",
    "#009090",
    "#d08000",
    "#303090",
    "#60a0a0",
)
_BAND = 0.25
"""The lines beside that of equality: predictions that are 25 % too high or too low."""


def drawn(found: Mapping[str, Any]) -> str:
    """`found` is what `evaluate.evaluated` gives."""
    width, height = _LEFT + _SIZE + _ROOM, _TOP + _SIZE + 50
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        *_axes(),
        *(_diagonal(factor) for factor in (1.0, 1 + _BAND, 1 - _BAND)),
    ]
    for number, table in enumerate(found["tables"]):
        lines += _points(table, _COLOURS[number])
        lines += _legend(table, number)
    return "\n".join([*lines, "</svg>", ""])


def _place(value: float) -> float:
    """Pixels along an axis."""
    return _SIZE * math.log(value / _LEAST) / math.log(_MOST / _LEAST)


def _x(value: float) -> str:
    return f"{_LEFT + _place(value):.1f}"


def _y(value: float) -> str:
    return f"{_TOP + _SIZE - _place(value):.1f}"


def _axes() -> Iterator[str]:
    yield f'<rect x="{_LEFT}" y="{_TOP}" width="{_SIZE}" height="{_SIZE}" fill="none" stroke="black"/>'
    bottom, right = _TOP + _SIZE, _LEFT + _SIZE
    for tick in _TICKS:
        yield f'<path d="M{_x(tick)} {_TOP}V{bottom}M{_LEFT} {_y(tick)}H{right}" stroke="#dddddd"/>'
        yield f'<text x="{_x(tick)}" y="{bottom + 17}" text-anchor="middle">{tick:,}</text>'
        yield f'<text x="{_LEFT - 6}" y="{_y(tick)}" dy="4" text-anchor="end">{tick:,}</text>'
    middle = _TOP + _SIZE / 2
    yield f'<text x="{_LEFT + _SIZE / 2:.0f}" y="{bottom + 40}" text-anchor="middle">published, tokens/s</text>'
    turned = f'transform="rotate(-90 14 {middle:.0f})"'
    yield f'<text x="14" y="{middle:.0f}" {turned} text-anchor="middle">predicted, tokens/s</text>'


def _diagonal(factor: float) -> str:
    first, last = max(_LEAST, _LEAST / factor), min(_MOST, _MOST / factor)
    style = 'stroke="black"' if factor == 1 else 'stroke="#999999" stroke-dasharray="5 4"'
    return f'<path d="M{_x(first)} {_y(first * factor)}L{_x(last)} {_y(last * factor)}" fill="none" {style}/>'


def _points(table: Mapping[str, Any], colour: str) -> Iterator[str]:
    """A disc for each figure, and a ring for what it is with the term that llmc's plans lack."""
    for row in table["rows"]:
        published = row["published"]
        named = f"{row['model']}, {row['machine']}, {row['split']}, {row['format']}, {row['input']}|{row['output']}"
        for key, style in (("predicted", f'fill="{colour}"'), ("with_missing", f'fill="none" stroke="{colour}"')):
            if key in row:
                title = escape(f"{named}: {row[key]:,.0f} of {published:,.0f}")
                at = f'cx="{_x(published)}" cy="{_y(row[key])}"'
                yield f'<circle {at} r="3.5" {style}><title>{title}</title></circle>'


def _legend(table: Mapping[str, Any], number: int) -> Iterator[str]:
    x, y = _LEFT + _SIZE + 16, _TOP + 14 + 40 * number
    yield f'<circle cx="{x}" cy="{y - 4}" r="3.5" fill="{_COLOURS[number]}"/>'
    yield f'<text x="{x + 10}" y="{y}">{escape(table["title"])}</text>'
    text = f"{table['role']}, median error {100 * table['median']:.0f} %"
    yield f'<text x="{x + 10}" y="{y + 15}" fill="#555555">{escape(text)}</text>'
    if number == len(_COLOURS) - 1:
        y += 48
        yield f'<circle cx="{x}" cy="{y - 4}" r="3.5" fill="none" stroke="black"/>'
        yield f'<text x="{x + 10}" y="{y}">with the term that llmc lacks</text>'
        yield f'<text x="{x + 10}" y="{y + 22}">dashed: 25 % too high, too low</text>'
