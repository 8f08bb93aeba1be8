"""Experts that files store in mxfp4 (GPT-OSS as published): kept to the byte, and computed as transformers does."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.engines import checkpoint_logits
from support.samples.families import CONFIG, Case, check_format, difference, some_ids, write
from support.samples.mixtures.gpt_oss import EXPERTS
from support.samples.mixtures.published import Tensors, publish, stored, unpacked

import llmc
from llmc.compiler.build import build
from llmc.compiler.checkpoint.account import open_source
from llmc.compiler.engine import weights
from llmc.compiler.engine.layout import default_reserve, lay_out
from llmc.compiler.pipeline import lower
from llmc.compiler.planner.build_price import build_sizes
from llmc.recipes.recipe import QuantizeRule, Recipe
from llmc.runtime.engine_file.file import EngineFile
from llmc.runtime.errors import CheckpointError, LlmcError, RecipeError, Unsupported

CASE = Case({**EXPERTS, "intermediate_size": 96, "num_local_experts": 4, "num_experts_per_tok": 4}, torch.bfloat16)
"""All experts are chosen, so that the CPU's rounding of activations chooses no other ones."""
BOUND = 4e-5
GATE_UP = "model.layers.0.mlp.experts.gate_up_proj"


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("published")
    return publish(write(folder / "plain", "gpt_oss", CASE), folder / "c")


def test_transformers_computes_the_same_from_the_same_files(published: Path, tmp_path: Path) -> None:
    """transformers decodes the blocks while it loads them; llmc's oracle decodes them where it multiplies."""
    from transformers import AutoModelForCausalLM
    from transformers.utils.quantization_config import Mxfp4Config

    ids = some_ids(40, 5, CONFIG["vocab_size"])
    load: Any = AutoModelForCausalLM.from_pretrained
    model = load(published, dtype=torch.bfloat16, quantization_config=Mxfp4Config(dequantize=True)).float().eval()
    with torch.no_grad():
        expected = model(torch.tensor([ids]), use_cache=False).logits[0].numpy()
    found = checkpoint_logits(published, ids)
    assert difference(found, expected) < BOUND
    assert difference(found, checkpoint_logits(unpacked(published, tmp_path / "plain"), ids)) < BOUND


@pytest.mark.parametrize("quantize", ["none", "int4", "fp8"])
def test_an_engine_agrees_with_its_oracle_whatever_other_weights_are_in(
    published: Path, tmp_path: Path, quantize: str
) -> None:
    check_format(published, quantize, tmp_path, 40)


def test_ranks_say_what_one_process_does(published: Path, tmp_path: Path) -> None:
    """But for the rounding of activations to int8, which a whole mixture and its parts do in other kernels."""
    path = llmc.build(published, tmp_path / "a.llmc", quantize="int8", parallel=["tp1", "ep2"], max_context=48)
    found = []
    for profile in ("cpu", "cpu-ep2"):
        with llmc.load(path, profile=profile) as engine:
            found.append(engine.logits(some_ids(20, 5, CONFIG["vocab_size"])))
    assert difference(found[1], found[0]) < 2e-2


def test_the_price_of_a_build_counts_them_as_they_are_stored(published: Path) -> None:
    source, recipe = open_source(published), Recipe(default_format="int8")
    tensors = lower(source, recipe, 48)[0].graph.canonical
    groups = weights.groups(tensors)
    sizes = build_sizes(source, recipe, 48, sections=5)
    assert sizes.bytes == lay_out(groups, default_reserve(groups, 5), None)[0].end
    assert sum(sizes.source_bytes.values()) == weights.source_bytes(tensors, source.source)


def test_codes_and_scales_are_those_of_the_files(published: Path, tmp_path: Path) -> None:
    report = build(open_source(published), tmp_path / "a.llmc", Recipe(default_format="int8"))
    assert "experts stay in mxfp4, as the files store them (4 stacks); int8 is for other weights" in report.warnings
    files = stored(published)
    with EngineFile.open(report.path) as engine:
        for part, suffix in (("blocks", "weight"), ("scales", "weight_scale")):
            found = engine.tensor(f"{GATE_UP}.{suffix}")
            assert found.tobytes() == files[f"{GATE_UP}_{part}"].numpy().tobytes()


