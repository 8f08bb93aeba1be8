"""Computes the frequencies of every rope type at build, and the tables of those that no length changes."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from ...runtime.engine_file.rope import LengthRope
from ...runtime.engine_file.rope_tables import rows_of
from ...runtime.errors import Unsupported
from ..config.rope import RopeConfig


def length_rope(rope: RopeConfig, head_dim: int, max_position_embeddings: int, max_context: int) -> LengthRope | None:
    """The rope, if sequences of up to `max_context` positions need more than one table, else None.

    `head_dim` here and below is the elements of a head that are rotated.

    Raises:
        Unsupported: the formula of the rope type has no value for this head size or trained length.
    """
    if rope.type not in _BY_LENGTH:
        return None
    made = _BY_LENGTH[rope.type](rope, head_dim, max_position_embeddings)
    return made if max_context > made.original else None


def rope_tables(
    rope: RopeConfig, head_dim: int, max_position_embeddings: int, max_context: int
) -> tuple[np.ndarray, np.ndarray]:
    """Cosine and sine tables, ``f32 [max_context, head_dim / 2]``.

    Types that depend on the length of the sequence (dynamic, longrope) have those of short sequences, which is for a
    context without a `length_rope`. Angles are float32 products, as the published models compute them.

    Raises:
        Unsupported: the formula of the rope type has no value for this head size or trained length.
    """
    if rope.type in _BY_LENGTH:
        made = _BY_LENGTH[rope.type](rope, head_dim, max_position_embeddings)
        return rows_of(made, 0, np.arange(max_context))
    frequencies, attention_factor = _TYPES[rope.type](rope, head_dim)
    positions = np.arange(max_context, dtype=np.float32)
    angles = (positions[:, None] * frequencies.astype(np.float32)[None, :]).astype(np.float64)
    cos, sin = np.cos(angles) * attention_factor, np.sin(angles) * attention_factor
    return cos.astype(np.float32), sin.astype(np.float32)


def _base_frequencies(theta: float, dim: int) -> np.ndarray:
    """RoFormer (arXiv 2104.09864): theta^(-2i/dim)."""
    return 1.0 / np.power(theta, np.arange(0, dim, 2, dtype=np.float64) / dim)


def _default(rope: RopeConfig, dim: int) -> tuple[np.ndarray, float]:
    return _base_frequencies(rope.theta, dim), 1.0


def _linear(rope: RopeConfig, dim: int) -> tuple[np.ndarray, float]:
    """Position interpolation (arXiv 2306.15595): all frequencies divided by the factor."""
    return _base_frequencies(rope.theta, dim) / _number(rope, "factor"), 1.0


def _dynamic(rope: RopeConfig, dim: int, positions: int) -> LengthRope:
    """NTK-aware scaling: the base grows with the length beyond the trained positions."""
    if dim == 2:
        raise Unsupported("cannot compute rope type 'dynamic'", found="head size 2, for which its formula has no value")
    return LengthRope(positions, tuple(_base_frequencies(rope.theta, dim).tolist()), factor=_number(rope, "factor"))


def _proportional(rope: RopeConfig, dim: int) -> tuple[np.ndarray, float]:
    """Gemma 4: the first pairs turn as if all did, the others do not (transformers 5, modeling_rope_utils.py)."""
    base = _base_frequencies(rope.theta, dim) / _number(rope, "factor")
    turned = int(_number(rope, "share") * dim // 2)
    return np.where(np.arange(dim // 2) < turned, base, 0.0), 1.0


def _llama3(rope: RopeConfig, dim: int) -> tuple[np.ndarray, float]:
    """Llama 3.1: long wavelengths divided by the factor, short ones kept, a linear blend between, if anything is."""
    base = _base_frequencies(rope.theta, dim)
    factor, low, high = (_number(rope, key) for key in ("factor", "low_freq_factor", "high_freq_factor"))
    original = _number(rope, "original_max_position_embeddings")
    wavelength = 2 * math.pi / base
    smooth = (original / wavelength - low) / (high - low or 1.0)
    blended = (1 - smooth) * base / factor + smooth * base
    scaled = np.where(wavelength > original / low, base / factor, blended)
    return np.where(wavelength < original / high, base, scaled), 1.0


def _yarn(rope: RopeConfig, dim: int) -> tuple[np.ndarray, float]:
    """YaRN (arXiv 2309.00071): interpolation by parts, and a temperature on the attention in the tables."""
    original, factor = _number(rope, "original_max_position_embeddings"), _number(rope, "factor")
    base = _base_frequencies(rope.theta, dim)
    low = _correction_dim(_number(rope, "beta_fast"), dim, rope.theta, original)
    high = _correction_dim(_number(rope, "beta_slow"), dim, rope.theta, original)
    if rope.parameters.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    # An empty ramp is a step. If clamping made the ends cross, the width is negative, as in the published code.
    width = high - low if high != low else 0.001
    ramp = np.clip((np.arange(dim // 2) - low) / width, 0, 1)
    frequencies = base / factor * ramp + base * (1 - ramp)
    if "attention_factor" in rope.parameters:
        return frequencies, _number(rope, "attention_factor")
    mscale, all_dim = _number(rope, "mscale"), _number(rope, "mscale_all_dim")
    if mscale and all_dim:
        return frequencies, _yarn_mscale(factor, mscale) / _yarn_mscale(factor, all_dim)
    return frequencies, _yarn_mscale(factor, 1.0)


def _longrope(rope: RopeConfig, dim: int, _positions: int) -> LengthRope:
    """LongRoPE (arXiv 2402.13753): a searched factor per frequency, one list below and one above the trained length."""
    original, factor = rope.parameters["original_max_position_embeddings"], _number(rope, "factor")
    assert isinstance(original, int)
    base = _base_frequencies(rope.theta, dim)
    short, long = (
        tuple((base / np.asarray(rope.parameters[key], np.float64)).tolist()) for key in ("short_factor", "long_factor")
    )
    scale = 1.0
    if "attention_factor" in rope.parameters:
        scale = _number(rope, "attention_factor")
    elif factor > 1:
        if original == 1:
            raise Unsupported(
                "cannot compute rope type 'longrope'",
                found="original_max_position_embeddings = 1, for which its formula has no value",
                fix="attention_factor in config.json",
            )
        scale = math.sqrt(1 + math.log(factor) / math.log(original))
    return LengthRope(original, short, long, scale=scale)


def _correction_dim(rotations: float, dim: int, theta: float, positions: float) -> float:
    return dim * math.log(positions / (rotations * 2 * math.pi)) / (2 * math.log(theta))


def _yarn_mscale(factor: float, mscale: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


def _number(rope: RopeConfig, key: str, default: float = 0.0) -> float:
    """A parameter as float; `compiler/config/rope.py` has checked that the required ones are present."""
    value = rope.parameters.get(key, default)
    assert isinstance(value, int | float)
    return float(value)


_TYPES: dict[str, Callable[[RopeConfig, int], tuple[np.ndarray, float]]] = {
    "default": _default,
    "linear": _linear,
    "llama3": _llama3,
    "yarn": _yarn,
    "proportional": _proportional,
}
_BY_LENGTH: dict[str, Callable[[RopeConfig, int, int], LengthRope]] = {"dynamic": _dynamic, "longrope": _longrope}
