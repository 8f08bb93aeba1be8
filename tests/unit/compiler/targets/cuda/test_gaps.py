"""What the records of a decoder say has no launch plan, and that a build refuses the same with the same words."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from support.dumps import TOY, legal_graph
from support.samples.dense import wider
from support.samples.families import read

from llmc.compiler.families.spec import DecoderSpec
from llmc.compiler.targets.cuda.fuse_attention import CHUNKS, LATE_NORMS, ONE_LINEAR, WINDOW
from llmc.compiler.targets.cuda.gaps import SOME_BIASES, gaps
from llmc.runtime.errors import Unsupported


def _late(spec: DecoderSpec) -> DecoderSpec:
    return _with(spec, lambda mixer: replace(mixer, norm_after_rope=True), 3)


def _with(spec: DecoderSpec, change: Callable, index: int) -> DecoderSpec:  # type: ignore[type-arg]
    layers = [*wider.attention(spec).layers]
    layers[index] = replace(layers[index], mixer=change(layers[index].mixer))
    return replace(spec, layers=tuple(layers))


def _other_window(spec: DecoderSpec) -> DecoderSpec:
    return _with(spec, lambda mixer: replace(mixer, window=10), 5)


def _some_biases(spec: DecoderSpec) -> DecoderSpec:
    return _with(spec, lambda mixer: replace(mixer, k=replace(mixer.k, bias=True)), 1)


def _chunks(spec: DecoderSpec) -> DecoderSpec:
    return _with(spec, lambda mixer: replace(mixer, chunk=8), 3)


@pytest.mark.parametrize("records", [wider.attention, wider.around, wider.activations])
def test_all_that_the_records_say_has_a_launch_plan(
    tmp_path: Path, records: Callable[[DecoderSpec], DecoderSpec]
) -> None:
    assert gaps(records(read(TOY["architectures"][0]))) == ()
    legal_graph(tmp_path, "sm_90", "none", records=records)


@pytest.mark.parametrize(
    ("records", "gap", "said"),
    [
        (_late, LATE_NORMS, LATE_NORMS),
        (_other_window, WINDOW, WINDOW),
        (_some_biases, SOME_BIASES, ONE_LINEAR),
        (_chunks, CHUNKS, CHUNKS),
    ],
)
def test_a_gap_is_refused_with_its_words(
    tmp_path: Path, records: Callable[[DecoderSpec], DecoderSpec], gap: str, said: str
) -> None:
    assert gaps(records(read(TOY["architectures"][0]))) == (gap,)
    with pytest.raises(
        Unsupported, match=rf"cannot compute \w+Attention \(.*\) on a GPU\n  found: {said}\n  try: .*cpu"
    ):
        legal_graph(tmp_path, "sm_90", "none", records=records)
