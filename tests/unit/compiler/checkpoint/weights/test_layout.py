"""Fused tensors and prefixes: what a decoder reads, by its own names, from files that spell it otherwise."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from support.samples.families import CONFIG, read

from llmc.compiler.checkpoint.account import account, check_tensors
from llmc.compiler.checkpoint.checkpoint import Checkpoint, open_checkpoint
from llmc.compiler.checkpoint.weights.layout import Arranged, Layout, Place, layout_of
from llmc.compiler.checkpoint.weights.random_source import RandomSource
from llmc.compiler.families.spec import Attention, DecoderSpec, GatedMlp, LayerSpec
from llmc.runtime.errors import CheckpointError

QKV, GATE_UP = "self_attn.qkv_proj", "mlp.gate_up_proj"


def fused(spec: DecoderSpec) -> DecoderSpec:
    """The decoder with q, k and v in one tensor, and gate and up in another, as Phi-3 stores them."""

    def layer(one: LayerSpec) -> LayerSpec:
        mixer, mlp = one.mixer, one.mlp
        assert isinstance(mixer, Attention) and isinstance(mlp, GatedMlp) and mixer.k and mixer.v
        q, kv, width = mixer.q.rows, mixer.k.rows, mlp.gate.rows
        mixer = replace(
            mixer,
            q=replace(mixer.q, part=(QKV, 0, q + 2 * kv)),
            k=replace(mixer.k, part=(QKV, q, q + 2 * kv)),
            v=replace(mixer.v, part=(QKV, q + kv, q + 2 * kv)),
        )
        parts = [(GATE_UP, first, 2 * width) for first in (0, width)]
        mlp = replace(mlp, gate=replace(mlp.gate, part=parts[0]), up=replace(mlp.up, part=parts[1]))
        return replace(one, mixer=mixer, mlp=mlp)

    return replace(spec, layers=tuple(map(layer, spec.layers)))


PLAIN = read("LlamaForCausalLM", num_hidden_layers=1)
BIASED = read("Qwen2ForCausalLM", num_hidden_layers=1)
TIED = read("LlamaForCausalLM", num_hidden_layers=1, tie_word_embeddings=True)


def stored_as(spec: DecoderSpec, body: str, head: str = "") -> list[str]:
    """The files' names of all that a decoder reads, under other prefixes."""
    names = layout_of((), spec).shapes
    return [body + name.removeprefix("model.") if name.startswith("model.") else head + name for name in names]


def checkpoint(folder: Path, spec: DecoderSpec, tensors: Mapping[str, torch.Tensor], **config: object) -> Checkpoint:
    """A checkpoint of these tensors, whose config is read as this decoder."""
    folder.mkdir()
    values = CONFIG | {"architectures": ["LlamaForCausalLM"], "num_hidden_layers": 1, "tie_word_embeddings": spec.tied}
    (folder / "config.json").write_text(json.dumps(values | config))
    save_file(dict(tensors), folder / "model.safetensors")
    opened = open_checkpoint(folder)
    source = Arranged(opened.source, layout_of(opened.source.stored, spec))
    return replace(opened, config=replace(opened.config, decoder=spec), source=source)


def numbers(layout: Layout) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {name: torch.randn(shape) for name, shape in layout.shapes.items()}


@pytest.mark.parametrize(
    ("body", "head"),
    [("model.", ""), ("model.language_model.", ""), ("language_model.model.", "language_model."), ("", "")],
)
@pytest.mark.parametrize("spec", [PLAIN, fused(PLAIN), fused(BIASED), TIED], ids=["plain", "fused", "biased", "tied"])
def test_prefixes_are_those_of_the_files(spec: DecoderSpec, body: str, head: str):
    names = stored_as(spec, body, head)
    layout = layout_of(names, spec)
    assert list(layout.shapes) == names
    assert layout.places.keys() >= spec.tensors().keys()
    assert layout.own_name(f"{body}norm.weight") == "model.norm.weight"
    assert layout.own_name("vision_tower.norm.weight") == "vision_tower.norm.weight"


def test_a_stored_head_is_known_when_it_is_tied():
    names = [*stored_as(TIED, "language_model.model."), "language_model.lm_head.weight"]
    layout = layout_of(names, TIED)
    assert layout.own_name("language_model.lm_head.weight") == "lm_head.weight"
    assert "language_model.lm_head.weight" not in layout.shapes


def test_parts_that_are_tensors_of_their_own_are_read_as_such():
    spec = fused(PLAIN)
    layer = "model.layers.0."
    split = layout_of(PLAIN.tensors(), spec)
    assert split.shapes == PLAIN.tensors()
    whole = layout_of((), spec)
    assert whole.shapes[f"{layer}{QKV}.weight"] == (128, 64)
    assert whole.places[f"{layer}self_attn.k_proj.weight"] == Place(f"{layer}{QKV}.weight", 64, 32)
    assert whole.places[f"{layer}mlp.up_proj.weight"] == Place(f"{layer}{GATE_UP}.weight", 96, 96)
    assert whole.places[f"{layer}self_attn.o_proj.weight"] == Place(f"{layer}self_attn.o_proj.weight")
    mixed = layout_of([*PLAIN.tensors().keys() - {f"{layer}self_attn.v_proj.weight"}], spec)
    assert f"{layer}{QKV}.weight" in mixed.shapes and f"{layer}mlp.up_proj.weight" in mixed.shapes


