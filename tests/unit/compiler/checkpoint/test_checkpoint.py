"""Checkpoints: read as the safetensors library reads them, with everything that was resolved told to the user."""

from __future__ import annotations

import gc
import hashlib
import json
import shutil
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from support.checkpoints import CONFIG, FIRST, INDEX, SECOND, refusal, write_index, write_sharded, write_single
from support.paths import PICO

from llmc.compiler.checkpoint.checkpoint import open_checkpoint
from llmc.compiler.checkpoint.digest import Files
from llmc.compiler.checkpoint.folder import FileFacts, Folder, OpenFile
from llmc.compiler.tokens.resolve import resolve
from llmc.runtime.errors import CheckpointError, Unsupported
from llmc.runtime.numbers import bf16_to_f32, to_f32


def test_bundled_checkpoint_reads_as_the_safetensors_library_reads_it() -> None:
    checkpoint = open_checkpoint(PICO)
    seen = set()
    for shard in sorted(PICO.glob("*.safetensors")):
        with safe_open(shard, "pt") as theirs:
            for name in theirs.keys():  # noqa: SIM118  (not a mapping)
                tensor = theirs.get_tensor(name)
                rows = checkpoint.source.rows(name, 0, len(tensor))
                assert checkpoint.source.info(name).shape == tuple(tensor.shape)
                assert np.array_equal(to_f32(rows, checkpoint.source.info(name).dtype), tensor.float().numpy())
                seen.add(name)
    assert set(checkpoint.source.names) == seen
    assert checkpoint.files.digests() == {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in PICO.iterdir() if file.name != "README.md"
    }
    assert {facts.name: facts.bytes for facts in checkpoint.files.facts} == {
        file.name: file.stat().st_size for file in PICO.iterdir() if file.name != "README.md"
    }
    assert checkpoint.tokenizer["tokenizer.json"] == (PICO / "tokenizer.json").read_bytes()
    assert (checkpoint.special.bos["config.json"], checkpoint.special.eos["config.json"]) == (0, (1,))
    assert checkpoint.revision is None
    assert checkpoint.warnings == ("no chat template: `llmc run --chat` will need --chat-template",)
    checkpoint.files.require_unchanged()


class EndlessFile(OpenFile):
    """A shard that takes days to hash."""

    def __init__(self, facts: FileFacts) -> None:
        self.facts = facts

    def read_into(self, buffer: memoryview, offset: int) -> None:
        assert offset < self.facts.bytes


def test_hashing_ends_with_the_build_that_wanted_it() -> None:
    """A refused build must not read 100 GB before the process can end, nor go on doing so in one that lives on."""
    opened = open_checkpoint(PICO).files.shards[0]
    before = set(threading.enumerate())
    files = Files(Folder(PICO))
    files.shards.append(EndlessFile(replace(opened.facts, bytes=1 << 50)))
    files.start_digest()
    (worker,) = set(threading.enumerate()) - before
    assert worker.daemon
    del files
    gc.collect()
    worker.join(60)
    assert not worker.is_alive()


def test_rows_are_slices_of_the_first_axis(tmp_path: Path) -> None:
    tensors = {
        "matrix": torch.randn(7, 5, dtype=torch.float16),
        "vector": torch.randn(9, dtype=torch.bfloat16),
        "cube": torch.randn(3, 2, 4),
        "scalar": torch.tensor(2.5),
        "none": torch.zeros(0, 4),
    }
    source = open_checkpoint(write_single(tmp_path / "c", **tensors)).source
    assert np.array_equal(source.rows("matrix", 2, 5), tensors["matrix"][2:5].numpy())
    assert np.array_equal(bf16_to_f32(source.rows("vector", 1, 8)), tensors["vector"][1:8].float().numpy())
    assert np.array_equal(source.rows("cube", 1, 3), tensors["cube"][1:].numpy())
    assert source.rows("scalar", 0, 1).tolist() == [2.5]
    assert source.rows("none", 0, 0).shape == (0, 4)
    assert source.rows("matrix", 3, 3).shape == (0, 5)
    with pytest.raises(IndexError, match="rows 5 to 8 of matrix, which has 7"):
        source.rows("matrix", 5, 8)
    with pytest.raises(CheckpointError, match=r"cannot find tensor 'matrx' in the checkpoint\n.*did you mean 'matrix'"):
        source.info("matrx")


