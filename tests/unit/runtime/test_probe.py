"""The golden probe: it must pass where the numbers are right, fail where they are not, and never crash on nonsense."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support.engines import PicoEngine, checkpoint_logits, forge, relative
from support.paths import PICO

import llmc
from llmc.cli.app import run as run_command
from llmc.runtime import probe as probes
from llmc.runtime.engine_file.file import EngineFile, verify_engine
from llmc.runtime.engine_file.manifest import MEASURED, Manifest
from llmc.runtime.errors import EngineError, VerifyError
from llmc.runtime.probe import Probe, compare, probe_ids, probe_of, read_probe, replay

LOGITS = np.random.default_rng(0).normal(size=(12, 50)).astype(np.float32) * 4
PROBE = probe_of(tuple(range(12)), LOGITS)
WEIGHT = "model.layers.3.mlp.down_proj.weight"


@pytest.fixture(scope="module")
def path(pico_engine: PicoEngine) -> Path:
    return pico_engine("int8")


def test_the_ids_are_fixed_and_spread():
    assert probe_ids(4096)[:3] == (3823, 3550, 3277)
    assert len(set(probe_ids(4096))) == 32
    assert max(probe_ids(32)) < 32
    assert set(probe_ids(1)) == {0}


def test_the_probe_is_the_largest_logits_of_the_last_positions():
    assert len(PROBE.top) == 8
    for row, logits in zip(PROBE.top, LOGITS[-8:], strict=True):
        assert [i for i, _ in row] == np.argsort(-logits)[:8].tolist()
        assert [v for _, v in row] == pytest.approx(sorted(logits, reverse=True)[:8], abs=6e-5)
    assert probe_of((0, 1), LOGITS[:2]).to_json()["ids"] == [0, 1]


def test_equal_logits_pass_also_without_the_positions_before():
    for logits in (LOGITS, LOGITS[-8:]):
        report = compare(PROBE, logits, 1e-4)
        assert (report.ok, report.top1_agree, report.positions, report.tolerance) == (True, 8, 8, 1e-4)
        assert report.max_error < 1e-5


def test_the_error_is_relative_to_the_largest_logit():
    largest = LOGITS[-8:].max()
    wrong = LOGITS.copy()
    position, token = 9, PROBE.top[5][2][0]
    wrong[position, token] -= 0.25 * largest
    report = compare(PROBE, wrong, 0.24)
    assert not report.ok
    assert report.max_error == pytest.approx(0.25, rel=1e-3)
    assert compare(PROBE, wrong, 0.26).ok


def test_of_a_model_with_experts_the_median_position_counts():
    """Rounding changes one position's choice of experts; what changes most positions is an error."""
    largest, best = LOGITS[-8:].max(), [row[0][0] for row in PROBE.top]
    for count, ok in ((3, True), (5, False)):
        wrong = LOGITS[-8:].copy()
        wrong[range(count), best[:count]] -= 0.5 * largest
        assert compare(PROBE, wrong, 0.1, routed=True).ok is ok
        assert not compare(PROBE, wrong, 0.1).ok
    wrong[0, 0] = np.nan
    assert compare(PROBE, wrong, 0.1, routed=True).max_error == float("inf")


def test_what_the_probe_does_not_hold_is_not_compared():
    wrong = LOGITS.copy()
    wrong[0] += 100
    assert compare(PROBE, wrong, 1e-4).ok
    best = PROBE.top[0][0][0]
    wrong[4] = np.where(np.arange(50) == best, wrong[4], wrong[4].max() + 1)
    assert compare(PROBE, wrong, 0.5).top1_agree == 7


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite_fail_wherever_they_are(value: float):
    wrong = LOGITS.copy()
    wrong[0, 0] = value
    report = compare(PROBE, wrong, 1.0)
    assert not report.ok
    assert report.max_error == float("inf")


def test_the_engine_holds_the_oracles_numbers(pico_engine: PicoEngine):
    with EngineFile.open(pico_engine("none")) as engine:
        stored = read_probe(engine)
    assert stored.ids == probe_ids(4096)
    logits = checkpoint_logits(PICO, list(stored.ids))
    assert stored.top == probe_of(stored.ids, logits).top


def test_replay_passes_and_states_its_tolerance(path: Path):
    report = replay(path, "cpu", threads=1)
    assert report.ok
    assert report.positions == 8
    with EngineFile.open(path) as engine:
        assert report.tolerance == engine.manifest.profiles["cpu"].tolerance
    assert report.max_error < report.tolerance / 4


def test_flipped_bytes_of_a_weight_are_a_wrong_digest(path: Path, tmp_path: Path):
    data = bytearray(path.read_bytes())
    with EngineFile.open(path) as engine:
        data[engine.tensors[WEIGHT].offset] ^= 0x40
    (tmp_path / "e.llmc").write_bytes(data)
    with pytest.raises(VerifyError, match=f"tensor '{WEIGHT}' chunk 1 of 1"):
        verify_engine(tmp_path / "e.llmc")


