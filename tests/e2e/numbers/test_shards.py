"""Index, shards and buffers that disagree: read as transformers reads them, and refused only where the model reads."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.checkpoints import FIRST, INDEX, SECOND, refusal
from support.engines import small_checkpoint
from transformers import AutoModelForCausalLM

from llmc.compiler.cache.find import Wish
from llmc.compiler.checkpoint.account import check_tensors, open_source
from llmc.compiler.checkpoint.checkpoint import Checkpoint, open_checkpoint
from llmc.runtime.errors import CheckpointError, Unsupported
from llmc.runtime.numbers import to_f32

EMBEDDING, NORM, DOWN = "model.embed_tokens.weight", "model.norm.weight", "model.layers.0.mlp.down_proj.weight"
HEAD, ROPE = "lm_head.weight", "model.layers.0.self_attn.rotary_emb.inv_freq"
Tensors = dict[str, torch.Tensor]


def sharded(folder: Path, **config: object) -> tuple[Path, Tensors, Tensors]:
    """A small checkpoint without its only file, and the tensors for two shards; `write` writes them."""
    small_checkpoint(folder, tokenizer=False, torch_dtype="float32", model_type="llama", **config)
    tensors = {name: tensor.float() for name, tensor in load_file(folder / "model.safetensors").items()}
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    first = {name: tensors[name] for name in names[: len(names) // 2]}
    return folder, first, {name: tensors[name] for name in names[len(names) // 2 :]}


def write(folder: Path, first: Tensors, second: Tensors, **listed: str | None) -> Path:
    """`listed` changes the index: another shard for a tensor, or None to leave it out. Dots are underscores."""
    table = dict.fromkeys(first, FIRST) | dict.fromkeys(second, SECOND)
    table |= {name: shard for name, shard in listed.items() if shard is not None}
    for name in [name for name, shard in listed.items() if shard is None]:
        table.pop(name)
    save_file(first, folder / FIRST, {"format": "pt"})
    save_file(second, folder / SECOND, {"format": "pt"})
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": table}))
    return folder


def as_transformers(folder: Path) -> Checkpoint:
    """The opened checkpoint, whose every tensor that is read must be that of transformers."""
    checkpoint = open_source(folder)
    theirs: Mapping[str, torch.Tensor] = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).state_dict()
    for name, shape in checkpoint.config.decoder.tensors().items():
        rows = checkpoint.source.rows(name, 0, shape[0])
        found = torch.from_numpy(to_f32(rows, checkpoint.source.info(name).dtype))
        assert torch.equal(found, theirs[name]), name
    return checkpoint


def test_the_shards_count_and_the_index_is_compared(tmp_path: Path) -> None:
    """transformers 5.23.0, modeling_utils.py, `_load_pretrained_model`: reads every key of every shard."""
    folder, first, second = sharded(tmp_path / "c")
    write(folder, first, second, **{DOWN: SECOND, NORM: None, ROPE: FIRST})
    warnings = as_transformers(folder).warnings
    assert f"{INDEX} does not list what its shards hold: {NORM}" in warnings
    assert f"{INDEX} lists tensors for other shards than those that hold them: {DOWN}" in warnings
    assert f"{INDEX} lists what no shard holds and the model does not read: {ROPE}" in warnings


def test_an_unlisted_tied_head_and_old_rope_tables(tmp_path: Path) -> None:
    folder, first, second = sharded(tmp_path / "c", tie_word_embeddings=True)
    embedding = (first | second)[EMBEDDING]
    write(folder, first, {**second, HEAD: embedding.clone(), ROPE: torch.ones(4)}, **{HEAD: None, ROPE: None})
    checkpoint = as_transformers(folder)
    assert check_tensors(checkpoint).keys() == {HEAD, ROPE}
    assert f"{INDEX} does not list what its shards hold: {HEAD}, {ROPE}" in checkpoint.warnings


def test_a_tensor_in_two_shards(tmp_path: Path) -> None:
    """transformers 5.23.0 takes the last shard's; llmc wants the same bytes, where the model reads them."""
    folder, first, second = sharded(tmp_path / "c")
    write(folder, first, {**second, DOWN: first[DOWN].clone(), ROPE: torch.ones(4)}, **{DOWN: FIRST})
    assert f"two shards hold the same tensors: {DOWN}" in as_transformers(folder).warnings
    other = first[DOWN].clone()
    other[-1, -1] += 1e-3
    for copy in (other, first[DOWN][:1].clone(), first[DOWN].bfloat16()):
        for listed in (FIRST, SECOND, None):
            write(folder, first, {**second, DOWN: copy}, **{DOWN: listed})
            asked = f"expected one tensor {DOWN!r} in the shards that {INDEX} lists"
            assert f"{asked}\n  found: two that differ, in {FIRST} and in {SECOND}" in refusal(folder)
    write(folder, {**first, ROPE: torch.zeros(4)}, {**second, ROPE: torch.ones(4)})
    assert f"two shards hold the same tensors: {ROPE}" in as_transformers(folder).warnings


