"""Sizes: a file that outgrows one page of thought holds two subjects."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("cli", "compiler", "passes", "quantize", "recipes", "runtime", "tests")
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
