"""What each rank of a split has, decided from layer records: properties of the cuts, and refusals with what works."""

from __future__ import annotations

import json
from itertools import combinations, pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.samples.split_models import LLAMA

from llmc.compiler.decoder.placement import balanced, caches_of, kv_heads, place
from llmc.compiler.families.config import parse_config
from llmc.compiler.families.spec import DecoderSpec
from llmc.passes.placement import COLUMNS, ROWS, Cut, Placement, Span, spans
from llmc.recipes.recipe import QuantizeRule, Recipe
from llmc.runtime.engine_file.manifest import LayerCache
from llmc.runtime.engine_file.split import Split
from llmc.runtime.errors import Unsupported


def spec_of(**config: Any) -> DecoderSpec:
    return parse_config(json.dumps({**LLAMA, **config})).decoder


def placed(split: str, fmt: str = "none", **config: Any) -> Placement:
    return place(spec_of(**config), Split.parse(split), lambda _: fmt)


def costs_of(costs: list[int], parts: tuple[Span, ...]) -> tuple[int, int]:
    """The largest sum of a part, and the sum of squares."""
    sums = [sum(costs[start:stop]) for start, stop in parts]
    return max(sums), sum(one * one for one in sums)


@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=8).flatmap(
        lambda costs: st.tuples(st.just(costs), st.integers(1, len(costs)))
    )
)
def test_stages_are_contiguous_never_empty_and_balanced_best(case: tuple[list[int], int]):
    costs, count = case
    found = balanced(costs, count)
    assert len(found) == count and all(start < stop for start, stop in found)
    assert found[0][0] == 0 and found[-1][1] == len(costs)
    assert all(one[1] == two[0] for one, two in pairwise(found))
    every = (tuple(pairwise((0, *cuts, len(costs)))) for cuts in combinations(range(1, len(costs)), count - 1))
    assert costs_of(costs, found) == min(costs_of(costs, parts) for parts in every)


@given(st.integers(1, 300), st.integers(1, 40))
def test_spans_cover_a_size_in_parts_as_equal_as_possible(size: int, count: int):
    found = spans(size, count)
    assert found[0][0] == 0 and found[-1][1] == size and len(found) == count
    assert all(one[1] == two[0] for one, two in pairwise(found))
    sizes = [stop - start for start, stop in found]
    assert sizes == sorted(sizes, reverse=True) and max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize(("heads", "tp"), [(h, t) for h in (1, 2, 4, 8) for t in (1, 2, 4, 8, 16)])
