"""Rope tables against transformers' own functions, by a sweep of parameters and by property: constants hide there."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmc.compiler.config.rope import RopeConfig, parse_rope
from llmc.compiler.decoder.rope import length_rope, rope_tables
from llmc.runtime.engine_file.rope_tables import rows_of
from llmc.runtime.errors import Unsupported

CONTEXT = 96


def _parse(parameters: dict[str, Any], head_dim: int, positions: int) -> RopeConfig:
    config = {"rope_parameters": parameters}
    return parse_rope(config, head_dim=head_dim, max_position_embeddings=positions, what="config.json")[0]


def _theirs(parameters: dict[str, Any], head_dim: int, positions: int, context: int) -> tuple[np.ndarray, float]:
    """transformers' frequencies [head_dim / 2] and attention factor for a call of `context` tokens."""
    # here, as the import takes seconds, and every process that tests collects this file
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    config = LlamaConfig(head_dim=head_dim, max_position_embeddings=positions, rope_parameters=dict(parameters))
    kind = parameters["rope_type"]
    if kind == "default":
        frequencies, factor = LlamaRotaryEmbedding.compute_default_rope_parameters(config)
    else:
        frequencies, factor = ROPE_INIT_FUNCTIONS[kind](config, seq_len=context)
    return frequencies.double().numpy(), float(factor)


