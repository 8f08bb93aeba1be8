"""NaN through E4M3 and back: it stays NaN in what depends on it, and what does not keeps every bit.

The cases of the kernels cannot say so: a NaN that they expect means that any value is right.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import pytest
import torch
from support.kernel_cases import CASES

from llmc.compiler.targets.cuda.call import Case, Operand
from llmc.compiler.targets.cuda.cubins.compile import compile_all, specialization_of
from llmc.compiler.targets.cuda.kernels.attention.reference import PAGE
from llmc.compiler.targets.cuda.kernels.quantize_activations import quantized
from llmc.compiler.targets.simulate.call import blank, launch
from llmc.runtime.progress import NO_PROGRESS

NAN, INFINITY = float("nan"), float("inf")
NAN_CODE = 0x7F
Tensors = Mapping[str, torch.Tensor]

pytestmark = pytest.mark.filterwarnings(
    "ignore:invalid value encountered:RuntimeWarning", "ignore:All-NaN slice encountered:RuntimeWarning"
)


def results(case: Case, changed: Tensors) -> dict[str, torch.Tensor]:
    """The tensors of a case after its launch, with other inputs."""
    inputs = {**case.inputs, **changed}
    operands = [a for a in case.call.arguments.values() if isinstance(a, Operand)]
    tensors = {o.name: inputs[o.name].clone() if o.name in inputs else blank(o, case.sizes) for o in operands}
    launch(case.call, tensors, case.sizes)
    return tensors


def is_nan(tensor: torch.Tensor) -> torch.Tensor:
    """Which elements are NaN; those of u8 are E4M3 bits."""
    return (tensor & 0x7F) == NAN_CODE if tensor.dtype == torch.uint8 else tensor.isnan()


def changed_at(tensor: torch.Tensor, *places: tuple[tuple[int, ...], float]) -> torch.Tensor:
    other = tensor.clone()
    for place, number in places:
        other[place] = number
    return other


def check_only(before: torch.Tensor, after: torch.Tensor, spoiled: torch.Tensor) -> None:
    """NaN exactly where `spoiled` says; all else is what it was."""
    assert not is_nan(before).any(), "a case without NaN has none"
    assert torch.equal(is_nan(after), spoiled)
    assert torch.equal(after[~spoiled], before[~spoiled])


def mask(tensor: torch.Tensor, *places: tuple[int | slice, ...]) -> torch.Tensor:
    found = torch.zeros(tensor.shape, dtype=torch.bool)
    for place in places:
        found[place] = True
    return found


@pytest.mark.parametrize("name", ["rows-bf16-3x300", "blocks-bf16-3x1300", "static-bf16-3x1367"])
def test_an_activation_that_is_nan_is_nan_as_a_code(name: str):
    case = CASES[f"quantize_activations:{name}"]
    x = case.inputs["x"]
    before, after = results(case, {}), results(case, {"x": changed_at(x, ((1, 77), NAN), ((2, 5), -NAN))})
    check_only(before["codes"], after["codes"], mask(x, (1, 77), (2, 5)))
    assert torch.equal(after["scales"], before["scales"]), "maxima pass over NaN"


@pytest.mark.parametrize("number", [INFINITY, -INFINITY])
@pytest.mark.parametrize("name", ["rows-bf16-3x300", "blocks-bf16-3x1300", "static-bf16-3x1367"])
def test_an_infinite_activation_is_nan_as_a_code_and_its_scale_is_infinite(name: str, number: float):
    case = CASES[f"quantize_activations:{name}"]
    x = case.inputs["x"]
    before, after = results(case, {}), results(case, {"x": changed_at(x, ((1, 77), number))})
    assert torch.equal(is_nan(after["codes"]), mask(x, (1, 77)))
    shared = {"rows": (1, slice(None)), "blocks": (1, slice(0, 128)), "static": (1, 77)}[name.split("-")[0]]
    others = ~mask(x, shared)
    assert torch.equal(after["codes"][others], before["codes"][others])
    if not name.startswith("static"):
        assert (after["codes"][mask(x, shared) & ~mask(x, (1, 77))] & 0x7F == 0).all()
        assert (after["scales"] == INFINITY).sum() == 1


@pytest.mark.parametrize("form", ["rows", "blocks"])
def test_the_definition_in_torch_has_the_same_codes(form: str):
    case = CASES[f"quantize_activations:{form}-bf16-{'3x300' if form == 'rows' else '3x1300'}"]
    x = changed_at(case.inputs["x"], ((0, 3), NAN), ((1, 77), INFINITY), ((2, 5), NAN), ((2, 6), -INFINITY))
    x[0, :128] = NAN  # all of a block
    codes, scales = quantized(x, form)
    found = results(case, {"x": x})
    assert torch.equal(is_nan(found["codes"]), is_nan(codes))
    assert torch.equal(found["codes"][~is_nan(codes)], codes[~is_nan(codes)])
    assert torch.equal(found["scales"], scales)


@pytest.mark.parametrize("name", ["norm-fp8", "add-fp8"])
def test_a_token_with_nan_is_nan_after_its_norm(name: str):
    case = CASES[f"norm:{name}"]
    x = case.inputs["x"]
    before, after = results(case, {}), results(case, {"x": changed_at(x, ((1, 7), NAN))})
    check_only(before["y"], after["y"], mask(x, (1, slice(None))))


@pytest.mark.parametrize(
    "name",
    ["silu-fp8-3x1500", "gelu-fp8-1x96", "gelu_pytorch_tanh-fp8-33x64", "relu-fp8-2x1024", "relu-bf16-2x1024"],
)
@pytest.mark.parametrize("half", [0, 1])
def test_a_gate_or_an_up_that_is_nan_is_nan_in_the_product(name: str, half: int):
    case = CASES[f"gated:{name}"]
    x = case.inputs["x"]
    width = x.shape[1] // 2
    before, after = results(case, {}), results(case, {"x": changed_at(x, ((0, half * width + 9), NAN))})
    check_only(before["y"], after["y"], mask(before["y"], (0, 9)))


def test_a_key_and_a_value_that_are_not_finite_are_nan_in_the_cache():
    case = CASES["attention.rope_cache:3-1x80-u8-normed"]
    qkv, size = case.inputs["qkv"], 80
    value_at = (3 + 1) * size
    places = (((0, 3 * size + 11), NAN), ((1, value_at + 4), INFINITY), ((2, value_at + 79), -INFINITY))
    before = results(case, {})
    after = results(case, {"qkv": changed_at(qkv, *places, ((4, value_at), NAN), ((3, value_at), NAN))})
    slots = [(slot // PAGE, slot % PAGE) for slot in case.inputs["slot_mapping"].tolist()]
    assert slots[3] == (-1, 63), "token 3 is not stored"
    page, at = slots[0]
    check_only(before["key"], after["key"], mask(after["key"], (page, 0, at)))  # the norm of a head is of all of it
    spoiled = [(slots[token][0], 0, slots[token][1], dim) for token, dim in ((1, 4), (2, 79), (4, 0))]
    check_only(before["value"], after["value"], mask(after["value"], *spoiled))
    assert torch.equal(after["q"], before["q"])


@pytest.mark.parametrize(("code", "column"), [(0x7F, 5), (0xFF, 6)])
@pytest.mark.parametrize("name", ["flash_decode:8-1x128-fp8-1", "flash_decode:3-3x96-fp8-2"])
def test_a_decoding_sequence_reads_nan_from_the_cache(name: str, code: int, column: int):
    case = CASES[f"attention.{name}"]
    _, kv_heads, _, size = case.inputs["key"].shape
    heads = case.inputs["q"].shape[1] // size
    group = heads // kv_heads
    block = int(case.inputs["block_tables"][0, 1])  # position 64 + 3 of sequence 0
    place = (block, kv_heads - 1, 3, column)
    before = results(case, {})["out"]
    width = mask(before, (0, slice((heads - group) * size, heads * size)))
    after = results(case, {"key": changed_at(case.inputs["key"], (place, code))})["out"]
    check_only(before, after, width)
    after = results(case, {"value": changed_at(case.inputs["value"], (place, code))})["out"]
    spoiled = [(0, (heads - group + member) * size + column) for member in range(group)]
    check_only(before, after, mask(before, *spoiled))


@pytest.mark.parametrize("code", [0x7F, 0xFF])
def test_a_prompt_reads_nan_from_the_cache(code: int):
    """The last 7 of sequence 0's 70 positions are queries: those from position 66 on see the key that is spoiled there.

    The earlier ones of the same program multiply its value by a weight of 0, and 0 times NaN is NaN.
    """
    case = CASES["attention.flash_prefill:4-1x64-fp8"]
    place = (int(case.inputs["block_tables"][0, 1]), 0, 66 - PAGE, 5)
    before = results(case, {})["out"]
    after = results(case, {"key": changed_at(case.inputs["key"], (place, code))})["out"]
    check_only(before, after, mask(before, (slice(3, 7), slice(None))))
    after = results(case, {"value": changed_at(case.inputs["value"], (place, code))})["out"]
    check_only(before, after, mask(before, *((slice(0, 7), head * 64 + 5) for head in range(4))))


@pytest.mark.parametrize("name", ["rows-bf16-33x70x128", "blocks-f16-3x200x320", "static-f16-33x130x384"])
def test_a_token_with_a_nan_code_is_nan_after_a_linear(name: str):
    case = CASES[f"linear.fp8:{name}"]
    before = results(case, {})["y"]
    after = results(case, {"x": changed_at(case.inputs["x"], ((1, 2), 0x7F), ((2, 100), 0xFF))})["y"]
    check_only(before, after, mask(before, (slice(1, 3), slice(None))))


def test_a_scale_that_is_nan_is_nan_in_the_weights_made_of_it():
    case = CASES["linear.expand_fp8:int8-3x96"]
    scales = changed_at(case.inputs["weight_scale"], ((1, 2), NAN))
    before, after = results(case, {})["codes"], results(case, {"weight_scale": scales})["codes"]
    assert torch.equal(is_nan(after), mask(after, (1, slice(64, 96))))
    assert torch.equal(after[[0, 2]], before[[0, 2]])


def test_the_compiled_conversion_keeps_nan():
    """PTX for sm_89, where every number that becomes E4M3 had a product with 0 added to it."""
    specialization = specialization_of(CASES["quantize_activations:static-bf16-3x1367"].call)
    text = compile_all([specialization], 89, progress=NO_PROGRESS)[specialization].ptx or ""
    converted = re.findall(r"cvt\.rn\.satfinite\.e4m3x2\.f32\s+%rs\d+, (%r\d+), (%r\d+);", text)
    added = re.findall(r"fma\.rn\.f32\s+(%r\d+), %r\d+, 0f00000000, %r\d+;", text)
    assert len(converted) == 8
    assert {*added} >= {register for pair in converted for register in pair}


def test_compiled_attention_reads_all_codes_of_the_cache_as_pairs():
    """PTX for sm_89: the conversion that keeps NaN, of words of two codes whose low and high ones are put together."""
    specialization = specialization_of(CASES["attention.flash_decode:8-1x128-fp8-1"].call)
    text = compile_all([specialization], 89, progress=NO_PROGRESS)[specialization].ptx or ""
    ways = re.findall(
        r"prmt\.b32 w, %r\d+, 0, 0x3120; mov\.b32 \{a, b\}, w; "
        r"cvt\.rn\.f16x2\.e4m3x2 (%r\d+), a; cvt\.rn\.f16x2\.e4m3x2 (%r\d+), b;",
        text,
    )
    assert len({register for way in ways for register in way}) == text.count("cvt.rn.f16x2.e4m3x2")
    assert len(ways) == 2 * PAGE * 128 // 4 // 128, "a page of keys and values, 128 threads, four codes each"
