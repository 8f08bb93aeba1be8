"""How many launches a layer has, and which norms and orders of activations linears take over."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.dumps import drafted_plan, legal_graph

from llmc.runtime.plan.plan import Plan, Program

LINEARS = ("linear_small", "linear_large", "linear_fp8", "linear_fp4")
WIDE = {"hidden_size": 128, "intermediate_size": 256, "head_dim": 32}
"""All rows are whole chunks of 128 columns."""


def kernels(plan: Plan, program: Program) -> list[str]:
    return [plan.modules[launch.module].kernel for launch in program.kernels]


def a_layer(plan: Plan, program: Program) -> list[str]:
    """From the first layer's q|k|v to the second's."""
    found = kernels(plan, program)
    at = [index for index, name in enumerate(found) if name in LINEARS]
    return found[at[0] : at[4]]


@pytest.mark.parametrize("quantize", ["none", "fp8", "int4", "nvfp4"])
def test_a_layer_has_six_launches(tmp_path: Path, quantize: str):
    plan = drafted_plan(legal_graph(tmp_path, "sm_90", quantize, config=WIDE))
    for program in plan.programs:
        assert len(a_layer(plan, program)) == 6
        norms = kernels(plan, program).count("rms_norm")
        assert norms == (1 if program.decode else 2)  # before the first layer; where rows are selected


def test_activations_of_4_bit_weights_are_in_their_order(tmp_path: Path):
    plan = drafted_plan(legal_graph(tmp_path, "sm_90", "int4", config=WIDE))
    for program in plan.programs:
        if program.tokens == 64:  # few tokens too, but the last layer's rows are selected
            continue
        for launch in program.kernels:
            module = plan.modules[launch.module]
            if module.kernel in ("linear_small", "linear_large") and module.constants["FORMAT"] == "int4":
                assert module.constants["ORDERED"] is program.decode, launch.label
            elif module.kernel.startswith("attention"):
                assert module.constants["ORDER"] == (8 if program.decode else 0)


def test_readers_of_different_formats_get_columns_as_they_are(tmp_path: Path):
    """gate and up in 8 bits, q, k and v in 4: each norm is for one of them, so each has its order; o has none."""
    rules = {"*self_attn.o_proj": "none", "*mlp.*": "int8"}
    plan = drafted_plan(legal_graph(tmp_path, "sm_90", "int4", config=WIDE, rules=rules))
    orders = {}
    for launch in plan.programs[0].kernels:
        constants = plan.modules[launch.module].constants
        if plan.modules[launch.module].kernel == "linear_small":
            orders[constants["FORMAT"]] = orders.get(constants["FORMAT"], set()) | {constants["ORDERED"]}
        elif plan.modules[launch.module].kernel == "attention_decode":
            assert constants["ORDER"] == 0
    assert orders == {"int4": {True}, "int8": {True}, "dense": {False}}


def test_in_float16_a_norm_has_its_launch(tmp_path: Path):
    plan = drafted_plan(
        legal_graph(tmp_path, "sm_90", "int4", config={**WIDE, "torch_dtype": "float16"}), dtype="float16"
    )
    for program in plan.programs:
        assert kernels(plan, program).count("rms_norm") == 5  # two a layer, and the last
        assert not any("squares" in name for launch in program.kernels for name in launch.tensors)