def test_each_shard_has_the_kv_heads_of_its_query_heads(heads: int, tp: int):
    mixer = spec_of(num_attention_heads=16, num_key_value_heads=heads, hidden_size=128).layers[0].mixer
    group = mixer.heads // mixer.kv_heads
    for (start, stop), (first, last) in zip(spans(mixer.heads, tp), kv_heads(mixer, tp), strict=True):
        assert {head // group for head in range(start, stop)} == set(range(first, last))


def test_linears_are_cut_as_megatron_cuts_them():
    found = placed("tp4-pp2")
    layer = {name.removeprefix("model.layers.0."): cut for name, cut in found.cuts.items() if ".0." in name}
    quarter = spans(1024, 4)
    rows, columns = Cut(ROWS, quarter), Cut(COLUMNS, quarter)
    kv = Cut(ROWS, spans(512, 4))
    attention = {"self_attn.q_proj": rows, "self_attn.k_proj": kv, "self_attn.v_proj": kv, "self_attn.o_proj": columns}
    assert layer == attention | {"mlp.gate_proj": rows, "mlp.up_proj": rows, "mlp.down_proj": columns}
    assert found.vocabulary == ((0, 128), (128, 255), (255, 382), (382, 509))
    assert found.cut_of("head", "lm_head") == Cut(ROWS, found.vocabulary)
    assert caches_of(spec_of(), found, 5) == dict.fromkeys(range(*found.stages[1]), LayerCache(1, 128, None))


LATENT: dict[str, Any] = {
    **{"architectures": ["DeepseekV3ForCausalLM"], "num_key_value_heads": 8, "head_dim": 8, "kv_lora_rank": 24},
    **{"q_lora_rank": 40, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 12, "first_k_dense_replace": 9},
}


def test_latent_attention_is_cut_by_heads_and_its_rows_are_whole():
    found = placed("tp4-pp2", **LATENT)
    layer = {
        name.removeprefix("model.layers.0.self_attn."): cut for name, cut in found.cuts.items() if ".0.self" in name
    }
    assert layer == {
        "q_b_proj": Cut(ROWS, spans(8 * 24, 4)),
        "kv_b_proj": Cut(ROWS, spans(8 * 28, 4)),
        "o_proj": Cut(COLUMNS, spans(8 * 12, 4)),
    }, "what makes the rows of the cache, and the rank of queries, is whole"
    cache = LayerCache(1, 32, None, 24)
    assert [caches_of(spec_of(**LATENT), found, rank) for rank in (0, 3)] == [
        dict.fromkeys(range(*found.stages[0]), cache)
    ] * 2
    with pytest.raises(Unsupported, match=r"tp16 for 8 heads in model\.layers\.0\n"):
        placed("tp16", **LATENT)


def test_stages_have_equal_bytes_of_weights_with_embedding_and_head():
    """A layer has 128 * 6144 weights, and the vocabulary of 12288 two layers' in the embedding and two in the head."""
    assert placed("pp2", num_hidden_layers=4).stages == ((0, 2), (2, 4))
    assert placed("pp3", num_hidden_layers=8, vocab_size=12288).stages == ((0, 2), (2, 6), (6, 8))
    untied = placed("pp2", "int4", num_hidden_layers=8, vocab_size=12288).stages
    assert untied == ((0, 1), (1, 8)), "the embedding stays in 16 bits, as many as seven int4 layers"
    assert placed("pp2", "int4", num_hidden_layers=8, vocab_size=12288, tie_word_embeddings=True).stages == (
        (0, 4),
        (4, 8),
    )


@pytest.mark.parametrize(
    ("split", "fmt", "config", "found", "fix"),
    [
        ("tp3", "none", {}, "tp3 for 8 heads and 4 key and value heads in model.layers.0", "tp2 or tp4"),
        ("tp3-pp2", "none", {}, "tp3 for 8 heads and 4 key", "tp2-pp2 or tp4-pp2"),
        ("tp16", "none", {}, "tp16 for 8 heads", "tp8"),
        (
            "tp3",
            "none",
            {"num_attention_heads": 6, "num_key_value_heads": 2, "intermediate_size": 96},
            "6 heads and 2 key and",
            "tp2 or tp6",
        ),
        ("tp8", "none", {"intermediate_size": 100}, "tp8 for an intermediate size of 100 in model.layers.0", "tp4"),
        ("tp2", "none", {"intermediate_size": 101}, "an intermediate size of 101", "tp1"),
        (
            "tp8",
            "int4-g128",
            {"head_dim": 64},
            "512 columns in blocks of 128 (int4-g128) in model.layers.0.self",
            "tp4",
        ),
        (
            "tp8",
            "nvfp4",
            {"intermediate_size": 64},
            "64 columns in blocks of 16 (nvfp4) in model.layers.0.mlp.down",
            "tp4",
        ),
        ("tp8", "mxfp4", {"intermediate_size": 128}, "128 columns in blocks of 32 (mxfp4)", "tp4"),
        ("tp8", "none", {"vocab_size": 7}, "tp8 for a vocabulary of 7 and a hidden size of 128", "tp4"),
        ("pp4", "none", {}, "pp4, more than the model's layers (3)", "pp3"),
        ("tp2-pp9", "none", {}, "pp9, more than", "tp2-pp3"),
        ("tp3-pp9", "none", {}, "tp3 for 8 heads", "tp2-pp3 or tp4-pp3"),
        ("pp2", "none", {"num_hidden_layers": 1}, "the model's layers (1)", "tp1"),
    ],
)
def test_a_split_that_cuts_what_is_whole_is_refused(split: str, fmt: str, config: dict[str, Any], found: str, fix: str):
    with pytest.raises(Unsupported) as caught:
        placed(split, fmt, **config)
    assert caught.value.asked == f"cannot split this model as {split}"
    assert found in caught.value.found
    assert caught.value.fix == fix
    for works in fix.split(" or "):
        placed(works, fmt, **config)


def test_only_the_formats_of_linears_that_are_cut_by_columns_matter():
    recipe = Recipe(default_format="int4-g128", rules=(QuantizeRule("*.o_proj", "int8"),))
    place(spec_of(head_dim=64), Split(8), recipe.format_of)


@pytest.mark.parametrize(
    ("stages", "vocabulary", "cut", "message"),
    [
        (((0, 1),), ((0, 5), (5, 9)), ((0, 1), (1, 2)), "the stages .*expected 2 spans"),
        (((0, 1), (2, 3)), ((0, 5), (5, 9)), ((0, 1), (1, 2)), "does not begin where the last ends"),
        (((1, 2), (2, 3)), ((0, 5), (5, 9)), ((0, 1), (1, 2)), "does not begin where the last ends"),
        (((0, 1), (1, 3)), ((0, 5), (5, 5)), ((0, 1), (1, 2)), "the vocabulary .*expected 2 spans"),
        (((0, 1), (1, 3)), ((0, 5), (5, 9)), ((0, 1), (2, 1)), "the cut of a.b .*expected 2 spans"),
        (((0, 1), (1, 3)), ((0, 5), (5, 9)), ((0, 1), (1, 2, 3)), "the cut of a.b .*expected 2 spans"),
    ],
)
def test_a_placement_is_whole(stages: Any, vocabulary: Any, cut: Any, message: str):
    with pytest.raises(ValueError, match=message):
        Placement(Split(2, 2), stages, {"a.b": Cut(ROWS, cut)}, vocabulary)


def test_a_block_has_one_stage():
    found = placed("pp2")
    assert [found.stage_of(block) for block in ("embed", "layer.0", "layer.2", "head")] == [0, 0, 1, 1]
    with pytest.raises(ValueError, match=r"^layer\.3 is in none of the stages"):
        found.stage_of("layer.3")
