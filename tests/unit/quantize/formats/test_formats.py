"""Every weight format: its bytes against numpy oracles, its error against its bound, its ONNX text against ORT."""

from __future__ import annotations

from collections.abc import Iterator

import ml_dtypes
import numpy as np
import onnx
import onnx.parser
import onnxruntime as ort
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmc.quantize import FORMATS, chunks, format_named, require_finite
from llmc.quantize.format import Format, Parts
from llmc.runtime.errors import CheckpointError, RecipeError, Unsupported
from llmc.runtime.numbers import E2M1, E4M3, RAW_DTYPE, bf16_to_f32, to_f32

ALL = list(FORMATS.values())
BLOCKED = [f for f in ALL if f.block]
every_format = pytest.mark.parametrize("fmt", ALL, ids=lambda f: f.name)


def weight(rows: int, k: int, seed: int = 0, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    """Normal weights whose blocks differ in size, with a zero row, a zero block and a negative extreme."""
    rng = np.random.default_rng(seed)
    w = rng.standard_normal((rows, k)) * 0.02 * np.exp2(rng.integers(-3, 4, (rows, 1)))
    w[0, : k // 2] = 0
    w[rows // 2] = 0
    w[-1, -1] = -1
    return torch.from_numpy(w).to(dtype)


def assert_same(a: Parts, b: Parts) -> None:
    assert a.keys() == b.keys()
    for suffix in a:
        np.testing.assert_array_equal(a[suffix], b[suffix], err_msg=suffix)


def numpy_codes(name: str, w: np.ndarray) -> dict[str, np.ndarray]:
    """Slow and plain: values as the format's definition says, from float32 w. Unpacked codes, scales as float32."""
    one = np.float32(1)
    if name == "fp8":
        scale = np.maximum(np.abs(w).max(1, keepdims=True) / np.float32(448), np.float32(2.0**-100))
        return {"codes": (w / scale).astype(ml_dtypes.float8_e4m3fn).view(np.uint8), "scale": scale[:, 0]}
    block = FORMATS[name].block
    assert block
    v = w.reshape(len(w), -1, block)
    amax = np.abs(v).max(2, keepdims=True)
    if name.startswith("int"):
        half = 8 if name.startswith("int4") else 128
        index = np.abs(v).argmax(2)[..., None]
        extreme = np.take_along_axis(v, index, 2)
        extreme = np.where((v == -extreme).any(2, keepdims=True), amax, extreme)  # of two equal extremes, the positive
        scale = (extreme / np.float32(-half)).astype(ml_dtypes.bfloat16).astype(np.float32)
        scale = np.where(np.abs(scale) < 2.0**-100, np.float32(2.0**-100), scale)
        return {"codes": np.clip(np.rint(v / scale), -half, half - 1) + half, "scale": scale[..., 0]}
    if name == "nvfp4":
        s2 = amax.max() / np.float32(2688)
        ratio = amax / (np.float32(6) * s2)
        scale = np.clip(np.where(ratio == 0, one, ratio), np.float32(2.0**-9), np.float32(448))
        scale = scale.astype(ml_dtypes.float8_e4m3fn).astype(np.float32)
        whole = scale * s2
    else:
        mantissa, exponent = np.frexp(amax)  # mantissa in [0.5, 1)
        power = np.where(amax == 0, -100, np.maximum(exponent - 3 + (mantissa >= 1.8125 / 2), -100))
        scale = whole = np.ldexp(one, power.astype(np.int32))
    q = v / whole
    # ml_dtypes turns what exceeds 6 into 6; its ties go to even; the sign of zero is kept.
    return {"codes": q.astype(ml_dtypes.float4_e2m1fn).view(np.uint8), "scale": scale[..., 0]}


def unpacked(fmt: Format, raw: np.ndarray) -> np.ndarray:
    if fmt.layouts[0].step == 1:
        return raw
    return np.stack([raw & 15, raw >> 4], -1).reshape(len(raw), -1)


@every_format
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_bytes_are_those_of_the_definition(fmt: Format, dtype: torch.dtype) -> None:
    w = weight(37, 384, seed=3, dtype=dtype)
    parts = fmt.quantize(w)
    expected = numpy_codes(fmt.name, w.float().numpy())
    scale = to_f32(parts["weight_scale"], fmt.layouts[1].dtype)
    np.testing.assert_array_equal(scale, expected["scale"])
    np.testing.assert_array_equal(unpacked(fmt, parts["weight"]), expected["codes"].reshape(37, 384))


@every_format
def test_components_say_what_quantize_returns(fmt: Format) -> None:
    parts = fmt.quantize(weight(5, 256))
    stored = fmt.components(5, 256)
    assert [c.name for c in stored] == list(parts)
    for part in stored:
        assert parts[part.name].shape == part.shape and parts[part.name].dtype == RAW_DTYPE[part.dtype]


def test_bits_per_weight() -> None:
    bits = {f.name: f.bits_per_weight(4096, 4096) for f in ALL}
    assert bits == {
        "fp8": 8 + 32 / 4096,
        "nvfp4": 4.5 + 32 / 4096**2,
        "mxfp4": 4.25,
        "int8": 8.5,
        "int8-g128": 8.125,
        "int4": 4.5,
        "int4-g128": 4.125,
    }


def test_nvfp4_golden_vector() -> None:
    block = [0, 0.5, -1, 1.5, -2, 2.5, -3, 3.5, -4, 4.5, -5, 5.5, 6, -6, 0.25, -0.25]
    nvfp4 = FORMATS["nvfp4"]
    for amax, scale in ((6.0, 0x7E), (12.0, 0x76)):
        parts = nvfp4.quantize(torch.tensor([block]), amax)
        assert parts["weight_scale_2"].shape == () and parts["weight_scale_2"] == np.float32(amax) / np.float32(2688)
        assert parts["weight_scale"].tolist() == [[scale]]
        assert parts["weight"].tobytes().hex(" ") == "10 3a 4c 6d 6e 7e f7 80"
        decoded = nvfp4.dequantize(parts)[0]
        expected = np.array([0, 0.5, -1, 1.5, -2, 2, -3, 4, -4, 4, -4, 6, 6, -6, 0, -0.0], np.float32)
        np.testing.assert_allclose(decoded, expected, rtol=1e-6)
        assert np.signbit(decoded[15]) and not np.signbit(decoded[14])


@pytest.mark.parametrize(
    ("amax", "exponent"), [(1.0, 125), (1.8, 125), (1.8125, 126), (3.0, 126), (6.0, 127), (7.0, 127), (7.25, 128)]
)
def test_mxfp4_exponent_rule(amax: float, exponent: int) -> None:
    w = torch.zeros(1, 32)
    w[0, 7] = -amax
    parts = FORMATS["mxfp4"].quantize(w)
    assert parts["weight_scale"].tolist() == [[exponent]]


def test_int4_holds_the_extreme_exactly_and_packs_the_low_nibble_first() -> None:
    w = torch.tensor([[-8.0, 7, 1, 0, -1, 2, -3, 4] + [0.0] * 24])
    parts = FORMATS["int4"].quantize(w)
    assert bf16_to_f32(parts["weight_scale"]).tolist() == [[1.0]]
    assert parts["weight"][0, :4].tobytes().hex(" ") == "f0 89 a7 c5"
    np.testing.assert_array_equal(FORMATS["int4"].dequantize(parts), w.numpy())
    np.testing.assert_array_equal(FORMATS["int4"].dequantize(FORMATS["int4"].quantize(-w)), -w.numpy())


@every_format
def test_zeros_store_no_zero_scale(fmt: Format) -> None:
    parts = fmt.quantize(torch.zeros(3, 128, dtype=torch.bfloat16))
    for part in fmt.layouts[1:]:
        assert (to_f32(parts[part.suffix], part.dtype) > 0).all()
    assert (fmt.dequantize(parts) == 0).all()


@every_format
@pytest.mark.parametrize("scale", [2.0**-133, 2.0**-90, 2.0**100])
def test_tiny_and_huge_weights_stay_finite(fmt: Format, scale: float) -> None:
    w = (weight(4, 128, dtype=torch.float32) * scale).bfloat16()
    dense = fmt.dequantize(fmt.quantize(w))
    assert np.isfinite(dense).all()
    assert np.abs(dense - w.float().numpy()).max() <= max(scale * 0.2, 2.0**-99)


@st.composite
def weights(draw: st.DrawFn) -> tuple[Format, torch.Tensor]:
    """A format and a weight it takes: from one row and one block up, any bit patterns of moderate size."""
    fmt = draw(st.sampled_from(ALL))
    rows, units = draw(st.integers(1, 5)), draw(st.integers(1, 3))
    k = units * fmt.block if fmt.block else draw(st.integers(1, 70))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    spread = draw(st.integers(0, 12))
    w = rng.standard_normal((rows, k)) * np.exp2(rng.integers(-spread, spread + 1, (rows, k)))
    w[rng.random((rows, k)) < draw(st.sampled_from([0.0, 0.3, 1.0]))] = 0
    dtype = draw(st.sampled_from([torch.bfloat16, torch.float16, torch.float32]))
    return fmt, torch.from_numpy(w).to(dtype)


@settings(deadline=None, max_examples=150)
@given(weights())
def test_error_is_bounded_and_quantizing_again_changes_nothing(case: tuple[Format, torch.Tensor]) -> None:
    fmt, w = case
    parts = fmt.quantize(w)
    dense = fmt.dequantize(parts)
    assert dense.dtype == np.float32 and dense.shape == tuple(w.shape)
    wide = w.float().numpy()
    blocks = wide.reshape(-1, fmt.block or wide.shape[1])
    amax = np.abs(blocks).max(1, keepdims=True)
    floor = np.abs(wide).max() * 2.0**-15 if fmt.shares_scale else 0.0  # below, nvfp4's block scale is subnormal
    error = np.abs(dense.reshape(blocks.shape) - blocks)
    assert (error <= fmt.error_bound * np.maximum(amax, floor)).all()
    assert_same(parts, fmt.quantize(w))


@settings(deadline=None, max_examples=80)
@given(weights(), st.integers(0, 5), st.integers(0, 5))
def test_rows_in_chunks_are_the_whole_and_slices_commute(case: tuple[Format, torch.Tensor], a: int, b: int) -> None:
    fmt, w = case
    amax = require_finite(w, "w")
    whole = fmt.quantize(w, amax)
    dense = fmt.dequantize(whole)
    cut = min(a, w.shape[0])
    for start, stop in ((0, cut), (cut, w.shape[0])):
        if start < stop:
            rows = fmt.slice(whole, 0, start, stop)
            assert_same(fmt.quantize(w[start:stop], amax), rows)
            np.testing.assert_array_equal(fmt.dequantize(rows), dense[start:stop])
    unit = fmt.block or 1
    first = min(b, w.shape[1] // unit - 1) * unit
    columns = fmt.slice(whole, 1, first, first + unit)
    np.testing.assert_array_equal(fmt.dequantize(columns), dense[:, first : first + unit])


@pytest.fixture
def chunking() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@every_format
def test_bytes_do_not_depend_on_threads_or_chunk_size(fmt: Format, chunking: pytest.MonkeyPatch) -> None:
    w = weight(67, 512, seed=5)
    whole = fmt.quantize(w)
    dense = fmt.dequantize(whole)
    for threads, size in ((1, 1 << 20), (1, 1000), (3, 1000), (2, 1), (5, 4096)):
        chunking.setattr(chunks, "_cores", lambda threads=threads: threads)
        chunking.setattr(chunks, "CHUNK", size)
        assert_same(fmt.quantize(w), whole)
        np.testing.assert_array_equal(fmt.dequantize(whole), dense)


def test_torchs_own_thread_count_is_left_alone() -> None:
    before = torch.get_num_threads()
    FORMATS["int8"].quantize(weight(8, 64))
    assert torch.get_num_threads() == before


@every_format
def test_a_transposed_weight_is_read_by_its_values(fmt: Format) -> None:
    w = weight(128, 128)
    assert_same(fmt.quantize(w.T), fmt.quantize(w.T.contiguous()))


@every_format
def test_read_only_parts_are_read_without_a_warning(fmt: Format, recwarn: pytest.WarningsRecorder) -> None:
    parts = fmt.quantize(weight(4, 128))
    frozen = {suffix: np.frombuffer(raw.tobytes(), raw.dtype).reshape(raw.shape) for suffix, raw in parts.items()}
    np.testing.assert_array_equal(fmt.dequantize(frozen), fmt.dequantize(parts))
    assert not recwarn.list


@every_format
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_a_non_finite_weight_is_refused(fmt: Format, bad: float, dtype: torch.dtype) -> None:
    w = weight(9, 128, dtype=dtype)
    w[4, 77] = bad
    with pytest.raises(CheckpointError, match=r"expected finite numbers in weight\n  found: NaN or infinity"):
        fmt.quantize(w, 1.0)
    with pytest.raises(CheckpointError, match=r"expected finite numbers in model\.norm\.weight"):
        require_finite(w, "model.norm.weight")


def test_require_finite_returns_the_largest_magnitude() -> None:
    assert require_finite(torch.tensor([1.0, -3.5, 2.0]), "w") == 3.5
    assert require_finite(torch.zeros(0, 4), "w") == 0.0
    assert require_finite(weight(700, 512), "w") == 1.0


@pytest.mark.parametrize("fmt", BLOCKED, ids=lambda f: f.name)
def test_a_width_off_the_block_is_refused(fmt: Format) -> None:
    assert fmt.block
    k = 3 * fmt.block // 2
    reason = f"K = {k} is not a multiple of the block of {fmt.block}"
    assert fmt.check(4, k) == reason and fmt.check(4, 2 * fmt.block) == ""
    with pytest.raises(Unsupported, match=f"cannot quantize to {fmt.name}\n  found: {reason}"):
        fmt.quantize(torch.zeros(4, k))
    parts = fmt.quantize(torch.zeros(4, 2 * fmt.block))
    with pytest.raises(
        Unsupported, match=rf"cannot slice columns 0:8 of a {fmt.name} weight\n  found: {2 * fmt.block} in units"
    ):
        fmt.slice(parts, 1, 0, 8)
    with pytest.raises(Unsupported, match=rf"cannot slice rows 2:5 of a {fmt.name} weight\n  found: 4 in units of 1"):
        fmt.slice(parts, 0, 2, 5)


def test_other_refusals() -> None:
    fp8 = FORMATS["fp8"]
    assert fp8.check(1, 1) == "" and fp8.check(0, 4) == "a weight [0, 4] is empty"
    with pytest.raises(
        Unsupported, match=r"cannot quantize to fp8\n  found: torch.int8 \[2, 2\]\n  try: a bf16, fp16 or fp32"
    ):
        fp8.quantize(torch.zeros(2, 2, dtype=torch.int8))
    with pytest.raises(Unsupported, match=r"torch.float32 \[2\]"):
        fp8.quantize(torch.zeros(2))
    with pytest.raises(
        RecipeError,
        match=r"expected a weight format\n  found: 'nvfp' \(did you mean 'nvfp4'\?\)\n"
        rf"  try: one of {', '.join(FORMATS)}",
    ):
        format_named("nvfp")
    assert format_named("int4-g128").block == 128


def test_e2m1_rounding_is_exact_around_every_boundary() -> None:
    """All bf16 magnitudes up to 8, times several scales, against the nearest value with ties to the even code."""
    q = torch.arange(0, 0x4100, dtype=torch.int16).view(torch.bfloat16)
    q = torch.cat([q, -q])
    w = torch.zeros(len(q), 32)
    w[:, 0] = 6.0
    w[:, 1] = q.float()
    w = w[w[:, 1].abs() <= 6]
    parts = FORMATS["mxfp4"].quantize(w)
    assert (parts["weight_scale"] == 127).all()
    expected = w[:, 1].numpy().astype(ml_dtypes.float4_e2m1fn).view(np.uint8)
    np.testing.assert_array_equal(parts["weight"][:, 0] >> 4, expected)
    np.testing.assert_array_equal(E2M1[parts["weight"][:, 0] & 15], 6)


@every_format
@pytest.mark.parametrize("shape", [(1, 128), (5, 256)])
def test_the_onnx_text_is_dequantize(fmt: Format, shape: tuple[int, int]) -> None:
    parts = fmt.quantize(weight(*shape, seed=9))
    if fmt.name == "fp8":
        parts["weight"].flat[: shape[1]] = np.arange(shape[1]) % 127  # every positive finite code
        parts["weight"][-1, -1] = 0x7F
    inputs = {}
    for part in fmt.layouts:
        raw = parts[part.suffix]
        inputs[part.suffix] = bf16_to_f32(raw) if part.dtype == "BF16" else raw
    signature = ", ".join(inputs)
    types = ", ".join(
        f"{'uint8' if raw.dtype == np.uint8 else 'float'}[{', '.join(map(str, raw.shape))}] {name}"
        for name, raw in inputs.items()
    )
    types = types.replace("float[] ", "float ")
    text = f"""<ir_version: 11, opset_import: ["" : 24, "llmc" : 1]>
        graph ({types}) => (float[n, k] y) {{ y = llmc.dequantize ({signature}) }}
        <opset_import: ["" : 24], domain: "llmc"> dequantize ({signature}) => (dense) {{ {fmt.body} }}"""
    model = onnx.parser.parse_model(text)
    onnx.checker.check_model(model)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    np.testing.assert_array_equal(session.run(None, inputs)[0], fmt.dequantize(parts))


def test_a_group_amax_below_the_weights_is_a_mistake_of_the_caller() -> None:
    with pytest.raises(ValueError, match=r"amax 0\.5 is not the group's largest magnitude: a block has 1\.0"):
        FORMATS["nvfp4"].quantize(weight(4, 64), 0.5)


def test_e4m3_quantizer_uses_every_positive_code() -> None:
    values = E4M3[:127]
    parts = FORMATS["fp8"].quantize(torch.from_numpy(values[None].copy()))
    assert parts["weight_scale"].tolist() == [1.0]
    assert parts["weight"][0].tolist() == list(range(127))
