"""The table of families: every family has a row, and a row says what its records say."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.paths import ROOT

from llmc.compiler.coverage.rows import Row, example, rows
from llmc.compiler.families import FAMILIES
from llmc.runtime.chips import TARGETS
from llmc.runtime.dtypes import WEIGHT_FORMATS

ROWS = {row.model_type: row for row in rows()}
NUMBERS = ROOT / "tests" / "e2e" / "numbers"


def test_every_family_has_a_row():
    assert [row.architecture for row in ROWS.values()] == [*FAMILIES]


def test_a_row_tells_what_all_configs_have_from_what_some_turn_on():
    qwen3 = ROWS["qwen3"]
    assert qwen3.features == ("qk-norm of each head",)
    assert qwen3.optional == ("biases of q, k and v", "bias of the output", "windows")
    assert (qwen3.formats, qwen3.gaps, qwen3.unsplit, qwen3.targets) == (WEIGHT_FORMATS, (), {}, TARGETS)


def test_a_family_with_a_gap_is_for_cpus_only():
    row = Row("x", "X", (), (), (), gaps=("capped logits",), unsplit={}, verified="")
    assert row.targets == ("cpu",)


@pytest.mark.parametrize("family", FAMILIES.values(), ids=lambda family: family.name)
def test_an_example_has_keys_of_its_family_only(family):
    from llmc.compiler.config.keys import COMMON

    assert {*example(family)} <= COMMON.union(family.defaults, family.example)


@pytest.mark.parametrize("family", FAMILIES.values(), ids=lambda family: family.name)
def test_what_is_called_verified_has_a_test(family):
    """A family's numbers are compared in tests/e2e/numbers/families, by its model type."""
    texts = [path.read_text(encoding="utf-8") for path in Path(NUMBERS).rglob("*.py")]
    assert any(f'"{family.name}"' in text for text in texts)