def test_rules_for_other_linears_apply(published: Path, tmp_path: Path) -> None:
    recipe = Recipe(rules=(QuantizeRule("*.self_attn.*", "int8"), QuantizeRule("*.experts.*", "mxfp4")))
    report = build(open_source(published), tmp_path / "a.llmc", recipe)
    with EngineFile.open(report.path) as engine:
        dtypes = {name: info.dtype for name, info in engine.tensors.items()}
    assert dtypes["model.layers.0.self_attn.q_proj.weight"] == "U8"
    assert dtypes["lm_head.weight"] == "BF16"
    assert dtypes[f"{GATE_UP}.weight_scale"] == "F8_E8M0"
    assert not [one for one in report.warnings if "experts stay" in one]


@pytest.mark.parametrize("fmt", ["int4", "none"])
def test_a_rule_for_stored_experts_alone_is_refused(published: Path, tmp_path: Path, fmt: str) -> None:
    with pytest.raises(RecipeError) as caught:
        build(open_source(published), tmp_path / "a.llmc", Recipe(rules=(QuantizeRule("*.experts.*", fmt),)))
    assert (caught.value.asked, caught.value.found, caught.value.fix) == (
        f"cannot apply recipe rule '*.experts.*' ({fmt})",
        "experts that the files store in mxfp4, which llmc keeps as they are",
        "no such rule, or `*.experts.*: mxfp4`; other formats need a checkpoint in bf16",
    )


def _scale_of(value: int) -> Any:
    def change(tensors: Tensors) -> None:
        tensors[f"{GATE_UP}_scales"][1, 2, 0] = value

    return change


@pytest.mark.parametrize(("value", "found"), [(255, "255, which is NaN"), (253, "253")])
def test_a_scale_that_is_no_finite_number_is_refused_by_name(tmp_path: Path, value: int, found: str) -> None:
    folder = publish(write(tmp_path / "plain", "gpt_oss", CASE), tmp_path / "c", _scale_of(value))
    with pytest.raises(CheckpointError) as caught:
        llmc.build(folder, tmp_path / "a.llmc")
    assert (caught.value.asked, caught.value.found) == (
        f"expected scales of at most 252 (2^125) in {GATE_UP}_scales",
        found,
    )


def _as_numbers(tensors: Tensors) -> None:
    tensors[f"{GATE_UP}_scales"] = tensors[f"{GATE_UP}_scales"].float()


def _without_scales(tensors: Tensors) -> None:
    del tensors[f"{GATE_UP}_scales"]


def _of_other_blocks(tensors: Tensors) -> None:
    tensors[f"{GATE_UP}_blocks"] = tensors[f"{GATE_UP}_blocks"].flatten(2)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_as_numbers, f"expected tensor '{GATE_UP}_scales' as U8, which holds codes and scales\n  found: F32"),
        (_without_scales, f"{GATE_UP}_scales: expected [4, 192, 2], found nothing"),
        (_of_other_blocks, f"{GATE_UP}_blocks: expected [4, 192, 2, 16], found [4, 192, 32]"),
    ],
)
def test_files_that_are_not_of_the_published_layout_are_refused(tmp_path: Path, change: Any, said: str) -> None:
    folder = publish(write(tmp_path / "plain", "gpt_oss", CASE), tmp_path / "c", change)
    with pytest.raises(LlmcError) as caught:
        open_source(folder)
    assert said in str(caught.value)


def test_stored_experts_are_for_their_family_alone(tmp_path: Path) -> None:
    folder = write(tmp_path / "c", "llama", Case())
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "mxfp4"}}))
    with pytest.raises(Unsupported) as caught:
        open_source(folder)
    assert caught.value.found == 'quant_method "mxfp4"'


def test_the_setting_is_a_leftover_where_experts_are_plain(tmp_path: Path) -> None:
    folder = write(tmp_path / "c", "gpt_oss", replace(CASE, dtype=torch.float32))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "mxfp4"}}))
    said = "quantization_config (mxfp4) is a leftover: every tensor is plain floating point"
    assert said in open_source(folder).warnings
    report = build(open_source(folder), tmp_path / "a.llmc", Recipe(rules=(QuantizeRule("*.experts.*", "int4"),)))
    with EngineFile.open(report.path) as engine:
        assert np.dtype("u1") == engine.tensor(f"{GATE_UP}.weight").dtype
