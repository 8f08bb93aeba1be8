"""The number tables against torch's and ml_dtypes' types: a wrong table would be wrong on both sides of the engine."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llmc.runtime import numbers

BYTES = np.arange(256, dtype=np.uint8)


def test_e4m3_table_is_torchs() -> None:
    expected = torch.from_numpy(BYTES.copy()).view(torch.float8_e4m3fn).float().numpy()
    np.testing.assert_array_equal(numbers.E4M3, expected)
    assert numbers.E4M3[0x7E] == 448 and numbers.E4M3[1] == 2.0**-9
    assert np.flatnonzero(np.isnan(numbers.E4M3)).tolist() == [0x7F, 0xFF]


def test_e2m1_table_is_ml_dtypes() -> None:
    expected = BYTES[:16].view(ml_dtypes.float4_e2m1fn).astype(np.float32)
    np.testing.assert_array_equal(numbers.E2M1, expected)
    assert np.signbit(numbers.E2M1[8])
    assert numbers.E2M1[:8].tolist() == [0, 0.5, 1, 1.5, 2, 3, 4, 6]


def test_e8m0_table_is_ml_dtypes() -> None:
    expected = BYTES.view(ml_dtypes.float8_e8m0fnu).astype(np.float32)
    np.testing.assert_array_equal(numbers.E8M0, expected)
    assert numbers.E8M0[0] == np.float32(2.0**-127) and np.isnan(numbers.E8M0[255])


def test_tables_cannot_be_changed() -> None:
    for table in (numbers.E2M1, numbers.E4M3, numbers.E8M0):
        assert table.dtype == np.float32
        with pytest.raises(ValueError, match="read-only"):
            table[0] = 1


def test_every_bf16_becomes_its_float32_and_back() -> None:
    bits = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    wide = numbers.bf16_to_f32(bits)
    np.testing.assert_array_equal(wide, bits.view(ml_dtypes.bfloat16).astype(np.float32))
    finite = ~np.isnan(wide)
    back = numbers.f32_to_bf16(wide)
    np.testing.assert_array_equal(back[finite], bits[finite])
    assert np.isnan(numbers.bf16_to_f32(back[~finite])).all()
    np.testing.assert_array_equal(back[~finite] >> 15, bits[~finite] >> 15)


@given(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=64))
def test_f32_to_bf16_rounds_as_ml_dtypes(words: list[int]) -> None:
    values = np.array(words, dtype=np.uint32).view(np.float32)
    ours = numbers.bf16_to_f32(numbers.f32_to_bf16(values))
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(ours, values.astype(ml_dtypes.bfloat16).astype(np.float32))


@pytest.mark.parametrize("bits", [0x7F800001, 0xFFFFFFFF, 0x7FFFFFFF, 0xFF800001])
def test_a_nan_whose_payload_would_round_away_stays_nan(bits: int) -> None:
    value = np.array(bits, dtype=np.uint32).view(np.float32)
    out = numbers.f32_to_bf16(value)
    assert out.shape == () and np.isnan(numbers.bf16_to_f32(out)) and int(out) >> 15 == bits >> 31


@pytest.mark.parametrize(
    ("dtype", "raw", "expected"),
    [
        ("F32", np.array([1.5], np.float32), 1.5),
        ("F16", np.array([1.5], np.float16), 1.5),
        ("BF16", np.array([0x3FC0], np.uint16), 1.5),
        ("F8_E4M3", np.array([0x3C], np.uint8), 1.5),
        ("F8_E5M2", np.array([0x3E], np.uint8), 1.5),
        ("F8_E8M0", np.array([126], np.uint8), 0.5),
        ("I64", np.array([-3], np.int64), -3),
        ("U8", np.array([200], np.uint8), 200),
    ],
)
def test_to_f32(dtype: str, raw: np.ndarray, expected: float) -> None:
    assert raw.dtype == numbers.RAW_DTYPE[dtype]
    values = numbers.to_f32(raw, dtype)
    assert values.dtype == np.float32 and values.tolist() == [expected]


def test_e5m2_is_torchs() -> None:
    expected = torch.from_numpy(BYTES.copy()).view(torch.float8_e5m2).float().numpy()
    np.testing.assert_array_equal(numbers.to_f32(BYTES, "F8_E5M2"), expected)


def test_to_f32_names_an_unknown_dtype() -> None:
    with pytest.raises(ValueError, match="unknown dtype 'F8'; known: BF16, F16"):
        numbers.to_f32(BYTES, "F8")
