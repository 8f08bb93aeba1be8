"""`LatentAttention`: its definition, and the CPU's absorbed form, against numpy written from the paper."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
from support.graphs import difference, parse, run, run_operator

from llmc.compiler.targets.cpu.latent import LatentToGroupQuery
from llmc.passes.graph.latent import TEMPERED

B, CAPACITY, NEW = 2, 9, 3
PAST = np.array([1, 4], np.int32)
"""Tokens in the caches of two sequences; three more come."""
A, N, R, V, L = 2, 4, 8, 6, 8
"""Heads, elements of a head of q without rope and with it, those of a value, the rank of the latent."""
SCALE = 0.3


def _numbers(shape: tuple[int, ...], seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@dataclass(frozen=True)
class Given:
    """The inputs of one call."""

    q: np.ndarray = field(default_factory=lambda: _numbers((B, NEW, A * (N + R)), 0))
    latent: np.ndarray = field(default_factory=lambda: _numbers((B, NEW, L), 1))
    key: np.ndarray = field(default_factory=lambda: _numbers((B, NEW, R), 2))
    weight: np.ndarray = field(default_factory=lambda: _numbers((A * (N + V), L), 3))
    angles: np.ndarray = field(default_factory=lambda: _numbers((CAPACITY, R // 2), 4))
    cache: np.ndarray = field(default_factory=lambda: _numbers((B, 1, CAPACITY, L + R), 5))
    factors: np.ndarray = field(default_factory=lambda: 1 + np.abs(_numbers((CAPACITY, 1), 6)))

    @property
    def positions(self) -> np.ndarray:
        return PAST[:, None].astype(np.int64) + np.arange(NEW)

    def inputs(self, *, tempered: bool) -> dict[str, np.ndarray]:
        """By the names of the operator's definition."""
        found = {
            **{"q": self.q, "latent": self.latent, "key": self.key, "weight": self.weight},
            **{"cos": np.cos(self.angles), "sin": np.sin(self.angles), "positions": self.positions},
            **{"past_key": self.cache, "past_lengths": PAST},
        }
        return {**found, "factors": self.factors} if tempered else found


def turned(x: np.ndarray, angles: np.ndarray, *, interleaved: bool) -> np.ndarray:
    """One vector, by the angles of its pairs: as complex numbers."""
    one, other = (x[0::2], x[1::2]) if interleaved else (x[: len(x) // 2], x[len(x) // 2 :])
    made = (one + 1j * other) * np.exp(1j * angles)
    if not interleaved:
        return np.concatenate([made.real, made.imag])
    return np.stack([made.real, made.imag], axis=1).reshape(-1)


def by_hand(given: Given, *, interleaved: bool, tempered: bool) -> tuple[np.ndarray, np.ndarray]:
    """Equations 9 to 19 and 37 to 47 of arXiv 2405.04434, a token and a head at a time, in float64: y, and the rows."""
    y, cache = np.zeros((B, NEW, A * V)), given.cache.astype(np.float64)
    up = given.weight.astype(np.float64).reshape(A, N + V, L)
    for b in range(B):
        for s in range(NEW):
            at = PAST[b] + s
            angles = given.angles[at].astype(np.float64)
            cache[b, 0, at] = np.concatenate(
                [given.latent[b, s], turned(given.key[b, s], angles, interleaved=interleaved)]
            )
            seen = cache[b, 0, : at + 1]
            for head in range(A):
                q = given.q[b, s, head * (N + R) : (head + 1) * (N + R)].astype(np.float64)
                q = np.concatenate([q[:N], turned(q[N:], angles, interleaved=interleaved)])
                q *= given.factors[at] if tempered else 1
                keys = np.concatenate([seen[:, :L] @ up[head, :N].T, seen[:, L:]], axis=1)
                scores = SCALE * keys @ q
                share = np.exp(scores - scores.max())
                y[b, s, head * V : (head + 1) * V] = share / share.sum() @ (seen[:, :L] @ up[head, N:].T)
    return y.astype(np.float32), cache.astype(np.float32)


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("tempered", [False, True])
def test_the_definition_is_the_paper(interleaved: bool, tempered: bool) -> None:
    given = Given()
    sizes = {"heads": A, "nope": N, "rope": R, "value": V, "scale": SCALE, "interleaved": int(interleaved)}
    overload = TEMPERED if tempered else ""
    y, rows = run_operator("LatentAttention", overload, given.inputs(tempered=tempered), ["y", "present_key"], **sizes)
    expected = by_hand(given, interleaved=interleaved, tempered=tempered)
    assert difference(y, expected[0]) < 1e-5 and difference(rows, expected[1]) < 1e-6


def test_every_part_of_the_definition_is_needed() -> None:
    """The comparison sees halves for pairs, factors, and the length of the cache."""
    given = Given()
    y = by_hand(given, interleaved=True, tempered=False)[0]
    assert difference(by_hand(given, interleaved=False, tempered=False)[0], y) > 1e-2
    assert difference(by_hand(given, interleaved=True, tempered=True)[0], y) > 1e-2


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("tempered", [False, True])
@pytest.mark.parametrize(("tokens", "first"), [(1, 0), (NEW, 1)])
def test_the_absorbed_form_is_the_paper(interleaved: bool, tempered: bool, tokens: int, first: int) -> None:
    """One token of each of two sequences, and several of one, as the executor calls it."""
    given, count = Given(), B - first
    names = "q, c, k, W, C, S, p, rows_key, past"
    text = (
        f"(float[{count},{tokens},{A * (N + R)}] q, float[{count},{tokens},{L}] c, float[{count},{tokens},{R}] k, "
        f"float[{A * (N + V)},{L}] W, float[{CAPACITY},{R // 2}] C, float[{CAPACITY},{R // 2}] S, "
        f"int64[{count},{tokens}] ids, float[{count},1,{CAPACITY},{L + R}] rows_key, float[{CAPACITY},1] F, "
        f"int32[{count}] past) "
        f"=> (float[{count},{tokens},{A * V}] y, float[{count},1,{CAPACITY},{L + R}] nk) "
        "{ p = llmc.Positions(ids, past) y, nk = llmc.LatentAttention"
        f"{':tempered' * tempered}<heads={A}, nope={N}, rope={R}, value={V}, scale={SCALE}, "
        f"interleaved={int(interleaved)}>({names}{', F' * tempered}) }}"
    )
    example = parse(text)
    assert LatentToGroupQuery().run(example.graph).fired == 1
    tensors = {"W": given.weight, "C": np.cos(given.angles), "S": np.sin(given.angles), "F": given.factors}
    found = run(
        example.graph,
        tensors,
        {
            **{"q": given.q[first:, :tokens], "c": given.latent[first:, :tokens], "k": given.key[first:, :tokens]},
            **{"ids": np.zeros((count, tokens), np.int64), "rows_key": given.cache[first:], "past": PAST[first:]},
        },
    )
    y, rows = by_hand(given, interleaved=interleaved, tempered=tempered)
    assert difference(found["y"], y[first:, :tokens]) < 1e-5
    for made, expected, past in zip(found["nk"], rows[first:], PAST[first:], strict=True):
        assert difference(made[:, : past + tokens], expected[:, : past + tokens]) < 1e-6