def test_rows_from_many_threads(tmp_path: Path) -> None:
    data = torch.arange(64 * 1024, dtype=torch.float32).reshape(64, 1024)
    source = open_checkpoint(write_single(tmp_path / "c", w=data)).source
    wrong: list[int] = []

    def read(row: int) -> None:
        wrong.extend(row for _ in range(50) if not np.array_equal(source.rows("w", row, row + 1)[0], data[row].numpy()))

    threads = [threading.Thread(target=read, args=(row,)) for row in range(0, 64, 8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_what_may_be_passed(tmp_path: Path) -> None:
    folder = write_sharded(tmp_path / "c")
    assert open_checkpoint(str(folder)).path == open_checkpoint(folder / FIRST).path == folder
    (tmp_path / "link").symlink_to(folder)
    assert open_checkpoint(tmp_path / "link").path == folder
    shutil.copy(folder / SECOND, folder / "other.safetensors")
    with pytest.raises(CheckpointError, match=r"^expected a weight file of the checkpoint at .*other.safetensors"):
        open_checkpoint(folder / "other.safetensors")
    with pytest.raises(CheckpointError, match="or a Hugging Face id org/name"):
        open_checkpoint(str(tmp_path / "nothing"))
    with pytest.raises(CheckpointError, match=r"^cannot open checkpoint org/name\n  found: no such folder"):
        open_checkpoint(Path("org/name"))


def test_eos_is_the_union_and_the_default_only_if_nobody_says(tmp_path: Path) -> None:
    folder = write_single(tmp_path / "c")
    (folder / "generation_config.json").write_text('{"eos_token_id": [5, 4], "bos_token_id": 3, "temperature": 0.5}')
    checkpoint = open_checkpoint(folder)
    found = resolve(checkpoint.special, None)
    assert (found.eos_ids, found.bos, checkpoint.generation) == ((2, 4, 5), 3, {"temperature": 0.5})
    config = {key: value for key, value in CONFIG.items() if key != "eos_token_id"}
    (folder / "config.json").write_text(json.dumps(config))
    assert resolve(open_checkpoint(folder).special, None).eos_ids == (4, 5)
    (folder / "generation_config.json").unlink()
    assert resolve(open_checkpoint(folder).special, None).eos_ids == (2,)


def test_warnings(tmp_path: Path) -> None:
    folder = write_sharded(tmp_path / "c")
    write_index(folder, {"a": FIRST, "b": FIRST, "c": SECOND}, total_size=51)
    shutil.copy(folder / SECOND, folder / "extra.safetensors")
    (folder / "tokenizer.model").write_bytes(b"x")
    (folder / "generation_config.json").write_text('{"num_beams": 4}')
    config = CONFIG | {"auto_map": {"AutoModel": "evil.Model"}, "tie_word_embeddings": None}
    (folder / "config.json").write_text(json.dumps(config | {"text_config": {"tie_word_embeddings": True}}))
    (folder / "evil.py").write_text("raise SystemExit('imported')")
    checkpoint = open_checkpoint(folder)
    warnings = "\n".join(checkpoint.warnings)
    assert f"extra.safetensors is not read: {INDEX} does not list it" in warnings
    assert "total_size says 51 bytes, the tensors have 52" in warnings
    assert "no tokenizer.json, only tokenizer.model" in warnings
    assert "generation_config.json: num_beams is ignored" in warnings
    assert "auto_map: remote code is never imported" in warnings
    assert "tie_word_embeddings = true: found in text_config only" in warnings
    assert "c" in checkpoint.source.names and checkpoint.config.decoder.tied


def test_single_file_beside_an_index_of_others_wins(tmp_path: Path) -> None:
    folder = write_sharded(tmp_path / "c")
    save_file({"only": torch.ones(1)}, folder / "model.safetensors")
    checkpoint = open_checkpoint(folder)
    assert checkpoint.source.names == ("only",)
    assert f"{FIRST} is not read" in checkpoint.warnings


@pytest.mark.parametrize(
    ("tensor", "dtype"),
    [
        (torch.ones(2, 2, dtype=torch.float64), "F64"),
        (torch.ones(2, 2, dtype=torch.int8), "I8"),
        (torch.ones(2, 2).to(torch.float8_e4m3fn), "F8_E4M3"),
        (torch.ones(2, 2, dtype=torch.uint8), "U8"),
    ],
)
def test_dtypes_that_are_no_plain_floats(tmp_path: Path, tensor: torch.Tensor, dtype: str) -> None:
    folder = write_single(tmp_path / "c", good=torch.ones(1), odd=tensor)
    message = refusal(folder, Unsupported)
    assert f"expected tensor 'odd' as one of BF16, F16, F32\n  found: {dtype}\n  try: start from the bf16" in message


def test_quantization_settings_that_stayed_behind(tmp_path: Path) -> None:
    folder = write_single(tmp_path / "c")
    settings = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (folder / "config.json").write_text(json.dumps(CONFIG | {"quantization_config": settings}))
    assert "quantization_config (bitsandbytes) is a leftover" in "\n".join(open_checkpoint(folder).warnings)
    save_file({"a": torch.ones(2, dtype=torch.uint8)}, folder / "model.safetensors")
    assert "found: U8, quant_method 'bitsandbytes'" in refusal(folder, Unsupported)


def test_a_template_of_an_old_processor_counts_if_there_is_no_other(tmp_path: Path) -> None:
    folder = write_single(tmp_path / "c")
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": "old"}))
    checkpoint = open_checkpoint(folder)
    assert (checkpoint.chat_template, checkpoint.tokenizer["chat_template.jinja"]) == ("old", b"old")
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": "own"}))
    assert open_checkpoint(folder).chat_template == "own"
