"""4-bit activations: kernels, definition and reference agree, NaN stays NaN, and FP4 tensor cores multiply them."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from support import graphs
from support.kernel_cases import CASES

from llmc.compiler.targets.cuda.call import KernelCall, Operand
from llmc.compiler.targets.cuda.cubins.compile import Cubin, Specialization, compile_all, specialization_of
from llmc.compiler.targets.cuda.cubins.figures import figures_of
from llmc.compiler.targets.cuda.cubins.sass import disassembler
from llmc.compiler.targets.cuda.kernels import suites
from llmc.compiler.targets.cuda.kernels.quantize_fp4 import hard
from llmc.compiler.targets.simulate.call import blank, launch
from llmc.quantize.activations import GROUP, NVFP4_UNIT, dequantize_activations, quantize_activations
from llmc.runtime.progress import NO_PROGRESS

NAN, INFINITY = float("nan"), float("inf")
SCALE_IS_NAN = {"nvfp4": 0x7F, "mxfp4": 0xFF}
_WARP = "mma.sync.aligned.m16n8k64.row.col.kind::mxf4nvf4.block_scale"
PTX = {
    (100, "nvfp4"): "tcgen05.mma.cta_group::1.kind::mxf4nvf4.block_scale.block16",
    (100, "mxfp4"): "tcgen05.mma.cta_group::1.kind::mxf4.block_scale.block32",
    (
        120,
        "nvfp4",
    ): "mma.sync.aligned.m16n8k64.row.col.kind::mxf4nvf4.block_scale.scale_vec::4X.f32.e2m1.e2m1.f32.ue4m3",
    (
        120,
        "mxfp4",
    ): "mma.sync.aligned.m16n8k64.row.col.kind::mxf4nvf4.block_scale.scale_vec::2X.f32.e2m1.e2m1.f32.ue8m0",
}
SASS = {
    (100, "nvfp4"): "UTCOMMA.4X",
    (100, "mxfp4"): "UTCOMMA",
    (120, "nvfp4"): "OMMA.SF.16864.F32.E2M1.E2M1.UE4M3.4X",
    (120, "mxfp4"): "OMMA.SF.16864.F32.E2M1.E2M1.E8",
}

pytestmark = pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")


@pytest.mark.parametrize("format", GROUP)
def test_the_reference_rounds_as_the_operator_is_defined(format: str) -> None:
    x = hard(4, 192, torch.Generator().manual_seed(3)).nan_to_num(nan=1.0, posinf=2.0, neginf=-3.0)
    x[2] *= torch.logspace(-12, 9, 192, base=2)
    example = graphs.parse(f"(float[4,192] x) => (float[4,192] y) {{ y = llmc.QuantizeActivations:{format}(x) }}")
    defined = graphs.run(example.graph, example.tensors, {"x": x.numpy()})["y"]
    found = dequantize_activations(*quantize_activations(x, format), format)
    np.testing.assert_array_equal(defined, found.float().numpy())


@pytest.mark.parametrize("format", GROUP)
def test_a_group_is_rounded_within_the_steps_of_its_scale(format: str) -> None:
    x = torch.randn(64, 256, generator=torch.Generator().manual_seed(4)) * torch.logspace(-4, 6, 64, base=2)[:, None]
    found = dequantize_activations(*quantize_activations(x, format), format)
    groups, errors = x.view(64, -1, GROUP[format]).abs().amax(2), (found - x).abs().view(64, -1, GROUP[format]).amax(2)
    assert float((errors / groups).max()) < 0.21  # as of weights: the largest of a group at 5 becomes 4
    assert torch.equal(found == 0, found.sign() == 0)


def test_scales_end_at_zero_and_at_the_largest_e4m3_number() -> None:
    x = torch.zeros(3, 16)
    x[1], x[2, 3] = 6 * 448 * NVFP4_UNIT * 4, 2.0**-20
    codes, scales = quantize_activations(x, "nvfp4")
    assert scales[:, 0].tolist() == [1, 0x7E, 1], "2^-9, 448 and 2^-9: no scale is zero"
    assert codes[0].tolist() == [0] * 8 and codes[1].tolist() == [0x77] * 8 and codes[2].tolist() == [0] * 8
    assert dequantize_activations(codes, scales, "nvfp4")[1].tolist() == [6 * 448 * NVFP4_UNIT] * 16


def results(name: str, **changed: torch.Tensor) -> dict[str, torch.Tensor]:
    """The tensors of a case after its launch, with other inputs."""
    case = CASES[name]
    inputs = {**case.inputs, **changed}
    operands = [a for a in case.call.arguments.values() if isinstance(a, Operand)]
    tensors = {o.name: inputs[o.name].clone() if o.name in inputs else blank(o, case.sizes) for o in operands}
    launch(case.call, tensors, case.sizes)
    return tensors


@pytest.mark.parametrize("format", GROUP)
@pytest.mark.parametrize("number", [NAN, -NAN, INFINITY, -INFINITY])
def test_a_group_with_a_number_that_is_not_finite_has_the_scale_nan_and_others_keep_theirs(
    format: str, number: float
) -> None:
    name = f"quantize_fp4:{format}-f16-2x160"
    x = CASES[name].inputs["x"].clone()
    before, (x[0, 77]) = results(name), number
    after = results(name, x=x)
    group = 77 // GROUP[format]
    assert after["scales"][0, group] == SCALE_IS_NAN[format] != before["scales"][0, group]
    others = torch.arange(160 // GROUP[format]) != group
    assert torch.equal(after["scales"][0, others], before["scales"][0, others])
    assert torch.equal(after["scales"][1], before["scales"][1]) and torch.equal(after["codes"][1], before["codes"][1])


@pytest.mark.parametrize("format", GROUP)
def test_a_token_with_nan_has_no_scale_but_nan_after_its_norm(format: str) -> None:
    x = CASES[f"norm:add-{format}"].inputs["x"].clone()
    x[1, 7] = NAN
    before, after = results(f"norm:add-{format}"), results(f"norm:add-{format}", x=x)
    assert (after["scales"][1] == SCALE_IS_NAN[format]).all()
    assert torch.equal(after["codes"][[0, 2]], before["codes"][[0, 2]])


@pytest.mark.parametrize(
    ("name", "format"),
    [("nvfp4-bf16-bf16-33x134x160", "nvfp4"), ("mxfp4-bf16-bf16-33x70x160", "mxfp4")],
)
def test_a_token_with_a_nan_scale_is_nan_after_a_linear(name: str, format: str) -> None:
    scales = CASES[f"linear.fp4:{name}"].inputs["scales"].clone()
    scales[1, 2] = SCALE_IS_NAN[format]
    before, after = results(f"linear.fp4:{name}")["y"], results(f"linear.fp4:{name}", scales=scales)["y"]
    assert after[1].isnan().all() and not before.isnan().any()
    others = torch.arange(len(before)) != 1
    assert torch.equal(after[others], before[others])


@pytest.mark.parametrize(
    ("name", "format"),
    [("nvfp4-relu-codes-5x192x128", "nvfp4"), ("mxfp4-gelu_pytorch_tanh-codes-5x192x64", "mxfp4")],
)
def test_a_token_with_a_nan_scale_has_nan_scales_in_the_codes_that_a_linear_writes(name: str, format: str) -> None:
    scales = CASES[f"linear.fp4:{name}"].inputs["scales"].clone()
    scales[1, 1] = SCALE_IS_NAN[format]
    after = results(f"linear.fp4:{name}", scales=scales)["y_scale"]
    is_nan = after == SCALE_IS_NAN[format]
    assert is_nan[1].all() and not is_nan[[0, 2, 3, 4]].any()


def test_a_value_of_the_cache_that_is_nan_is_nan_in_the_codes_of_attention() -> None:
    name = "attention.flash_prefill:6-2x96-fp8-nvfp4"
    case = CASES[name]
    value = case.inputs["value"].clone()
    value[int(case.inputs["block_tables"][1, 0]), 1, 0, 20] = 0x7F
    before, after = results(name), results(name, value=value)
    spoiled = torch.zeros(3, 36, dtype=torch.bool)
    spoiled[1, [head * 6 + 1 for head in (3, 4, 5)]] = True  # the group of column 20 of the heads of kv head 1
    assert torch.equal(after["scales"] == 0x7F, spoiled)
    assert torch.equal(after["scales"][~spoiled], before["scales"][~spoiled])


def calls(sm: int, format: str) -> list[KernelCall]:
    """Gate|up, whose epilogue quantizes, and down, which has the longest K."""
    found = [one for one in suites()["linear.fp4"].calls(sm) if one.constants["GROUP"] == GROUP[format]]
    return [one for one in found if one.constants["ACTIVATION"] or one.constants["K"] == 14336]


@pytest.fixture(scope="module", params=[*SASS], ids=lambda one: f"sm_{one[0]}-{one[1]}")
def compiled(request: pytest.FixtureRequest) -> tuple[int, str, dict[Specialization, Cubin]]:
    sm, format = request.param
    return sm, format, compile_all(map(specialization_of, calls(sm, format)), sm, progress=NO_PROGRESS)


def test_products_are_those_of_fp4_tensor_cores_and_no_code_becomes_a_wider_number(
    compiled: tuple[int, str, dict[Specialization, Cubin]],
) -> None:
    sm, format, cubins = compiled
    assert len(cubins) == 2
    for specialization, cubin in cubins.items():
        instructions = set(re.findall(r"\b(?:tcgen05\.mma|wgmma\.mma_async|mma\.sync)\.[\w.:]+", cubin.ptx))
        assert instructions == {PTX[sm, format]}, specialization
        assert not re.findall(r"cvt\.\S*\.e2m1\S*", cubin.ptx), "no code is converted"
        assert cubin.code.spills == 0


def test_the_machine_code_has_them_too(compiled: tuple[int, str, dict[Specialization, Cubin]]) -> None:
    sm, format, cubins = compiled
    program = disassembler()
    assert program is not None, "the extra 'dev' brings one"
    for figures in figures_of(cubins, sm, program).values():
        assert figures.mma == (SASS[sm, format],)
        assert figures.instr_per_weight is not None and figures.instr_per_weight < 2.1
