"""The tree as rooms: each folder says what it is for, holds about a dozen files, and its tests lie where it lies."""

from __future__ import annotations

import re
from collections import defaultdict
from itertools import combinations
from pathlib import Path

import pytest
from repo.imports import package_files
from support.paths import PACKAGE, ROOT

FILES = package_files()
ROOMS = sorted({path.parent for path in FILES})
LOOSE = 12
"""Files of a folder, its face aside."""
README_LINES = 10
ENDINGS = ("", "e", "s", "es", "d", "ed", "er", "or", "ing", "ion", "ation", "ition", "ment", "al", "able", "ity")
SHORTEST_STEM = 3
MOVED = ROOT / "docs" / "moved.md"


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("room", [*ROOMS, ROOT / "tests"], ids=relative)
def test_a_room_opens_with_a_readme(room: Path):
    lines = (room / "README.md").read_text(encoding="utf-8").splitlines()
    assert 3 <= len(lines) <= README_LINES
    text = "\n".join(lines)
    for word in ("In:", "Out:", "Open first:"):
        assert word in text
    named = re.findall(r"`([\w./]+\.(?:py|yaml|md))`", text.partition("Open first:")[2])
    assert named and all((room / name).exists() or (ROOT / name).exists() for name in named), named


TEST_ROOMS = sorted({path.parent for path in (ROOT / "tests").rglob("*.py")})


@pytest.mark.parametrize("room", [*ROOMS, *TEST_ROOMS], ids=relative)
def test_a_room_holds_about_a_dozen_files(room: Path):
    loose = [path.name for path in room.glob("*.py") if path.name != "__init__.py"]
    assert len(loose) <= LOOSE, loose


def alike(one: str, other: str) -> bool:
    """Whether two names are one stem with different endings, such as generate and generation."""
    stem = min(len(one), len(other))
    while one[:stem] != other[:stem]:
        stem -= 1
    return any(
        one[cut:] in ENDINGS and other[cut:] in ENDINGS for cut in range(stem, max(SHORTEST_STEM, stem - 2) - 1, -1)
    )


def test_no_two_files_differ_by_an_ending():
    stems = sorted({path.stem for path in FILES} - {"__init__"})
    assert len(stems) > 100
    assert [pair for pair in combinations(stems, 2) if alike(*pair)] == []


def test_the_check_finds_names_that_differ_by_an_ending():
    found = [alike(*pair) for pair in [("generate", "generation"), ("price", "pricing"), ("sample", "sampler")]]
    assert found == [True, True, True]
    assert not alike("compile", "compute") and not alike("test", "text") and not alike("plan", "plate")


def test_unit_tests_lie_where_the_code_lies():
    """`unit/a/test_b.py` and `unit/a/test_b_more.py` test `a/b.py`, or the room `a` where b is its name."""
    unit, lost = ROOT / "tests" / "unit", []
    for test in sorted(unit.rglob("test_*.py")):
        room, name = ROOT / test.parent.relative_to(unit), test.stem.removeprefix("test_")
        names = {room.name, *(path.stem for path in room.glob("*.py"))}
        if not any(name == one or name.startswith(f"{one}_") for one in names):
            lost.append(relative(test))
    assert lost == []


def moves() -> dict[str, list[str]]:
    """Old path to new ones, from the tables of docs/moved.md."""
    found = defaultdict(list)
    for line in MOVED.read_text(encoding="utf-8").splitlines():
        if row := re.fullmatch(r"\| `([^`]+)`[^|]* \| (.+) \|", line):
            found[row[1]] += re.findall(r"`([^`]+\.\w+)`", row[2])
    return found


def test_what_has_moved_is_where_the_map_says():
    table = moves()
    assert len(table) > 150
    for old, new in table.items():
        assert new and [path for path in new if not (ROOT / path).exists()] == [], old
        assert old in new or not (ROOT / old).exists(), f"{old} is still there"


def test_the_root_has_these_folders():
    """A folder beside them would be a layer that no test knows."""
    known = {*PACKAGE, "benchmarks", "docs", "examples", "findings", "tests", "build", "dist"}
    assert {path.parent.name for path in ROOT.glob("*/__init__.py")} - known == set()
