"""Which launches a layer with experts has, what they read, and how large their buffers are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from support.dumps import drafted_plan, legal_graph
from support.samples.mixtures import wider

from llmc.compiler.families.spec import DecoderSpec
from llmc.compiler.targets.cuda.kernels.moe.combine import KERNEL as COMBINE
from llmc.compiler.targets.cuda.kernels.moe.route import KERNEL as ROUTE
from llmc.runtime.plan.formula import value
from llmc.runtime.plan.plan import Launch, Plan, Program

SIZES = {"hidden_size": 128, "intermediate_size": 256}
EXPERTS = ["moe_route", "moe_sort", "moe_linear", "moe_linear", "moe_combine"]


def one_layer(index: int) -> Callable[[DecoderSpec], DecoderSpec]:
    def records(spec: DecoderSpec) -> DecoderSpec:
        made = wider.mixtures(spec)
        return replace(made, layers=(made.layers[index],))

    return records


def many(spec: DecoderSpec) -> DecoderSpec:
    """Two layers of 64 experts, of which 4 compute a token."""
    layers = wider.mixtures(spec).layers[:2]
    mixture = wider.experts_of(spec, "normed", experts=64, chosen=4)
    return replace(spec, layers=tuple(replace(one, mlp=mixture) for one in layers))


def plan_of(folder: Path, records: Callable[[DecoderSpec], DecoderSpec], quantize: str = "none") -> Plan:
    return drafted_plan(legal_graph(folder, "sm_90", quantize, config=SIZES, records=records))


def kernel(plan: Plan, launch: Launch) -> str:
    return plan.modules[launch.module].kernel


def mlp_of(plan: Plan, program: Program) -> list[str]:
    """The kernels behind attention, its output linear and the norm, up to the last of the experts."""
    names = [kernel(plan, launch) for launch in program.kernels]
    start = next(at for at, name in enumerate(names) if name.startswith("attention"))
    assert names[start + 1 : start + 3] == ["linear_small", "rms_norm"]
    return names[start + 3 : names.index("moe_combine") + 1]


@pytest.mark.parametrize(
    ("layer", "others"),
    [
        (0, ["linear_small"]),  # the router
        (1, ["linear_small"] * 3),  # gate|up and down of the shared expert
        (3, ["linear_small"] * 4),  # its gate, too
    ],
)
def test_experts_have_five_launches_and_their_router_one(tmp_path: Path, layer: int, others: list[str]) -> None:
    """The sum of the experts adds the shared one, and its gate: nothing else does."""
    plan = plan_of(tmp_path, one_layer(layer))
    found = mlp_of(plan, plan.programs[0])
    assert found[-4:] == EXPERTS[-4:]
    assert sorted(found) == sorted([*others, *EXPERTS])
    names = [kernel(plan, launch) for launch in plan.programs[0].kernels]
    assert "add" not in names and "gated" not in names


def test_routers_and_gates_get_float32(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, one_layer(3))
    for program in plan.programs:
        for launch in program.kernels:
            given = {"moe_route": "logits", "moe_combine": "gate"}.get(kernel(plan, launch))
            if given is not None:
                number = _parameters(plan, launch).index(given)
                assert program.buffers[str(launch.arguments[number].tensor)].dtype == "f32"


def _parameters(plan: Plan, launch: Launch) -> list[str]:
    made = next(one for one in (ROUTE, COMBINE) if one.name == kernel(plan, launch))
    return made.given(plan.modules[launch.module].constants)


@pytest.mark.parametrize("quantize", ["none", "int4"])
def test_a_step_reads_the_experts_that_tokens_chose(tmp_path: Path, quantize: str) -> None:
    """One token reads 4 of 64 experts, and its 4 rows."""
    plan = plan_of(tmp_path, many, quantize)
    up = next(launch for launch in plan.programs[0].kernels if kernel(plan, launch) == "moe_linear")
    each = 2 * 256 * 128 * {"none": 16, "int4": 4.5}[quantize] / 8
    moved = 4 * (128 + 256) * 2
    assert value(up.bytes, dict.fromkeys(("tokens", "rows", "sequences"), 1)) == 4 * each + moved


def test_buffers_have_room_for_the_worst_choice(tmp_path: Path) -> None:
    """Rows are at most those of all assignments, and a block but one of padding for each expert that has any."""
    plan = plan_of(tmp_path, many)
    for program in plan.programs:
        launches = [launch for launch in program.kernels if kernel(plan, launch) == "moe_sort"]
        assert len(launches) == 2
        for launch in launches:
            block = plan.modules[launch.module].constants["BLOCK_M"]
            tokens = program.tokens if launch is launches[0] or program.decode else program.rows
            sizes = {"tokens": program.tokens, "rows": program.rows, "sequences": program.sequences}
            table = program.buffers[str(launch.arguments[1].tensor)]
            rows = value(table.shape[0], sizes)
            assert rows % block == 0
            assert rows <= 4 * tokens + min(64, 4 * tokens) * (block - 1)
            assert rows > 4 * tokens + min(64, 4 * tokens) * (block - 1) - block
