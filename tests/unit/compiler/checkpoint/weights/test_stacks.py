"""Weights of experts: every spelling of the files gives the same stack, and what is missing is named."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from llmc.compiler.checkpoint.folder import Folder
from llmc.compiler.checkpoint.weights.shards import read_header
from llmc.compiler.checkpoint.weights.source import FileSource
from llmc.compiler.checkpoint.weights.stacks import Stacked, places_of
from llmc.compiler.families.spec import Spelling, Stack
from llmc.quantize import FORMATS

EXPERTS, WIDTH, HIDDEN = 3, 4, 64
SEPARATE = Spelling(
    ("experts.{}.gate.weight", "experts.{}.up.weight"), biases=("experts.{}.gate.bias", "experts.{}.up.bias")
)
STACKED = Spelling(("experts.both",), biases=("experts.both_bias",))
TURNED = Spelling(("experts.both",), turned=True, biases=("experts.both_bias",))
ALTERNATE = Spelling(("experts.both",), turned=True, alternate=True, biases=("experts.both_bias",))
BLOCKS = Spelling(("experts.blocks", "experts.scales"), alternate=True, format="mxfp4", biases=("experts.both_bias",))


def stack(*spellings: Spelling, bias: bool = True) -> Stack:
    return Stack("experts.gate_up_proj", EXPERTS, 2 * WIDTH, HIDDEN, spellings, gated=True, bias=bias)


def source(folder: Path, tensors: Mapping[str, torch.Tensor]) -> FileSource:
    folder.mkdir(exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
    opened = Folder(folder).open("model.safetensors")
    return FileSource({name: (opened, info) for name, info in read_header(opened, before=0).tensors.items()})


GATE, UP = torch.randn(2, EXPERTS, WIDTH, HIDDEN, generator=torch.Generator().manual_seed(0)).unbind(0)
GATE_BIAS, UP_BIAS = torch.randn(2, EXPERTS, WIDTH, generator=torch.Generator().manual_seed(1)).unbind(0)
WHOLE = torch.stack([GATE, UP], 2).reshape(EXPERTS, 2 * WIDTH, HIDDEN)
"""As a decoder reads it: rows take turns."""
WHOLE_BIAS = torch.stack([GATE_BIAS, UP_BIAS], 2).reshape(EXPERTS, 2 * WIDTH)
SIDE_BY_SIDE, SIDE_BY_SIDE_BIAS = torch.cat([GATE, UP], 1), torch.cat([GATE_BIAS, UP_BIAS], 1)
FILES = {
    "separate": (
        SEPARATE,
        {
            f"experts.{at}.{name}.{end}": part[at]
            for at in range(EXPERTS)
            for name, parts in (("gate", (GATE, GATE_BIAS)), ("up", (UP, UP_BIAS)))
            for end, part in zip(("weight", "bias"), parts, strict=True)
        },
    ),
    "stacked": (STACKED, {"experts.both": SIDE_BY_SIDE, "experts.both_bias": SIDE_BY_SIDE_BIAS}),
    "turned": (TURNED, {"experts.both": SIDE_BY_SIDE.mT, "experts.both_bias": SIDE_BY_SIDE_BIAS}),
    "alternate": (ALTERNATE, {"experts.both": WHOLE.mT, "experts.both_bias": WHOLE_BIAS}),
    "own": (STACKED, {"experts.gate_up_proj.weight": WHOLE, "experts.gate_up_proj.bias": WHOLE_BIAS}),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", FILES)
def test_every_spelling_is_the_same_stack(tmp_path: Path, name: str, dtype: torch.dtype) -> None:
    spelling, tensors = FILES[name]
    files = source(tmp_path / "c", {one: tensor.to(dtype) for one, tensor in tensors.items()})
    places, shapes = places_of(stack(spelling), "", str, files.names)
    assert {one: files.info(one).shape for one in files.names} == shapes
    for end, expected in (("weight", WHOLE.to(dtype)), ("bias", WHOLE_BIAS.to(dtype))):
        place = places[f"experts.gate_up_proj.{end}"]
        info = place.info(files)
        assert info.shape == tuple(expected.shape) and info.nbytes == expected.nbytes
        for first, last in ((0, EXPERTS), (1, 2), (2, 2)):
            rows = torch.from_numpy(place.rows(files, first, last))
            assert torch.equal(rows.view(dtype), expected[first:last])
        with pytest.raises(IndexError, match="experts 0 to 4 of"):
            place.rows(files, 0, EXPERTS + 1)


def test_stored_codes_keep_their_bytes(tmp_path: Path) -> None:
    parts = [FORMATS["mxfp4"].quantize(one) for one in WHOLE]
    codes, scales = (np.stack([one[name] for one in parts]) for name in ("weight", "weight_scale"))
    blocks = torch.from_numpy(codes).reshape(EXPERTS, 2 * WIDTH, HIDDEN // 32, 16)
    tensors = {"experts.blocks": blocks, "experts.scales": torch.from_numpy(scales), "experts.both_bias": WHOLE_BIAS}
    files = source(tmp_path / "c", tensors)
    places, shapes = places_of(stack(ALTERNATE, BLOCKS), "", str, files.names)
    assert {one: files.info(one).shape for one in files.names} == shapes
    for end, expected, dtype in (("weight", codes, "U8"), ("weight_scale", scales, "F8_E8M0")):
        place = places[f"experts.gate_up_proj.{end}"]
        assert place.info(files).dtype == dtype and place.info(files).shape == expected.shape
        assert np.array_equal(place.rows(files, 0, EXPERTS), expected)


def test_the_spelling_with_the_most_tensors_is_taken() -> None:
    """So an error names what is missing of it, and not the tensors of a spelling that nobody meant."""
    both = stack(SEPARATE, STACKED, bias=False)
    present = {f"experts.{at}.{part}.weight" for at in range(EXPERTS) for part in ("gate", "up")}
    for missing in present:
        places, shapes = places_of(both, "", str, present - {missing})
        assert shapes.keys() == present
        assert places["experts.gate_up_proj.weight"].separate
    assert places_of(both, "", str, {"experts.both"})[1] == {"experts.both": (EXPERTS, 2 * WIDTH, HIDDEN)}
    assert places_of(both, "", str, ())[1].keys() == present  # the first one


def test_prefixes_of_the_files_are_kept() -> None:
    places, shapes = places_of(stack(SEPARATE, bias=False), "layers.7.", lambda name: f"text.{name}", ())
    assert "text.layers.7.experts.2.up.weight" in shapes
    assert [*places] == ["layers.7.experts.gate_up_proj.weight"]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=30)
@given(st.integers(1, 5), st.integers(1, 6), st.integers(1, 6), st.booleans(), st.booleans())
def test_any_sizes(tmp_path: Path, experts: int, rows: int, columns: int, gated: bool, turned: bool) -> None:
    rows = 2 * rows if gated else rows
    whole = torch.arange(experts * rows * columns, dtype=torch.float32).reshape(experts, rows, columns)
    expected = whole
    if gated:
        expected = torch.stack([whole[:, : rows // 2], whole[:, rows // 2 :]], 2).reshape(whole.shape)
    files = source(tmp_path / "c", {"w": whole.mT if turned else whole})
    one = Stack("m", experts, rows, columns, (Spelling(("w",), turned=turned),), gated=gated)
    places, _ = places_of(one, "", str, files.names)
    assert np.array_equal(places["m.weight"].rows(files, 0, experts), expected.numpy())


def test_a_stack_tells_every_tensor_it_needs() -> None:
    place = Stacked(("a.{}", "b.{}"), 2, (4, 3))
    assert [*place.tensors()] == ["a.0", "a.1", "b.0", "b.1"]
    assert [*replace(place, names=("c",)).tensors()] == ["c"]


@pytest.mark.parametrize("odd", ["experts.1.gate.weight", "experts.0.gate.weight", "experts.2.up.weight"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_experts_of_several_dtypes_become_float32(tmp_path: Path, odd: str, dtype: torch.dtype) -> None:
    """Raw numbers of bf16 are integers to numpy, which would join them with floats by value."""
    spelling, tensors = FILES["separate"]
    halves = {name: tensor.to(torch.bfloat16) for name, tensor in tensors.items()}
    mixed = {name: halves[name].to(dtype) if name == odd else halves[name].float() for name in halves}
    files = source(tmp_path / "c", mixed)
    place = places_of(stack(spelling), "", str, files.names)[0]["experts.gate_up_proj.weight"]
    rows = place.rows(files, 0, EXPERTS)
    assert place.info(files).dtype == "F32" and rows.dtype == np.float32
    expected = WHOLE.to(torch.bfloat16).float()
    assert np.array_equal(rows, expected.numpy()) or dtype == torch.float16
    assert np.array_equal(rows, expected.numpy())