def test_a_wrong_weight_with_right_digests_fails_the_probe(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    with EngineFile.open(path) as engine:
        scales = engine.tensor(f"{WEIGHT}_scale")
        other = np.roll(scales, 7, axis=0)
    target = forge(path, tmp_path / "e.llmc", tensors={f"{WEIGHT}_scale": other})
    verify_engine(target).close()
    report = replay(target)
    assert not report.ok
    assert report.max_error > report.tolerance
    assert run_command(["verify", str(target)]) == 1
    assert "largest error" in capsys.readouterr().err


def test_a_kernel_that_computes_something_else_fails_the_probe(path: Path, monkeypatch: pytest.MonkeyPatch):
    real = probes.compare

    def perturbed(probe: Probe, logits: np.ndarray, tolerance: float, *, routed: bool) -> probes.ProbeReport:
        noise = np.random.default_rng(1).normal(size=logits.shape) * np.abs(logits).max() * tolerance
        return real(probe, (logits + noise).astype(np.float32), tolerance, routed=routed)

    monkeypatch.setattr(probes, "compare", perturbed)
    assert not replay(path).ok


def test_a_smaller_tolerance_is_a_stricter_probe(path: Path, tmp_path: Path):
    def strict(manifest: Manifest) -> Manifest:
        return replace(manifest, profiles={"cpu": replace(manifest.profiles["cpu"], tolerance=1e-7)})

    report = replay(forge(path, tmp_path / "e.llmc", manifest=strict))
    assert not report.ok
    assert report.top1_agree == report.positions


def test_an_unknown_profile_is_refused_with_those_there_are(path: Path):
    with pytest.raises(EngineError, match=r"cannot find profile 'cpi' in .*\n  found: profiles cpu$"):
        replay(path, "cpi")


ROW = [[1, 2.0], [2, 1.0]]


@pytest.mark.parametrize(
    ("measured", "message"),
    [
        ("{", "JSON"),
        ("[]", "no object with ids and top"),
        ("{}", "no object with ids and top"),
        ({"probe": None}, "no object with ids and top"),
        ({"probe": {"ids": [1]}}, "no object with ids and top"),
        ({"probe": {"ids": [], "top": []}}, "ids that are not 1 to 32 numbers below 4096"),
        ({"probe": {"ids": [4096], "top": [ROW]}}, "ids that are not"),
        ({"probe": {"ids": [-1], "top": [ROW]}}, "ids that are not"),
        ({"probe": {"ids": ["1"], "top": [ROW]}}, "ids that are not"),
        ({"probe": {"ids": [True], "top": [ROW]}}, "ids that are not"),
        ({"probe": {"ids": [1] * 33, "top": [ROW]}}, "ids that are not"),
        ({"probe": {"ids": [1], "top": []}}, r"top that is not 1 to 1 lists of \[id, logit\]"),
        ({"probe": {"ids": [1], "top": [ROW, ROW]}}, "top that is not"),
        ({"probe": {"ids": [1], "top": [[]]}}, "top that is not"),
        ({"probe": {"ids": [1], "top": [[[1, 2, 3]]]}}, "top that is not"),
        ({"probe": {"ids": [1], "top": [[[4096, 2.0]]]}}, "top that is not"),
        ({"probe": {"ids": [1], "top": [[[1, "nan"]]]}}, "top that is not"),
        ({"probe": {"ids": [1], "top": [[[1, 10**300]]]}}, "top that is not"),
        ('{"probe": {"ids": [1], "top": [[[1, NaN]]]}}', "NaN"),
        ({"probe": {"ids": [1, 2], "top": [ROW, ROW[:1]]}}, "rows of different lengths"),
    ],
)
def test_a_malformed_probe_is_refused(path: Path, tmp_path: Path, measured: object, message: str):
    data = (measured if isinstance(measured, str) else json.dumps(measured)).encode()
    target = forge(path, tmp_path / "e.llmc", sections={MEASURED: data})
    with pytest.raises(EngineError, match=message) as caught:
        replay(target)
    assert str(target) in str(caught.value)


def test_an_engine_without_a_probe_is_refused(path: Path, tmp_path: Path):
    target = forge(path, tmp_path / "e.llmc", drop=(MEASURED,))
    with pytest.raises(EngineError, match=r"cannot find section 'measured\.json' in .*\n  found: no such section"):
        replay(target)


def test_a_short_context_has_a_short_probe(pico_engine: PicoEngine):
    path = pico_engine("int8", max_context=5)
    with EngineFile.open(path) as engine:
        stored = read_probe(engine)
    assert (stored.ids, len(stored.top)) == (probe_ids(4096)[:5], 5)
    report = replay(path)
    assert (report.ok, report.positions) == (True, 5)


def test_the_probes_error_is_that_of_the_logits(path: Path):
    with EngineFile.open(path) as engine:
        stored = read_probe(engine)
    with llmc.load(path) as loaded:
        logits = loaded.logits(stored.ids)[-8:]
    expected = np.array([[logit for _, logit in row] for row in stored.top], np.float32)
    index = np.array([[i for i, _ in row] for row in stored.top])
    assert replay(path).max_error == pytest.approx(
        relative(np.take_along_axis(logits, index, axis=1), expected), rel=0.2
    )
