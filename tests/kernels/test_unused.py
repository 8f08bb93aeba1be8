"""Kernels and forms of their arguments that no lowering uses: one table, which can only shrink.

A form is what a call fixes of a parameter: a tensor that is given or not (None), a name or a truth value as it is, and
of a number whether it is 0. What a kernel file's cases and real calls have is offered; what the plans of `_TOYS` have
is used. The rest is in `WAITING`: a kernel arrives with the lowering that calls it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest
from support.dumps import legal_graph
from support.samples.dense import wider
from support.samples.mixtures import wider as experts

from llmc.compiler.families.spec import DecoderSpec
from llmc.compiler.targets import ProfileConfig
from llmc.compiler.targets.cuda.call import EMULATE, Kernel
from llmc.compiler.targets.cuda.emit import draft
from llmc.compiler.targets.cuda.kernels import suites
from llmc.quantize import FORMATS
from llmc.runtime.plan.between import RankOf
from llmc.runtime.plan.plan import Plan

pytestmark = pytest.mark.soak
WAITING = {
    "moe_gated_sum": "an operator between the experts and the sum with a shared expert that has a gate",
    "probe_*": "nothing: benchmarks measure launches and memory with them",
    "quantize_blocks": "checkpoints in FP8 with scales of blocks",
    "linear_fp8.BLOCKS=True": "checkpoints in FP8 with scales of blocks",
    "quantize_static": "checkpoints with calibrated activations",
    "linear_fp8.STATIC=True": "checkpoints with calibrated activations",
    "linear_fp8.PROMOTE=True": "a measurement of what it costs to add up in float32 every 128 columns",
    "linear_stream": "a table of measured tiles",
    "linear_gemm": "a table of measured tiles",
    "gated.ACTIVATION=relu": "a plan of it whose linear does not apply the activation",
    "gated.ACTIVATION=gelu*": "a plan of it whose linear does not apply the activation",
    "linear_f*.residual=given": "a pass that moves the addition into the linear",
}
"""Patterns of what no lowering uses, and what each waits for. A lowering that uses what a line names removes it."""


@dataclass(frozen=True)
class _Toy:
    """A model whose plans are looked at: changes of the toy's config, formats for some linears by glob, and changes of
    the records, for what the families of the table do not have."""

    config: Mapping[str, Any] = field(default_factory=dict)
    rules: Mapping[str, str] = field(default_factory=dict)
    records: Callable[[DecoderSpec], DecoderSpec] = lambda same: same


_BASE = {"hidden_size": 256, "intermediate_size": 256}
"""Wide enough for blocks of 128 weights; no weight is ever made."""
_MIXTURE = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 256,
}
_TOYS = (
    _Toy(),
    _Toy({"hidden_size": 2048, "intermediate_size": 2048}),  # parts of K
    _Toy({"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True}),
    _Toy({"architectures": ["Qwen3ForCausalLM"]}),
    _Toy({"architectures": ["MistralForCausalLM"], "sliding_window": 64}),
    _Toy({"tie_word_embeddings": True}, {"*.down_proj": "none", "lm_head": "int4"}),
    _Toy(_MIXTURE),
    _Toy({**_MIXTURE, "hidden_size": 2048, "moe_intermediate_size": 2048}),  # parts of K
)
"""Every form that can be lowered is in one of them: a family that brings a form brings its line."""
_LATENT = {
    "architectures": ["DeepseekV3ForCausalLM"],
    "first_k_dense_replace": 2,
    "num_key_value_heads": 4,
    "kv_lora_rank": 128,
    "q_lora_rank": 256,
    "qk_rope_head_dim": 16,
    "qk_nope_head_dim": 64,
    "v_head_dim": 64,
}
"""Latent attention in layers without experts."""
_LATENTS = (
    _Toy(_LATENT),
    # enough heads that no sequence of the largest batch is split
    _Toy(
        {**_LATENT, "q_lora_rank": None, "rope_interleave": False, "num_attention_heads": 32},
        records=wider.tempered,
    ),
)
_WIDER = tuple(_Toy(records=one) for one in (wider.attention, wider.around, wider.activations, experts.mixtures))
"""Records that no config of the toy gives; their linears are those of the others."""
_RANKS = (1, 2)
"""Ranks of tp2-pp2 that cut activations for the next stage, and that join them."""


def _form(value: object) -> str:
    if value is None or isinstance(value, bool | str):
        return str(value)
    return "given" if value else "0"


def _forms(kernel: Kernel, constants: Mapping[str, object]) -> Iterator[str]:
    yield kernel.name
    for name in kernel.parameters:
        if name != EMULATE:
            yield f"{kernel.name}.{name}={_form(constants[name]) if name in constants else 'given'}"


def _plans(folder: Path) -> Iterator[Plan]:
    """The plans of every toy in every format, with FP8 activations and cache and without."""
    every = (
        *itertools.product(_TOYS, ("none", *FORMATS), ("none", "fp8")),
        *itertools.product(_WIDER, ("none", "fp8"), ("none", "fp8")),
        *itertools.product(_LATENTS, ("none", "int4"), ("none", "fp8")),
    )
    for toy, quantize, fp8 in every:
        config = {**_BASE, **toy.config}
        graph = legal_graph(folder, "sm_90", quantize, fp8, config, toy.rules, records=toy.records)
        yield draft(graph, ProfileConfig(256, 64, "bfloat16", fp8), 90)[0]
    for toy, fp4 in itertools.product(_TOYS[:3], ("nvfp4", "mxfp4")):
        graph = legal_graph(folder, "sm_100", fp4, fp4, {**_BASE, **toy.config}, toy.rules)
        yield draft(graph, ProfileConfig(256, 64, "bfloat16"), 100)[0]
    for toy, rank in itertools.product((_TOYS[0], _TOYS[2]), _RANKS):
        graph = legal_graph(folder, "sm_90", "fp8", config={**_BASE, **toy.config}, rank=("tp2-pp2", rank))
        yield draft(graph, ProfileConfig(256, 64, "bfloat16", rank=RankOf(rank, 2, 2)), 90)[0]


@pytest.fixture(scope="module")
def offered() -> set[str]:
    every = suites().values()
    calls = [
        *(call for suite in every for call in suite.calls(90)),
        *(c.call for suite in every for c in suite.cases()),
    ]
    forms = {form for call in calls for form in _forms(call.kernel, call.constants)}
    return forms | {kernel.name for suite in every for kernel in suite.kernels}


@pytest.fixture(scope="module")
def used(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    kernels = {kernel.name: kernel for suite in suites().values() for kernel in suite.kernels}
    modules = (module for plan in _plans(tmp_path_factory.mktemp("toys")) for module in plan.modules)
    return {form for module in modules for form in _forms(kernels[module.kernel], module.constants)}


def _lines(form: str) -> list[str]:
    """The lines of the table that name a form; the line of a whole kernel names its forms too."""
    return [line for line in WAITING if fnmatchcase(form, line) or fnmatchcase(form.partition(".")[0], line)]


def test_what_no_lowering_uses_is_in_the_table(offered: set[str], used: set[str]):
    assert sorted(form for form in offered - used if not _lines(form)) == [], "unused, and not in WAITING"


def test_no_argument_is_off_everywhere(offered: set[str], used: set[str]):
    """Of an argument that no case, no real call and no lowering turns on, nobody knows whether it works.

    A kernel and its form for an FP8 cache are one function.
    """
    values: dict[str, set[str]] = {}
    for name, _, value in (form.partition("=") for form in offered | used if "=" in form):
        values.setdefault(name.replace("_fp8.", "."), set()).add(value)
    assert sorted(name for name, found in values.items() if found <= {"None", "False", "0"}) == []


def test_a_line_goes_when_a_lowering_uses_what_it_names(offered: set[str], used: set[str]):
    assert {form: _lines(form) for form in sorted(used) if _lines(form)} == {}, "used now: remove the line"
    needed = {line for form in offered - used for line in _lines(form)}
    assert sorted(set(WAITING) - needed) == [], "no kernel offers this any more: remove the line"


def test_what_a_lowering_uses_has_a_case_or_a_real_call(offered: set[str], used: set[str]):
    assert sorted(used - offered) == []
