"""Proves that a manifest has one spelling, reads back as it was written, and refuses what it does not know."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmc.runtime.engine_file.manifest import (
    CheckpointFacts,
    LayerCache,
    Lineage,
    Manifest,
    ModelFacts,
    Profile,
    content_of,
    is_section_name,
)
from llmc.runtime.errors import EngineError

DIGESTS = st.text("0123456789abcdef", min_size=64, max_size=64)
NAMES = st.text("abcXYZ019_.-", min_size=1, max_size=12).filter(lambda name: ".." not in name)
COUNTS = st.integers(0, (1 << 63) - 1)
JSON = st.dictionaries(st.text(), st.none() | st.booleans() | st.integers() | st.text() | st.lists(st.integers()))
FACTS = st.builds(
    ModelFacts,
    vocab_size=COUNTS,
    hidden_size=COUNTS,
    heads=COUNTS,
    caches=st.lists(st.builds(LayerCache, COUNTS, COUNTS, st.none() | st.integers(1, 1 << 40)), max_size=3).map(tuple),
    max_context=COUNTS,
    parameters=COUNTS,
    bos=st.none() | COUNTS,
    eos_ids=st.lists(COUNTS, max_size=2).map(tuple),
    generation=JSON,
)
PROFILES = st.builds(
    Profile,
    needs=JSON,
    weights=JSON,
    max_context=COUNTS,
    max_batch=COUNTS,
    tolerance=st.floats(-1e6, 1e6),
)
SOURCES = st.builds(
    CheckpointFacts,
    files=st.dictionaries(st.text(), DIGESTS),
    accepted_config=st.lists(st.text(), max_size=2).map(tuple),
    random_seed=st.none() | COUNTS,
)
MANIFESTS = st.builds(
    Manifest,
    model=FACTS,
    formats=st.dictionaries(st.text(), st.text(), max_size=3),
    profiles=st.dictionaries(NAMES, PROFILES, max_size=2),
    lineage=st.dictionaries(NAMES, st.builds(Lineage, st.lists(st.text()).map(tuple), st.text()), max_size=3),
    unused=st.dictionaries(st.text(), st.text(), max_size=3),
    recipe=JSON,
    recipe_digest=DIGESTS,
    checkpoint=SOURCES,
    tools=st.dictionaries(st.text(), st.text(), max_size=3),
    required_features=st.just(()),
    sections=st.dictionaries(NAMES, DIGESTS, max_size=3),
    tensors=st.dictionaries(NAMES, st.lists(DIGESTS, max_size=3).map(tuple), max_size=3),
    content_digest=DIGESTS,
    format=st.just("2.0"),
)


@pytest.fixture(scope="module")
def sample() -> Manifest:
    return Manifest(
        model=ModelFacts("LlamaForCausalLM", "llama", 8, 4, 2, (LayerCache(1, 2),), 64, 40, "bfloat16", True, 1, (2,)),
        formats={"lm_head": "int8"},
        profiles={"cpu": Profile("cpu", "graph", {}, {}, 64, 8, 1e-3)},
        lineage={"w": Lineage(("a", "b"), "concat")},
        unused={},
        recipe={},
        recipe_digest="0" * 64,
        checkpoint=CheckpointFacts({}),
        tools={"llmc": "0.1.0"},
        content_digest="1" * 64,
    )


def refusal(value: Any) -> str:
    with pytest.raises(EngineError) as caught:
        Manifest.from_json(json.dumps(value), what="m.llmc")
    assert re.match("expected .* in m.llmc: manifest", str(caught.value))
    return str(caught.value)


@given(MANIFESTS)
def test_round_trip_has_one_spelling(manifest: Manifest) -> None:
    text = manifest.to_json()
    assert Manifest.from_json(text, what="m") == manifest
    assert Manifest.from_json(text, what="m").to_json() == text
    assert json.dumps(json.loads(text), sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode() == text


def test_lineage_is_spelled_from(sample: Manifest) -> None:
    assert json.loads(sample.to_json())["lineage"] == {"w": {"from": ["a", "b"], "how": "concat"}}


@given(st.data())
def test_any_value_replaced_gives_only_the_error(sample: Manifest, data: st.DataObject) -> None:
    value = json.loads(sample.to_json())
    inside = value
    while True:
        key = data.draw(st.sampled_from(sorted(inside)))
        if isinstance(inside[key], dict) and inside[key] and data.draw(st.booleans()):
            inside = inside[key]
            continue
        break
    odd = [None, True, -1, 1.5, 10**400, "", "x", [], ["x"], [[]], {}, {"x": None}, {"x": 1}, {"x": "y"}, {"x": ["y"]}]
    inside[key] = data.draw(st.sampled_from(odd))
    try:
        manifest = Manifest.from_json(json.dumps(value), what="m")
    except EngineError:
        return
    assert Manifest.from_json(manifest.to_json(), what="m") == manifest


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda m: m.update(modle=1),
            "expected only known keys in m.llmc: manifest\n  found: 'modle' (did you mean 'model'?)",
        ),
        (
            lambda m: m["model"].update(head=1),
            "expected only known keys in m.llmc: manifest.model\n  found: 'head' (did you mean 'heads'?)",
        ),
        (lambda m: m["model"].pop("heads"), "expected the key 'heads' in m.llmc: manifest.model"),
        (lambda m: m["model"].update(heads=True), "expected an integer in m.llmc: manifest.model.heads\n  found: True"),
        (
            lambda m: m["model"].update(heads=-1),
            "expected a non-negative integer below 2^63 in m.llmc: manifest.model.heads",
        ),
        (lambda m: m["model"].update(tied=1), "expected true or false in m.llmc: manifest.model.tied"),
        (lambda m: m["model"].update(bos="1"), "expected an integer in m.llmc: manifest.model.bos"),
        (lambda m: m["model"].update(eos_ids=[1, "2"]), "expected an integer in m.llmc: manifest.model.eos_ids"),
        (
            lambda m: m["profiles"]["cpu"].update(tolerance="x"),
            "expected a number in m.llmc: manifest.profiles.cpu.tolerance",
        ),
        (
            lambda m: m["profiles"]["cpu"].update(tolerance=10**300),
            "expected a number of sensible size in m.llmc: manifest.profiles.cpu.tolerance",
        ),
        (lambda m: m["lineage"]["w"].update({"from": "a"}), "expected a list in m.llmc: manifest.lineage.w.from"),
        (
            lambda m: m.update(recipe_digest="A" * 64),
            "expected 64 lower-case hex digits in m.llmc: manifest.recipe_digest",
        ),
        (
            lambda m: m.update(tensors={"w": ["0" * 63]}),
            "expected 64 lower-case hex digits in m.llmc: manifest.tensors.w",
        ),
        (
            lambda m: m.update(sections={"/etc": "0" * 64}),
            "expected plain names in m.llmc: manifest.sections\n  found: '/etc'",
        ),
        (lambda m: m.update(format=2.0), "expected a version such as '2.0' in m.llmc: manifest.format"),
        (lambda m: m.update(required_features="x"), "expected a list in m.llmc: manifest.required_features"),
        (lambda m: m.update(required_features=["x"]), "needs llmc >= 0.1.0"),
        (lambda m: m.update(format="3.0", tools=7), "needs a newer llmc"),
        (
            lambda m: m["checkpoint"].update(name="a\x1b[2J"),
            "expected printable text in m.llmc: manifest.checkpoint.name",
        ),
        (
            lambda m: m["model"]["caches"][0].update(window=0),
            "windows of at least one position in m.llmc: manifest.model.caches",
        ),
        (
            lambda m: m["model"]["caches"][0].update(rank=1),
            "expected 'latent_layers' in m.llmc: manifest.required_features if there are such\n  found: some caches",
        ),
        (
            lambda m: m.update(required_features=["latent_layers"]),
            "expected 'latent_layers' in m.llmc: manifest.required_features if there are such\n  found: no caches",
        ),
        *(
            (
                lambda m, change=change: m["model"]["caches"][0].update(change),
                "expected a rank only of one head's rows that are longer, in m.llmc: manifest.model.caches\n"
                "  found: LayerCache(",
            )
            for change in ({"rank": 0}, {"rank": 2}, {"rank": 3}, {"rank": 1, "kv_heads": 2}, {"rank": 1, "window": 5})
        ),
        (lambda m: m["model"]["caches"][0].update(rank=-1), "manifest.model.caches"),
    ],
)
def test_refuses(sample: Manifest, change: Any, message: str) -> None:
    value = json.loads(sample.to_json())
    change(value)
    assert message in refusal(value)


@pytest.mark.parametrize("value", [None, [], "2.0", 3, {}])
def test_other_json_is_refused(value: Any) -> None:
    assert "a version such as '2.0'" in refusal(value)


def test_content_leaves_out_what_was_measured(sample: Manifest) -> None:
    layout = {"w": ("U8", (2, 3))}
    measured = replace(sample, sections={"measured.json": "2" * 64}, content_digest="3" * 64)
    content = content_of(sample.to_json(), layout)
    assert content_of(measured.to_json(), layout) == content
    assert content_of(replace(sample, sections={"other": "2" * 64}).to_json(), layout) != content
    assert content_of(sample.to_json(), {"w": ("U8", (3, 2))}) != content
    assert content_of(replace(sample, tensors={"w": ("4" * 64,)}).to_json(), layout) != content


def test_content_of_a_manifest_without_sections(sample: Manifest) -> None:
    """An engine may have none, and then need not say so; a check of all its bytes ended with a KeyError."""
    document = json.loads(replace(sample, sections={}).to_json())
    assert document.pop("sections") == {}
    text = json.dumps(document)
    assert Manifest.from_json(text, what="e.llmc").sections == {}
    assert b'"sections"' not in content_of(text, {})


def test_what_is_unknown_has_no_key(sample: Manifest) -> None:
    """So an engine of format 2.0, which had no such keys, has the content digest that it was given."""
    assert json.loads(sample.to_json())["checkpoint"] == {"accepted_config": [], "files": {}}
    assert "recipe_name" not in json.loads(sample.to_json())
    old = replace(sample, format="2.0")
    assert Manifest.from_json(old.to_json(), what="m") == old


def test_rows_of_latent_attention_need_a_reader_that_knows_them(sample: Manifest) -> None:
    caches = (LayerCache(1, 2), LayerCache(1, 576, None, 512))
    made = replace(sample, model=replace(sample.model, caches=caches), required_features=("latent_layers",))
    assert Manifest.from_json(made.to_json(), what="m") == made
    assert [cache.parts for cache in caches] == [("key", "value"), ("key",)]
    assert b'"rank"' not in sample.to_json()


def test_section_names() -> None:
    assert all(map(is_section_name, ("measured.json", "profiles/cpu/graph.onnx", "a-b_c")))
    assert not any(
        map(is_section_name, ("", "/a", "a/", "a//b", "../a", "a/..", "pad/1", "a b", "a\n", "a/" * 9 + "a"))
    )
