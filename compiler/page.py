"""One HTML page of a dump: which passes fired, and what each changed. It needs no network and no script.

A change is shown with a few lines around it. Changes that repeat, as they do in each layer, are shown once and counted;
the whole graph after a pass is in the file beside the page.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher
from html import escape
from itertools import pairwise
from urllib.parse import quote

from ..passes.rewrite.dump import Dump, Step
from ..runtime.errors import printable

PAGE = "index.html"
_AROUND = 2
"""Unchanged lines that are shown before and after a change."""
_LONGEST_REPEAT = 160
"""Most lines of a change that is recognised as a repeat."""
_STYLE = """body{font:14px sans-serif;margin:2em}td,th{text-align:left;padding:1px 1em 1px 0;vertical-align:top}
pre{font-size:12px;overflow-x:auto;background:#f6f6f6;padding:1em}ins{background:#cfc;text-decoration:none}
del{background:#fcc;text-decoration:none}i{color:#888}"""
Row = tuple[str, str]
"""A line of a change: its mark (" ", "+", "-", or "" for a remark) and its text."""


def write_page(dump: Dump) -> None:
    """Write the page of the steps that the dump has so far."""
    passed = [(number, step) for number, step in enumerate(dump.steps) if step.report is not None]
    table = "".join(_summary(number, step) for number, step in passed)
    changes = "".join(_change(number, dump.steps) for number, step in passed if step.text)
    others = sorted(set(dump.files) - {step.file for step in dump.steps} - {PAGE})
    parts = [
        f"<!doctype html><html lang=en><meta charset=utf-8><title>llmc: passes</title><style>{_STYLE}</style>",
        "<h1>What the passes changed</h1><table>",
        "<tr><th>profile<th>phase<th>pass<th>fired<th>what it does<th>nearest miss\n",
        table,
        f"</table>{changes}<h2>Other files</h2><ul>",
        *(f"<li><a href='{quote(name)}'>{escape(name)}</a>\n" for name in others),
        "</ul></html>\n",
    ]
    dump.write(PAGE, printable("".join(parts)))


def _summary(number: int, step: Step) -> str:
    report = step.report
    assert report is not None
    name = escape(report.name)
    link = f"<a href='#{number}'>{name}</a>" if step.text else name
    rest = (str(report.fired), escape(report.reason), escape(report.nearest_miss))
    cells = (escape(report.profile or "all"), escape(report.phase), link, *rest)
    return f"<tr>{''.join(f'<td>{cell}' for cell in cells)}\n"


def _change(number: int, steps: Sequence[Step]) -> str:
    step, report = steps[number], steps[number].report
    assert report is not None
    before = next(one.text for one in reversed(steps[:number]) if one.text)
    rows = list(_rows(_lines(before), _lines(step.text)))
    added, removed = (sum(mark == sign for mark, _ in rows) for sign in "+-")
    title = f"{report.name} ({report.profile or 'all'}, {report.phase})"
    shown = "".join(map(_shown, _folded(rows)))
    return (
        f"<h2 id='{number}'>{escape(title)}</h2><p>{escape(report.reason)}<br>fired {report.fired}, "
        f"{added} lines more, {removed} less; <a href='{quote(step.file)}'>the whole graph after it</a>"
        f"<details open><summary>changes</summary><pre>{shown}</pre></details>\n"
    )


def _lines(text: str) -> list[str]:
    """The text of a graph with one input, output or value per line."""
    head, brace, nodes = text.partition("\n{")
    return [*head.replace(", ", ",\n  ").splitlines(), *(brace + nodes).lstrip("\n").splitlines()]


def _rows(before: list[str], after: list[str]) -> Iterator[Row]:
    groups = list(SequenceMatcher(None, before, after, autojunk=False).get_grouped_opcodes(_AROUND))
    ends = [(0, 0), *((group[-1][2], group[0][1]) for group in groups)]
    skipped = [groups[0][0][1]] if groups else []
    skipped += [later[1] - earlier[0] for earlier, later in pairwise(ends[1:])]
    for group, equal in zip(groups, skipped, strict=True):
        if equal:
            yield "", f"{equal} equal lines"
        for tag, i, j, k, m in group:
            if tag == "equal":
                yield from ((" ", line) for line in before[i:j])
                continue
            yield from (("-", line) for line in before[i:j])
            yield from (("+", line) for line in after[k:m])


def _folded(rows: list[Row]) -> Iterator[Row]:
    """Rows with repeats folded: rows that differ only in numbers are shown once and counted."""
    kinds = [mark + re.sub(r"\d+", "0", line) for mark, line in rows]
    at = 0
    while at < len(rows):
        length, times = _repeat(kinds, at)
        yield from rows[at : at + length]
        if times > 1:
            yield "", f"lines such as the last {length}, {times - 1} times more"
        at += length * times


def _repeat(kinds: Sequence[str], at: int) -> tuple[int, int]:
    """The repeat from row `at` that hides the most rows: its length and count."""
    best = 1, 1
    for length in range(1, min(_LONGEST_REPEAT, (len(kinds) - at) // 2) + 1):
        if kinds[at] != kinds[at + length]:
            continue
        times = 1
        while kinds[at : at + length] == kinds[at + times * length : at + (times + 1) * length]:
            times += 1
        if times > 1 and length * (times - 1) > max(1, best[0] * (best[1] - 1)):
            best = length, times
    return best


def _shown(row: Row) -> str:
    mark, line = row
    tag = {"+": "ins", "-": "del", "": "i"}.get(mark)
    text = escape(f"{mark or '...'} {line}", quote=False)
    return f"<{tag}>{text}</{tag}>\n" if tag else f"{text}\n"
