"""The table of families: every family has a row, and a row says what its records say."""

from __future__ import annotations

import pytest
from support.paths import ROOT
from support.samples.dense import SAMPLES as DENSE
from support.samples.mixtures import SAMPLES as MIXTURES

from llmc.compiler.coverage.rows import Row, example, rows, wrappers
from llmc.compiler.families import FAMILIES, REMOTE
from llmc.runtime.chips import TARGETS
from llmc.runtime.dtypes import WEIGHT_FORMATS

ROWS = {row.model_type: row for row in rows()}


def test_every_family_has_a_row():
    assert [row.architecture for row in rows()] == [*FAMILIES, *(one.architecture for one in REMOTE.values())]


def test_a_model_of_images_names_its_text_model_and_what_is_left_out():
    found = {row.model_type: row for row in wrappers()}
    assert (found["qwen3_vl"].text, found["qwen3_vl"].left_out) == ("qwen3", ("vision tower",))
    assert {row.text for row in found.values()} <= {*ROWS}
    assert [row.model_type for row in found.values() if "alone" in row.verified] == ["internvl_chat", "NVLM_D"]


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


def test_what_no_class_of_transformers_computes_says_what_was_compared():
    assert ROWS["kimi_k2"].verified == "logits of transformers, computed as `deepseek_v3`"
    assert ROWS["glm_moe_dsa"].verified == "logits of transformers, up to index_topk positions"
    assert "no more positions than an indexer chooses" in ROWS["deepseek_v32"].features


def test_what_is_called_verified_has_samples():
    """test_dense.py compares all samples; four older families have files of their own."""
    own = {path.stem.removeprefix("test_") for path in (ROOT / "tests/e2e/numbers/families").glob("test_*.py")}
    assert {family.name for family in FAMILIES.values()} <= own | {*DENSE, *MIXTURES}
