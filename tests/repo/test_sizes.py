"""Sizes: a file that outgrows one page of thought holds two subjects."""

from __future__ import annotations

import pytest
from repo.sizes import HELD, SLACK, code_lines, sizes
from support.paths import PACKAGE, ROOT

FOLDERS = (*PACKAGE, "tests")
LARGEST = 400


@pytest.mark.parametrize("folder", (".", *FOLDERS))
def test_no_file_has_more_than_400_lines(folder: str):
    paths = (ROOT / folder).glob("*.py") if folder == "." else (ROOT / folder).rglob("*.py")
    sizes = {str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines()) for path in paths}
    assert sizes, f"no files in {folder}: the test looks in the wrong place"
    assert {name: lines for name, lines in sizes.items() if lines > LARGEST} == {}


@pytest.mark.parametrize("folder", (".", *FOLDERS))
def test_every_file_says_first_why_it_exists(folder: str):
    paths = (ROOT / folder).glob("*.py") if folder == "." else (ROOT / folder).rglob("*.py")
    assert [str(p) for p in paths if not p.read_text(encoding="utf-8").startswith(('"""', 'r"""'))] == []


def test_no_folder_grows_unsaid():
    """More code than its number: raise it in the same commit, with the reason beside it. Much less: lower it."""
    found = sizes()
    assert found.keys() == HELD.keys(), "folders without a number, or numbers without a folder"
    grown = {folder: (lines, HELD[folder]) for folder, lines in found.items() if lines > HELD[folder]}
    shrunk = {folder: (lines, HELD[folder]) for folder, lines in found.items() if lines < HELD[folder] - SLACK}
    assert (grown, shrunk) == ({}, {})


def test_comments_docstrings_and_blanks_are_no_code():
    documented = '"""Why."""\n\nX = """two\nlines"""  # a remark\n"""What X is."""\n\n\n'
    source = documented + 'def f():\n    """Doc."""\n    # no\n    return (\n        1\n    )\n'
    assert code_lines(source) == 2 + 1 + 3
    assert code_lines("") == 0