def _tables(parameters: dict[str, Any], head_dim: int, positions: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Those of a sequence of `length` positions."""
    rope = _parse(parameters, head_dim, positions)
    by_length = length_rope(rope, head_dim, positions, length)
    if by_length is None:
        return rope_tables(rope, head_dim, positions, length)
    return rows_of(by_length, by_length.table(length), np.arange(length))


def _check(parameters: dict[str, Any], head_dim: int, positions: int, context: int = CONTEXT) -> None:
    frequencies, factor = _theirs(parameters, head_dim, positions, context)
    cos, sin = _tables(parameters, head_dim, positions, context)
    assert cos.dtype == sin.dtype == np.float32
    assert cos.shape == sin.shape == (context, head_dim // 2)
    angles = np.arange(context)[:, None] * frequencies
    # transformers rounds frequencies to float32 along the way: a few 1e-7 of the angle
    bound = factor * (1e-6 * angles + 1e-6)
    assert (np.abs(cos - factor * np.cos(angles)) <= bound).all()
    assert (np.abs(sin - factor * np.sin(angles)) <= bound).all()


def _sweep(kind: str, **choices: tuple[Any, ...]) -> list[dict[str, Any]]:
    """Every combination; a choice of None leaves the key out."""
    rows = itertools.product(*choices.values())
    return [
        {"rope_type": kind, **{key: value for key, value in zip(choices, row, strict=True) if value is not None}}
        for row in rows
    ]


SWEEP = [
    *_sweep("default", rope_theta=(100.0, 1e4, 5e5)),
    *_sweep("linear", rope_theta=(1e4, 5e5), factor=(1.0, 2.5, 8.0)),
    *_sweep("dynamic", rope_theta=(1e4, 5e5), factor=(1.0, 2.0, 7.5)),
    *_sweep(
        "llama3",
        rope_theta=(1e4, 5e5),
        factor=(1.0, 8.0, 32.0),
        low_freq_factor=(1.0, 2.0),
        high_freq_factor=(2.0, 2.5, 4.0),
        original_max_position_embeddings=(16, 64, 8192),
    ),
    *_sweep(
        "yarn",
        rope_theta=(1e4, 1e6),
        factor=(1.0, 4.0, 40.0),
        original_max_position_embeddings=(16, 64, 4096),
        truncate=(None, False),
        beta_fast=(None, 16.0),
        beta_slow=(None, 2.0),
    ),
    *_sweep(
        "yarn",
        rope_theta=(1e4,),
        factor=(1.0, 4.0),
        original_max_position_embeddings=(None, 64),
        attention_factor=(None, 1.0, 1.4),
        mscale=(None, 0.7, 1.0),
        mscale_all_dim=(None, 0.8, 1.0),
    ),
]


@pytest.mark.parametrize("head_dim", [16, 20, 64, 128])
@pytest.mark.parametrize("positions", [32, 128])
def test_tables_are_transformers(head_dim: int, positions: int) -> None:
    for parameters in SWEEP:
        try:
            _check(parameters, head_dim, positions)
        except AssertionError as error:
            raise AssertionError(f"{parameters}") from error


@pytest.mark.parametrize("factor", [None, 1.0, 6.0])
@pytest.mark.parametrize("attention_factor", [None, 1.25])
@pytest.mark.parametrize("original", [16, CONTEXT - 1, CONTEXT, 4096])
def test_longrope_tables_are_transformers(factor: float | None, attention_factor: float | None, original: int) -> None:
    rng = np.random.default_rng(0)
    lists = {name: (1 + 4 * rng.random(16)).tolist() for name in ("short_factor", "long_factor")}
    (parameters,) = _sweep(
        "longrope",
        rope_theta=(1e4,),
        factor=(factor,),
        attention_factor=(attention_factor,),
        original_max_position_embeddings=(original,),
    )
    _check({**parameters, **lists}, 32, 4096)


@settings(max_examples=200, deadline=None)
@given(
    theta=st.floats(2.0, 1e7),
    factor=st.floats(1.0, 64.0),
    original=st.integers(1, 100_000),
    slow=st.floats(0.01, 64.0),
    spread=st.just(1.0) | st.floats(1.05, 64.0),  # between them float32, theirs, cannot tell the ends apart
    truncate=st.booleans(),
    head_dim=st.sampled_from([2, 4, 10, 64]),
)
def test_yarn_for_any_parameters(
    theta: float, factor: float, original: int, slow: float, spread: float, truncate: bool, head_dim: int
) -> None:
    """The corners of the ramp: both ends below 0, above the head size, or equal."""
    parameters = {
        "rope_type": "yarn",
        "rope_theta": theta,
        "factor": factor,
        "original_max_position_embeddings": original,
        "beta_slow": slow,
        "beta_fast": slow * spread,
        "truncate": truncate,
    }
    frequencies, attention = _theirs(parameters, head_dim, 4096, 8)
    cos, sin = rope_tables(_parse(parameters, head_dim, 4096), head_dim, 4096, 8)
    np.testing.assert_allclose(cos[1], attention * np.cos(frequencies), atol=2e-5)
    np.testing.assert_allclose(sin[1], attention * np.sin(frequencies), atol=2e-5)


@settings(max_examples=150, deadline=None)
@given(
    theta=st.floats(2.0, 1e7),
    factor=st.floats(1.0, 64.0),
    original=st.integers(1, 100_000),
    low=st.floats(0.01, 16.0),
    spread=st.floats(1.5, 16.0),
)
def test_llama3_for_any_parameters(theta: float, factor: float, original: int, low: float, spread: float) -> None:
    parameters = {
        "rope_type": "llama3",
        "rope_theta": theta,
        "factor": factor,
        "original_max_position_embeddings": original,
        "low_freq_factor": low,
        "high_freq_factor": low * spread,
    }
    _check(parameters, 32, 4096, context=16)


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_the_tables_of_a_length(kind: str) -> None:
    """0 is the table of all short sequences; longrope has one more, dynamic one for each length."""
    parameters: dict[str, Any] = {"rope_type": kind, "rope_theta": 1e4, "factor": 4.0}
    if kind == "longrope":
        parameters |= {"short_factor": [1.0] * 8, "long_factor": [2.0] * 8, "original_max_position_embeddings": 32}
    rope = _parse(parameters, 16, 32)
    assert length_rope(rope, 16, 32, 32) is None
    found = length_rope(rope, 16, 32, 33)
    assert found is not None
    assert [found.table(length) for length in (1, 31, 32)] == [0, 0, 0]
    assert [found.table(length) for length in (33, 48)] == ([33, 33] if kind == "longrope" else [33, 48])
    assert np.array_equal(rows_of(found, 0, np.arange(32))[0], rope_tables(rope, 16, 32, 32)[0])
    assert not np.array_equal(rows_of(found, 33, np.arange(32))[0], rows_of(found, 0, np.arange(32))[0])


def test_positions_far_out_keep_their_float32_angles() -> None:
    """At position 100000 a float32 angle is off by 0.004: the tables hold what the published models computed with."""
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    config = LlamaConfig(
        head_dim=64, max_position_embeddings=131072, rope_parameters={"rope_type": "default", "rope_theta": 5e5}
    )
    positions = torch.tensor([[99_999, 100_000, 131_071]])
    cos, sin = LlamaRotaryEmbedding(config)(torch.zeros(1), positions)
    ours = rope_tables(RopeConfig("default", 5e5, {}), 64, 131072, 131072)
    for table, expected in zip(ours, (cos, sin), strict=True):
        found = table[positions[0].numpy()]
        # one unit in the last place of a frequency is worth 1e5 * 6e-8
        np.testing.assert_allclose(found, expected[0, :, :32].numpy(), atol=1.6e-2)
        np.testing.assert_allclose(found[:, 8:], expected[0, :, 8:32].numpy(), atol=1e-3)


def test_where_the_formula_has_no_value_it_is_refused() -> None:
    dynamic = _parse({"rope_type": "dynamic", "factor": 2.0}, 2, 32)
    with pytest.raises(Unsupported, match="cannot compute rope type 'dynamic'\n  found: head size 2"):
        rope_tables(dynamic, 2, 32, 64)
    parameters = {"rope_type": "longrope", "factor": 2.0, "original_max_position_embeddings": 1}
    lists = {"short_factor": [1.0], "long_factor": [1.0]}
    with pytest.raises(
        Unsupported, match="cannot compute rope type 'longrope'\n  found: original_max_position_embeddings = 1"
    ):
        rope_tables(_parse({**parameters, **lists}, 2, 32), 2, 32, 64)
    given = _parse({**parameters, **lists, "attention_factor": 1.5}, 2, 32)
    np.testing.assert_allclose(rope_tables(given, 2, 32, 2)[0], [[1.5], [1.5 * math.cos(1)]], rtol=1e-6)


def test_default_at_position_one_is_the_papers() -> None:
    cos, sin = rope_tables(RopeConfig("default", 10_000.0, {}), 4, 8, 2)
    np.testing.assert_allclose(cos, [[1, 1], [math.cos(1), math.cos(0.01)]], atol=1e-7)
    np.testing.assert_allclose(sin, [[0, 0], [math.sin(1), math.sin(0.01)]], atol=1e-7)
