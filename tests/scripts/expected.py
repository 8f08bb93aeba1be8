"""Lines of output against the lines that a script expects, in which "..." stands for what may differ."""

from __future__ import annotations

import re
from difflib import SequenceMatcher
from functools import cache

_ANY = {"...": r"(?:(?!! |!\n|\[exit ).*\n)*", "! ...": r"(?:!.*\n)*"}
"""Lines of a script that stand for any lines of stdout, or of stderr."""
Lines = tuple[str, ...]


def matches(expected: Lines, got: Lines) -> bool:
    """True if `got` is as expected: "..." stands for any text within a line, on its own for any lines of a stream."""
    patterns = (_ANY.get(line) or ".*".join(map(re.escape, line.split("..."))) + r"\n" for line in expected)
    return re.fullmatch("".join(patterns), "".join(f"{line}\n" for line in got)) is not None


def rewritten(expected: Lines, got: Lines) -> Lines:
    """The fewest changes of the expected lines that make `got` match; lines with "..." which still match stay."""

    @cache
    def best(i: int, j: int) -> tuple[float, Lines]:
        """Cost and lines from expected line i and written line j on."""
        if i == len(expected) and j == len(got):
            return 0, ()
        options: list[tuple[float, Lines]] = []
        line, new = expected[i : i + 1], got[j : j + 1]
        fits = matches(line, new)
        if line:
            cost, rest = best(i + 1, j)
            options.append((cost, line + rest) if line[0] in _ANY else (cost + 1, rest))
        if new:
            cost, rest = best(i, j + 1)
            options.append((cost, rest) if fits and line[0] in _ANY else (cost + 0.1, new + rest))
        if line and new and line[0] not in _ANY:
            cost, rest = best(i + 1, j + 1)
            # cheaper than to drop the line, and the likest line is the cheapest
            change = 0 if fits else 1 - SequenceMatcher(None, *line, *new, autojunk=False).ratio() / 2
            options.append((cost + change, (line if fits else new) + rest))
        return min(options)

    return best(0, 0)[1]
