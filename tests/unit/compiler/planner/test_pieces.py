"""A skeleton of few layers costs, counted, exactly what the real plan of every rank costs, memory included."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
from support.samples.split_models import LLAMA

from llmc.compiler.checkpoint.weights.random_source import RandomSource
from llmc.compiler.decoder.decoder import build_spec
from llmc.compiler.decoder.placement import place
from llmc.compiler.families.config import Config, parse_config
from llmc.compiler.planner.all_formats import AllFormats, Logical, Subject
from llmc.compiler.planner.pieces import LARGE, MIXED, SMALL, Pieces, Work, work_of
from llmc.compiler.targets import Precision, ProfileConfig, target_named
from llmc.compiler.targets.cuda.emit import draft, step_shapes
from llmc.compiler.targets.cuda.kernels.linear.choose import SMALL_M
from llmc.compiler.targets.cuda.kernels.linear.tiles import COUNTERS
from llmc.passes import model_passes, profile_passes, run_phase
from llmc.passes.graph.graph import Graph
from llmc.passes.partition import partition
from llmc.passes.placement import Span
from llmc.quantize import FORMATS
from llmc.recipes.recipe import QuantizeRule, Recipe
from llmc.runtime.engine_file.split import Split
from llmc.runtime.plan.between import RankOf
from llmc.runtime.plan.budget import aligned, without_cache
from llmc.runtime.plan.plan import Plan
from llmc.runtime.plan.price import position_bytes, position_operations

CONTEXT, BATCH = 192, 65
WINDOWS: dict[str, Any] = {
    "architectures": ["Qwen2ForCausalLM"],
    "use_sliding_window": True,
    "sliding_window": 40,
    "max_window_layers": 3,
    "tie_word_embeddings": True,
}
EXPERTS: dict[str, Any] = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "num_experts": 6,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 256,
    "mlp_only_layers": [2],
}
CONFIGS = {"llama": {}, "windows": WINDOWS, "experts": EXPERTS}
FP8 = Recipe(default_format="fp8", activations="fp8", kv="fp8", targets=("sm_90",), max_batch=BATCH)
INT4 = Recipe(default_format="int4", rules=(QuantizeRule("lm_head", "int8"),), targets=("sm_90",), max_batch=BATCH)
MIXED_FORMATS = Recipe(
    default_format="nvfp4",
    rules=(QuantizeRule("model.layers.2.mlp.*", "fp8"), QuantizeRule("model.layers.6.*", "none")),
    targets=("sm_90",),
    max_batch=BATCH,
)
RECIPES = {"fp8": FP8, "int4": INT4, "mixed": MIXED_FORMATS}


@cache
def config_of(name: str) -> Config:
    given = {**LLAMA, "num_hidden_layers": 7, "max_position_embeddings": CONTEXT, **CONFIGS[name]}
    return parse_config(json.dumps(given))


@cache
def formats_of(name: str, tp: int, ep: int = 1) -> AllFormats:
    return AllFormats(Logical(Subject(config_of(name), "bfloat16", "BF16")), tp, ep)


@cache
def pieces_of(name: str, recipe: str, tp: int, ep: int = 1) -> Pieces:
    found = formats_of(name, tp, ep).pieces(replace(RECIPES[recipe], max_context=CONTEXT))
    assert isinstance(found, Pieces)
    return found


@cache
def whole(name: str, recipe: str) -> Graph:
    config = config_of(name)
    made = build_spec(config.decoder, RandomSource(config.decoder.tensors()), CONTEXT, {}, config.family.name).graph
    run_phase(model_passes(RECIPES[recipe].format_of), made)
    return made


def real_plans(name: str, recipe: str, split: Split) -> list[tuple[Span, Plan]]:
    """The stages of a split, and the whole plan of the first shard of each."""
    found, target = RECIPES[recipe], target_named("sm_90")
    placement = place(config_of(name).decoder.within(CONTEXT), split, found.format_of)
    ranks = [split.rank(stage, 0) for stage in range(split.pp)]
    graphs = [whole(name, recipe).copy()] if split.ranks == 1 else partition(whole(name, recipe), placement, ranks)
    plans = []
    for rank, graph in zip(ranks, graphs, strict=True):
        run_phase(profile_passes(merge_gated=target.merge_gated), graph)
        run_phase(target.legalize(Precision(found.activations, found.kv)), graph)
        config = ProfileConfig(CONTEXT, BATCH, "bfloat16", found.kv, rank=RankOf(rank, split.shards, split.pp))
        plans.append(draft(graph, config, 90)[0])
    return list(zip(placement.stages, plans, strict=True))


def _alike(works: Counter[Work]) -> Counter[Work]:
    """Without the padding of the tables of rows by expert: tiles decide it, which steps of few rows do not share."""
    found: Counter[Work] = Counter()
    for work, times in works.items():
        found[replace(work, bytes="") if work.kernel == "moe_sort" else work] += times
    return +found


@pytest.mark.parametrize(
    ("name", "recipe", "split"),
    [
        *(("llama", "fp8", split) for split in ("tp1", "tp2", "tp2-pp3")),
        *(("windows", "int4", split) for split in ("tp1", "pp3", "tp4-pp2")),
        *(("llama", "mixed", split) for split in ("tp1", "pp7")),
        *(("experts", "fp8", split) for split in ("tp1", "ep2-pp2", "tp2-ep4")),
    ],
)
def test_blocks_counted_are_the_real_plans(name: str, recipe: str, split: str):
    degrees = Split.parse(split)
    pieces = pieces_of(name, recipe, degrees.tp, degrees.ep)
    shapes = step_shapes(BATCH, CONTEXT)
    for stage, plan in real_plans(name, recipe, degrees):
        counts = pieces.skeleton.blocks(stage)
        for real, shape in enumerate(shapes):
            number = MIXED if not shape.decode else SMALL if shape.sequences <= SMALL_M else LARGE
            if not shape.decode and shape is not shapes[-1]:
                continue  # the small mixed program
            counted: Counter[Work] = Counter()
            for block, count in counts.items():
                for work, times in pieces.blocks[block].work[number].items():
                    counted[work] += count * times
            expected = Counter(work_of(launch, plan, real) for launch in plan.programs[real].launches)
            assert _alike(counted) == _alike(expected), f"stage {stage}, program {number}"
        weights = [aligned(one.bytes({})) for one in plan.tensors.values() if one.kind == "weight"]
        assert pieces.weights(stage) == sum(weights)
        assert pieces.caches(stage).keys() == {*plan.caches}
        for kind, cached in pieces.caches(stage).items():
            tensors = [one for one in plan.tensors.values() if one.kind == "cache" and one.shape[0] == kind.size]
            heads = config_of(name).decoder.layers[0].mixer.heads // degrees.shards
            found = (cached.position, cached.operations)
            assert found == (position_bytes(plan, kind, tensors), position_operations(tensors, heads))
        for slots in (1, 5, BATCH):
            parts, real = pieces.parts(stage, slots), without_cache(plan, pieces.weights(stage), slots, BATCH)
            assert replace(parts, state=real.state) == real
            assert 0 <= parts.state - real.state <= 4 * COUNTERS  # counted also where no launch has parts of K


@pytest.mark.parametrize(("name", "tied"), [("llama", False), ("windows", True)])
def test_bits_per_weight_are_those_of_the_stored_tensors(name: str, tied: bool):
    spec = config_of(name).decoder
    assert spec.tied == tied
    skeleton = pieces_of(name, "int4", 1).skeleton
    stored = {one: (rows, columns, INT4.format_of(one)) for one, (rows, columns) in spec.linears().items()}
    if not tied:
        stored[spec.embedding] = (spec.vocab_size, spec.hidden_size, "none")
    bits = sum(r * c * (16 if f == "none" else FORMATS[f].bits_per_weight(r, c)) for r, c, f in stored.values())
    assert skeleton.bits_per_weight == pytest.approx(bits / sum(r * c for r, c, _ in stored.values()))
