"""docs/families.md is what the table of families says; the version it names is the one that is installed."""

from __future__ import annotations

import re

from support.paths import ROOT

from llmc.compiler.coverage.document import cells, legend, page
from llmc.compiler.coverage.rows import Row


def test_the_page_is_up_to_date():
    written = (ROOT / "docs" / "families.md").read_text(encoding="utf-8")
    assert written == page(), "run `make families` and commit docs/families.md"


def test_the_version_of_transformers_is_the_installed_one():
    import transformers

    assert re.search(r"those of ([0-9.]+) in", "\n".join(legend())).group(1) == transformers.__version__  # type: ignore[union-attr]


def test_a_row_says_what_does_not_work():
    row = Row("x", "X", ("a",), ("b", "c"), ("fp8",), gaps=("d",), unsplit={"tp2": "3 heads"}, verified="nothing")
    assert cells(row) == (
        *("x", "X", "fp8", "cpu; sm_* lacks d", "no tp2: 3 heads", "nothing"),
        "a; if its config says so: b, c",
    )
