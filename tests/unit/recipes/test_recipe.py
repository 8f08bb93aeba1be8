"""Recipes: a typing error is refused with its place, and never read as something else."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from support.paths import ROOT

from llmc.compiler.targets import TARGETS
from llmc.quantize import FORMATS
from llmc.recipes import recipe as module
from llmc.recipes.recipe import QuantizeRule, Recipe, bundled_recipes, load_recipe, with_flags
from llmc.runtime.chips import GPUS
from llmc.runtime.chips import TARGETS as RUNTIME_TARGETS
from llmc.runtime.dtypes import WEIGHT_FORMATS
from llmc.runtime.engine_file.split import Split
from llmc.runtime.errors import RecipeError

SCHEMA = json.loads((ROOT / "recipes/recipe.schema.json").read_text())


def refusal(tmp_path: Path, text: str | bytes) -> str:
    path = tmp_path / "r.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(RecipeError) as caught:
        load_recipe(str(path))
    return str(caught.value).replace(str(path), "r.yaml")


def test_a_full_recipe_is_read(tmp_path: Path):
    path = tmp_path / "mine.yml"
    path.write_text(
        "# why\nversion: 1\nextends: cpu-int4\nquantize:\n  rules:\n"
        "    - {match: 'model.layers.0.*', format: \"none\"}\ntargets:\n  - cpu\nmax_context: 2048\nmax_batch: 3\n"
    )
    assert load_recipe(str(path)) == Recipe(
        default_format="int4",
        rules=(QuantizeRule("lm_head", "int8"), QuantizeRule("model.layers.0.*", "none")),
        targets=("cpu",),
        max_context=2048,
        max_batch=3,
    )


def test_the_last_matching_rule_decides():
    rules = (QuantizeRule("model.layers.*", "int8"), QuantizeRule("model.layers.*.mlp.*", "nvfp4"))
    recipe = Recipe(default_format="fp8", rules=rules)
    assert recipe.format_of("model.layers.3.mlp.up_proj") == "nvfp4"
    assert recipe.format_of("model.layers.3.self_attn.q_proj") == "int8"
    assert recipe.format_of("lm_head") == "fp8"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("version: 1\nquantise:\n  default: int4\n", "r.yaml:2:1: unknown key 'quantise' (did you mean 'quantize'?)\n"),
        ("version: 1\nquantize: {defualt: int4}\n", "r.yaml:2:12: unknown key 'defualt' (did you mean 'default'?)\n"),
        ("version: 1\nversion: 1\n", "r.yaml:2:1: the key 'version' stands here a second time"),
        ("version: 1\nmax_batch:\t4\n", "r.yaml:2:11: a tab: use spaces"),
        ("version: 2\n", "r.yaml:1:10: expected recipe version 1, found 2"),
        ("version: no\n", "r.yaml:1:10: expected an integer, found the text 'no'"),
        ("version: 1\nmax_batch: 12:30\n", "cannot read r.yaml:2:12: expected an integer, found the text '12:30'"),
        ("version: 1\nmax_batch: 010\n", "r.yaml:2:12: a leading zero is octal to some readers: write 10"),
        ("version: 1\nmax_batch: 1e3\n", "cannot read r.yaml:2:12: expected an integer, found the text '1e3'"),
        ("version: 1\nmax_batch: 1_000\n", "cannot read r.yaml:2:12: expected an integer, found the text '1_000'"),
        ("version: 1\nmax_batch: '8'\n", "cannot read r.yaml:2:12: expected an integer, found the text '8'"),
        ("version: 1\nmax_batch: true\n", "cannot read r.yaml:2:12: expected an integer, found the text 'true'"),
        ("version: 1\nmax_batch: 0\n", "r.yaml:2:12: expected max_batch from 1 to 4096, found 0"),
        ("version: 1\nmax_context: -5\n", "r.yaml:2:14: expected max_context from 1 to 16777216, found -5"),
        ("version: 1\nmax_context:\n", "r.yaml:2:13: expected an integer, found nothing (leave the key out)"),
        (
            "version: 1\nquantize: {default: no}\n",
            "r.yaml:2:21: expected a weight format, found 'no' (did you mean 'none'?)",
        ),
        ("version: 1\nquantize: {default: 8}\n", "r.yaml:2:21: expected text, found the integer '8'"),
        (
            "version: 1\nquantize: {default: itn4}\n",
            "r.yaml:2:21: expected a weight format, found 'itn4' (did you mean 'int4'?)",
        ),
        ("version: 1\nquantize: int4\n", "r.yaml:2:11: expected keys and values, found the text 'int4'"),
        ("version: 1\nquantize:\n  rules: {lm_head: int8}\n", "r.yaml:3:10: expected a list, found keys and values"),
        ("version: 1\nquantize:\n  rules:\n    - {match: lm_head}\n", "r.yaml:4:7: expected 'format' in a rule"),
        (
            "version: 1\nquantize: {rules: [{match: '', format: int8}]}\n",
            "r.yaml:2:28: expected a glob on module names",
        ),
        (
            "version: 1\ntargets: [sm_91]\n",
            "r.yaml:2:11: expected a target, found 'sm_91', known: cpu, native (this machine), sm_80 (a100)",
        ),
        ("version: 1\ntargets: [cpu, cpu]\n", "r.yaml:2:1: expected targets to name at least one target, each once"),
        ("version: 1\ntargets: []\n", "r.yaml:2:1: expected targets to name at least one target, each once"),
        (
            "version: 1\nextends: cpu-int44\n",
            "expected 'extends' to name a bundled recipe, found 'cpu-int44' (did you mean 'cpu-int4'?), known: ",
        ),
        ("version: 1\nextends: ../other.yaml\n", "expected 'extends' to name a bundled recipe"),
        ("version: 1\nkv: fp4\n", "r.yaml:2:5: expected kv of none or fp8, found 'fp4' (did you mean 'fp8'?)"),
        (
            "version: 1\nquantize: {activations: fp4}\n",
            "expected activations of none or fp8 or nvfp4 or mxfp4, found 'fp4' (did you mean 'nvfp4'?)",
        ),
        (
            "version: 1\nquantize: {default: int4, activations: nvfp4}\n",
            "cannot use activations nvfp4 beside weights in other formats\n  found: weights in int4\n"
            "  try: quantize nvfp4, or no activations",
        ),
        ("version: 1\nparallel: {tensor: 4}\n", "r.yaml:2:11: expected a list, found keys and values"),
        (
            "version: 1\nparallel: []\n",
            "r.yaml:2:1: expected parallel to name splits such as tp1, tp2, pp2, tp4-pp2 or tp2-ep4",
        ),
        ("version: 1\nparallel: [tp2, tp2-pp1]\n", "tp2-ep4, each once, found tp2, tp2-pp1"),
        (
            "version: 1\nparallel: [pp2-tp2]\n",
            "'pp2-tp2': a split is tpN, epN, ppN, or some in this order, such as tp4-pp2 or tp2-ep4",
        ),
        ("version: 1\ngates: []\n", "r.yaml:2:1: 'gates' is not built yet"),
        ("max_batch: 4\n", "r.yaml:1:1: expected 'version: 1'"),
        ("version: 1\nquantize: &a {default: int4}\n", "r.yaml:2:11: anchors and aliases are not used here"),
        ("version: 1\nquantize: *a\n", "r.yaml:2:11: anchors and aliases are not used here"),
        ("version: 1\nquantize:\n  <<: {default: int4}\n", "r.yaml:3:3: merge keys are not used here"),
        ("version: !!int 1\n", "r.yaml:1:10: tags are not used here"),
        ("!!python/object/apply:os.system ['true']\n", "r.yaml:1:1: tags are not used here"),
        ("%YAML 1.1\n---\nversion: 1\n", "r.yaml:1:1: directives are not used here"),
        ("version: 1\n---\nversion: 1\n", "r.yaml:2:1: but found another document"),
        ("version: 1\n? [a, b]\n: 1\n", "r.yaml:2:3: expected text, found a list"),
        ("[" * 8000, "nested more than 8 levels deep"),
        ("version: [1\n", "r.yaml:2:1: "),
        ("- version\n", "r.yaml:1:1: expected keys and values, found a list"),
        ("", "r.yaml:1:1: the file is empty"),
        ("version: 1\nmax_batch: 4\x07\n", "r.yaml:2:13: a control character"),
        (b"version: 1\n# \xff\n", "expected UTF-8 text in r.yaml"),
        ("version: 1\n#" + "x" * 20_000, "expected at most 16384 bytes in the recipe r.yaml\n  found: 20012"),
    ],
)
def test_refusals_show_the_place(tmp_path: Path, text: str, expected: str):
    assert expected in refusal(tmp_path, text)


def test_a_refusal_shows_a_caret_and_the_schema(tmp_path: Path):
    assert refusal(tmp_path, "version: 1\nmax_batch: many\n") == (
        "cannot read r.yaml:2:12: expected an integer, found the text 'many'\n    max_batch: many\n               ^\n"
        "  try: the keys and values of recipes/recipe.schema.json"
    )


def test_an_alias_bomb_is_refused_at_once(tmp_path: Path):
    lines = ["version: 1", "a: &a [x, x, x, x, x, x, x, x, x]"]
    lines += [f"{new}: &{new} [{', '.join(['*' + old] * 9)}]" for old, new in zip("abcdefgh", "bcdefghi", strict=True)]
    assert "anchors and aliases are not used here" in refusal(tmp_path, "\n".join(lines))


def test_a_fifo_is_refused_without_waiting(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe.yaml")
    with pytest.raises(RecipeError, match=r"expected a regular file at .*pipe\.yaml\n  found: "):
        load_recipe(str(tmp_path / "pipe.yaml"))


def test_a_missing_recipe_names_the_nearest(tmp_path: Path):
    with pytest.raises(
        RecipeError, match=r"cannot find the recipe 'cpu-itn4' \(did you mean 'cpu-int4'\?\)\n  found: bundled"
    ):
        load_recipe("cpu-itn4")
    with pytest.raises(RecipeError, match=r"cannot open .*absent\.yaml\n  found: No such file"):
        load_recipe(str(tmp_path / "absent.yaml"))


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=200) | st.text("version: 1\n-[]{}&*!%|>'\"#,?quantize", max_size=80))
def test_any_text_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, text: str):
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    try:
        assert isinstance(load_recipe(str(path)), Recipe)
    except RecipeError as error:
        assert str(error)


def test_flags_stand_over_the_recipe():
    base = Recipe(default_format="fp8", rules=(QuantizeRule("lm_head", "none"),), max_context=64)
    assert with_flags(base) == base
    assert with_flags(None, quantize="int4") == Recipe(default_format="int4", rules=(QuantizeRule("lm_head", "int8"),))
    assert with_flags(base, quantize="int8", max_batch=2) == Recipe(default_format="int8", max_context=64, max_batch=2)
    assert with_flags(base, targets=["cpu"], max_context=32).max_context == 32


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"quantize": "in4"}, "expected a weight format\n  found: 'in4' (did you mean 'int4'?)"),
        ({"targets": ["gpu"]}, "expected a target\n  found: 'gpu'\n  try: cpu, native (this machine), sm_80"),
        ({"max_context": 0}, "expected max_context from 1 to 16777216\n  found: 0"),
        ({"max_batch": -1}, "expected max_batch from 1 to 4096\n  found: -1"),
    ],
)
def test_flags_are_checked(flags: dict, message: str):
    with pytest.raises(RecipeError) as caught:
        with_flags(None, **flags)
    assert message in str(caught.value)


def test_canonical_bytes_do_not_depend_on_the_way():
    assert with_flags(None, quantize="int4").to_json() == load_recipe("cpu-int4").to_json()
    assert Recipe().to_json() == {
        "version": 1,
        "quantize": {"default": "none", "rules": [], "activations": "none"},
        "kv": "none",
        "targets": ["cpu"],
        "max_context": None,
        "max_batch": 8,
    }


@pytest.mark.parametrize("name", bundled_recipes())
def test_bundled_recipes_are_short_and_follow_the_schema(name: str):
    text = (ROOT / "recipes" / f"{name}.yaml").read_text()
    assert len(text.splitlines()) <= 15
    assert text.startswith("# "), "the first line says why"
    assert isinstance(load_recipe(name), Recipe)
    assert_follows(yaml.safe_load(text), SCHEMA)


def test_bundled_recipes_do_not_extend_each_other():
    for name in bundled_recipes():
        assert "extends" not in yaml.safe_load((ROOT / "recipes" / f"{name}.yaml").read_text())


def test_the_schema_agrees_with_the_reader():
    formats = SCHEMA["$defs"]["format"]["enum"]
    assert sorted(formats) == sorted(["none", *FORMATS])
    assert tuple(FORMATS) == WEIGHT_FORMATS
    assert set(SCHEMA["properties"]) == set(module._KEYS)
    assert set(SCHEMA["properties"]["extends"]["enum"]) == set(bundled_recipes())
    assert SCHEMA["properties"]["targets"]["items"]["examples"] == ["cpu", "native", *RUNTIME_TARGETS[1:], *GPUS]
    assert SCHEMA["properties"]["max_context"]["maximum"] == module.MAX_CONTEXT
    assert SCHEMA["properties"]["max_batch"]["maximum"] == module.MAX_BATCH
    rule = SCHEMA["properties"]["quantize"]["properties"]["rules"]["items"]
    assert set(rule["properties"]) == set(rule["required"]) == set(QuantizeRule.__dataclass_fields__)
    assert set(Recipe(parallel=("tp2",)).to_json()) | {"extends"} == set(SCHEMA["properties"])


def test_splits_are_kept_in_their_order_by_their_names(tmp_path: Path):
    path = tmp_path / "r.yaml"
    path.write_text("version: 1\nparallel: [tp4, pp1, tp2-pp2]\n")
    wanted = Recipe(parallel=("tp4", "tp1", "tp2-pp2"))
    assert load_recipe(str(path)) == with_flags(None, parallel="tp4, tp1,tp2-pp2") == wanted
    assert wanted.to_json()["parallel"] == ["tp4", "tp1", "tp2-pp2"]
    assert "parallel" not in Recipe(parallel=("pp1",)).to_json(), "digests of recipes without ranks stay as they were"


@given(st.text(alphabet="tp12-", max_size=8))
def test_the_schema_has_the_splits_that_the_reader_has(name: str):
    try:
        Split.parse(name)
        known = True
    except ValueError:
        known = False
    assert known == bool(re.fullmatch(SCHEMA["properties"]["parallel"]["items"]["pattern"], name))


def test_a_gpu_s_name_means_its_target(tmp_path: Path):
    assert Recipe(targets=("H100", "cpu", "h200")).targets == ("sm_90", "cpu")
    assert with_flags(None, targets=["b300"]).targets == ("sm_100",)
    path = tmp_path / "r.yaml"
    path.write_text("version: 1\ntargets: [l4, cpu]\n")
    assert load_recipe(str(path)) == Recipe(targets=("sm_89", "cpu"))
    with pytest.raises(RecipeError, match=r"expected a target\n  found: 'h201'\n  try: cpu, .*, sm_90 \(h100, h200\),"):
        Recipe(targets=("h201",))


def test_targets_are_those_of_the_table():
    assert set(RUNTIME_TARGETS) == set(TARGETS) - {"null"}


def assert_follows(value: object, schema: dict) -> None:
    """The few words of JSON schema that recipe.schema.json uses; an unknown word fails the test."""
    schema = SCHEMA["$defs"][schema["$ref"].rsplit("/", 1)[1]] if "$ref" in schema else schema
    known = {"$schema", "$defs", "title", "description", "type", "enum", "const", "properties", "required", "items"}
    known |= {
        "additionalProperties",
        "minimum",
        "maximum",
        "minItems",
        "minLength",
        "uniqueItems",
        "examples",
        "pattern",
    }
    assert set(schema) <= known
    if "pattern" in schema:
        assert re.search(schema["pattern"], str(value))
    kinds = {"object": dict, "array": list, "string": str, "integer": int}
    if "type" in schema:
        assert type(value) is kinds[schema["type"]]
    if "enum" in schema:
        assert value in schema["enum"]
    if "const" in schema:
        assert value == schema["const"]
    if isinstance(value, dict):
        assert set(schema.get("required", ())) <= set(value) <= set(schema["properties"])
        for key, item in value.items():
            assert_follows(item, schema["properties"][key])
    if isinstance(value, list):
        assert len(value) >= schema.get("minItems", 0)
        for item in value:
            assert_follows(item, schema["items"])
    if isinstance(value, int):
        assert schema.get("minimum", value) <= value <= schema.get("maximum", value)


def test_4_bit_activations_are_for_weights_in_their_format():
    one = with_flags(None, quantize="mxfp4", activations="mxfp4", targets="b200")
    assert one.to_json()["quantize"]["activations"] == "mxfp4" and one.idle() == {}
    rules = (QuantizeRule("*.mlp.*", "nvfp4"),)
    assert Recipe(default_format="int8", rules=rules, activations="nvfp4", targets=("sm_120",)).idle() == {}
    with pytest.raises(RecipeError, match="cannot use activations nvfp4 beside weights in other formats"):
        with_flags(one, activations="nvfp4")