def test_what_is_read_must_be_there(tmp_path: Path) -> None:
    folder, first, second = sharded(tmp_path / "c")
    del first[DOWN]
    write(folder, first, second, **{DOWN: FIRST})
    asked = f"expected tensor {DOWN!r} in {FIRST}, as {INDEX} lists it"
    assert f"{asked}\n  found: no such tensor (did you mean" in refusal(folder)
    third = "model-00003-of-00003.safetensors"
    write(folder, first, second, **{DOWN: third})
    assert f"found: 1 missing: {third}" in refusal(folder)


def test_a_missing_shard_of_what_is_not_read(tmp_path: Path) -> None:
    folder, first, second = sharded(tmp_path / "c")
    third = "model-00003-of-00003.safetensors"
    write(folder, first, second, **{"vision_tower.patch.weight": third})
    assert f"{INDEX} lists {third}, which is missing: nothing of it is read" in open_source(folder).warnings


def test_files_beside_the_checkpoint(tmp_path: Path) -> None:
    folder, first, second = sharded(tmp_path / "c")
    write(folder, first, second)
    for name in ("consolidated.safetensors", "adapter_model.safetensors"):
        shutil.copy(folder / SECOND, folder / name)
    (folder / "original").mkdir()
    shutil.copy(folder / SECOND, folder / "original" / "model.safetensors")
    (folder / "adapter_config.json").write_text("{}")
    warnings = open_source(folder).warnings
    assert f"consolidated.safetensors is not read: {INDEX} does not list it" in warnings
    assert "adapter_config.json is not read: the engine has the weights of this folder, without the adapter" in warnings


def test_buffers_are_no_weights(tmp_path: Path) -> None:
    """Of integers, booleans or complex numbers; `llmc run` quantizes such a checkpoint as any other."""
    folder, first, second = sharded(tmp_path / "c")
    layers = {f"model.layers.{layer}.self_attn.masked_bias": torch.tensor(-10000) for layer in range(2)}
    extra = {"model.position_ids": torch.arange(8), "model.causal_mask": torch.ones(1, 1, 8, 8).bool()}
    write(folder, first, {**second, **layers, **extra, "model.freqs": torch.ones(2, dtype=torch.complex64)})
    checkpoint = as_transformers(folder)
    names = "model.causal_mask, model.freqs, model.layers.*.self_attn.masked_bias (2), model.position_ids"
    (said,) = [warning for warning in checkpoint.warnings if warning.startswith("buffers that are no weights")]
    assert sorted(said.partition(": ")[2].split(", ")) == names.split(", ")
    assert check_tensors(checkpoint).keys() == {*layers, *extra, "model.freqs"}
    assert Wish.of(None).for_checkpoint(checkpoint).default_format == "int8"


def test_integers_that_stand_for_weights_are_refused(tmp_path: Path) -> None:
    folder, first, second = sharded(tmp_path / "c")
    packed = DOWN.replace("weight", "qweight")
    write(folder, first, {**second, packed: torch.ones(2, 2, dtype=torch.int32)})
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps(settings | {"quantization_config": {"quant_method": "bitsandbytes"}})
    )
    assert f"expected tensor {packed!r} as one of BF16" in refusal(folder, Unsupported)
    (folder / "config.json").write_text(json.dumps(settings))
    del first[DOWN]
    write(folder, first, {**second, packed: torch.ones(2, 2, dtype=torch.int32), "model.position_ids": torch.arange(8)})
    assert f"expected tensor {packed!r} as one of BF16" in refusal(folder, Unsupported)


def test_other_unknown_tensors_stay_errors(tmp_path: Path) -> None:
    folder, first, second = sharded(tmp_path / "c")
    scale = torch.ones(2).to(torch.float8_e4m3fn)
    write(folder, first, {**second, "model.layers.0.mlp.down_proj.scale": scale})
    with pytest.raises(CheckpointError, match=r"down_proj\.scale: expected nothing, found F8_E4M3 \[2\]"):
        check_tensors(open_checkpoint(folder))