def test_a_fused_tensor_gives_its_rows(tmp_path: Path):
    spec = fused(BIASED)
    tensors = numbers(layout_of((), spec))
    opened = checkpoint(tmp_path / "c", spec, tensors, architectures=["Qwen2ForCausalLM"])
    assert check_tensors(opened) == {}
    for end in ("weight", "bias"):
        one = tensors[f"model.layers.0.{QKV}.{end}"].numpy()
        for name, first, last in (("q", 0, 64), ("k", 64, 96), ("v", 96, 128)):
            tensor = f"model.layers.0.self_attn.{name}_proj.{end}"
            info = opened.source.info(tensor)
            assert (info.name, info.shape) == (f"model.layers.0.{QKV}.{end}", one[first:last].shape)
            assert info.nbytes == one[first:last].nbytes
            assert np.array_equal(opened.source.rows(tensor, 3, last - first), one[first + 3 : last])
    assert set(opened.source.names) == spec.tensors().keys()
    stored = sum(info.nbytes for info in opened.source.stored.values())
    assert sum(opened.source.info(name).nbytes for name in spec.tensors()) == stored
    with pytest.raises(IndexError, match=r"rows 0 to 33 of model.layers.0.self_attn.k_proj.weight, which has 32"):
        opened.source.rows("model.layers.0.self_attn.k_proj.weight", 0, 33)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=5), st.integers(0, 3), st.data())
def test_row_ranges_are_the_rows_of_the_whole(sizes: list[int], columns: int, data: st.DataObject):
    """Whatever the parts: each has its own shape and bytes, and any rows of it are those of the larger tensor."""
    shape = (sum(sizes), columns) if columns else (sum(sizes),)
    files = RandomSource({"whole": shape, "other": (2, 2)}, dtype="F32", seed=3)
    firsts = [sum(sizes[:index]) for index in range(len(sizes))]
    places = {
        f"part.{index}": Place("whole", first, size)
        for index, (first, size) in enumerate(zip(firsts, sizes, strict=True))
    }
    source = Arranged(files, Layout(places, {"whole": shape}))
    assert set(source.names) == {*places, "other"}
    whole = files.rows("whole", 0, shape[0])
    assert sum(source.info(name).nbytes for name in places) == whole.nbytes
    joined = np.concatenate([source.rows(name, 0, size) for name, size in zip(places, sizes, strict=True)])
    assert np.array_equal(joined, whole)
    part = data.draw(st.integers(0, len(sizes) - 1))
    start = data.draw(st.integers(0, sizes[part]))
    stop = data.draw(st.integers(start, sizes[part]))
    rows = source.rows(f"part.{part}", start, stop)
    assert source.info(f"part.{part}").shape == (sizes[part], *shape[1:])
    assert np.array_equal(rows, whole[firsts[part] + start : firsts[part] + stop])


def refused(folder: Path, spec: DecoderSpec, tensors: Mapping[str, torch.Tensor]) -> str:
    with pytest.raises(CheckpointError) as caught:
        account(checkpoint(folder, spec, tensors))
    return str(caught.value)


def test_disagreements_are_named_as_the_files_spell_them(tmp_path: Path):
    body, head = "language_model.model.", "language_model."
    tensors = numbers(layout_of(stored_as(fused(PLAIN), body, head), fused(PLAIN)))
    del tensors[f"{head}lm_head.weight"], tensors[f"{body}layers.0.mlp.down_proj.weight"]
    tensors[f"{body}layers.0.{QKV}.weight"] = torch.zeros(120, 64)
    tensors[f"{body}layers.0.mlp.up_proj.weight"] = torch.zeros(96, 64)
    tensors[f"{body}layers.1.extra"] = torch.zeros(3)
    message = refused(tmp_path / "c", fused(PLAIN), tensors)
    assert "found: 5 disagreements:" in message
    for line in (
        rf"language_model\.model\.layers\.0\.{QKV}\.weight: expected \[128, 64\], found \[120, 64\]",
        r"language_model\.model\.layers\.0\.mlp\.down_proj\.weight: expected \[64, 96\], found nothing",
        r"language_model\.lm_head\.weight: expected \[200, 64\], found nothing",
        r"language_model\.model\.layers\.0\.mlp\.up_proj\.weight: expected nothing, found \[96, 64\]",
        r"language_model\.model\.layers\.1\.extra: expected nothing, found \[3\]",
    ):
        assert re.search(line, message), line


def test_two_spellings_at_once_are_refused(tmp_path: Path):
    tensors = numbers(layout_of((), PLAIN))
    tensors["language_model.model.norm.weight"] = torch.ones(64)
    assert "language_model.model.norm.weight: expected nothing, found [64]" in refused(tmp_path / "c", PLAIN, tensors)


def test_a_head_beside_a_tied_embedding_is_compared_under_its_prefix(tmp_path: Path):
    names = stored_as(TIED, "language_model.model.")
    tensors = numbers(layout_of(names, TIED))
    head, embedding = "language_model.lm_head.weight", "language_model.model.embed_tokens.weight"
    tensors[head] = tensors[embedding].clone()
    assert account(checkpoint(tmp_path / "equal", TIED, tensors)) == {head: "bit-equal to the tied embedding"}
    tensors[head][7, 3] += 1
    message = refused(tmp_path / "other", TIED, tensors)
    assert f"found: tensor '{head}' that differs from '{embedding}'" in message
