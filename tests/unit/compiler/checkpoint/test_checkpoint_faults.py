"""Damaged, hostile and unfinished checkpoint folders: each refused by name, at once, and nothing of them run."""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.checkpoints import CONFIG, FIRST, INDEX, SECOND, refusal, write_sharded, write_single

from llmc.compiler.checkpoint import folder as checkpoint_files
from llmc.compiler.checkpoint.checkpoint import TOKENIZER_FILES, Checkpoint, open_checkpoint
from llmc.compiler.checkpoint.folder import check_shard_name
from llmc.runtime.errors import CheckpointError, LlmcError, Unsupported


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("../x.safetensors", "leads to another folder"),
        ("/etc/x.safetensors", "leads to another folder"),
        ("..", "leads to another folder"),
        ("a\\x.safetensors", "leads to another folder"),
        ("\\\\host\\share\\x.safetensors", "leads to another folder"),
        ("C:x.safetensors", "a character that file names cannot have everywhere"),
        ("x\0.safetensors", "a character that file names cannot have everywhere"),
        ("x\n.safetensors", "a character that file names cannot have everywhere"),
        ("x.safetensors:stream", "a character that file names cannot have everywhere"),
        ("CON.safetensors", "a device or a name that Windows changes"),
        ("com1.model.safetensors", "a device or a name that Windows changes"),
        ("nul", "a device or a name that Windows changes"),
        ("x.safetensors.", "a device or a name that Windows changes"),
        ("", "of 1 to 255 bytes wanted"),
        ("x" * 300 + ".safetensors", "of 1 to 255 bytes wanted"),
        ("pytorch_model.bin", "not a .safetensors file"),
        (7, "not a string"),
        (None, "not a string"),
        (["x.safetensors"], "not a string"),
    ],
)
def test_shard_names_that_escape(tmp_path: Path, name: object, said: str) -> None:
    folder = write_sharded(tmp_path / "c")
    (folder / INDEX).write_text(json.dumps({"weight_map": {"a": FIRST, "b": name}}))
    message = refusal(folder)
    assert "expected plain file names of shards in " in message
    assert said in message


@given(st.text(max_size=12).map(lambda text: f"{text}.safetensors"))
def test_accepted_shard_names_stay_in_the_folder(name: str) -> None:
    try:
        check_shard_name(name, "index")
    except CheckpointError:
        return
    assert os.path.basename(name) == name and os.path.normpath(f"/f/{name}") == f"/f/{name}"
    assert Path(name).name == name and "\\" not in name and ":" not in name


def test_damaged_indexes(tmp_path: Path) -> None:
    folder = write_sharded(tmp_path / "c")
    (folder / INDEX).write_text('{"weight_map": {"a": "x.safetensors", "a": "y.safetensors"}}')
    assert "the key 'a' twice in one object" in refusal(folder)
    (folder / INDEX).write_text('{"weight_map": {}}')
    asked = f'expected "weight_map" from tensors to shards in {folder}/{INDEX}'
    assert f"{asked}\n  found: {{}}" in refusal(folder)
    (folder / INDEX).write_text("[]")
    assert asked in refusal(folder)


def test_links(tmp_path: Path) -> None:
    folder = write_sharded(tmp_path / "c")
    (folder / SECOND).rename(folder / "real.safetensors")
    (folder / SECOND).symlink_to("real.safetensors")
    open_checkpoint(folder)
    (folder / "real.safetensors").rename(tmp_path / "outside.safetensors")
    (folder / SECOND).unlink()
    (folder / SECOND).symlink_to(tmp_path / "outside.safetensors")
    asked = f"expected a file inside the checkpoint folder at {folder}/{SECOND}"
    assert f"{asked}\n  found: a link to {tmp_path}/outside.safetensors" in refusal(folder)
    (folder / SECOND).unlink()
    (folder / SECOND).symlink_to("nothing")
    assert f"expected a file of the checkpoint at {folder}/{SECOND}\n  found: a link to nothing" in refusal(folder)
    (folder / SECOND).unlink()
    (folder / SECOND).symlink_to(SECOND)
    assert f"expected a file of the checkpoint at {folder}/{SECOND}" in refusal(folder)
    (folder / SECOND).unlink()
    os.link(tmp_path / "outside.safetensors", folder / SECOND)
    asked = f"expected a file with one name at {folder}/{SECOND}"
    assert f"{asked}\n  found: a hard link, 2 names" in refusal(folder)
    (folder / SECOND).unlink()
    (folder / SECOND).write_bytes((tmp_path / "outside.safetensors").read_bytes())
    open_checkpoint(folder)
    (folder / "config.json").rename(tmp_path / "config.json")
    (folder / "config.json").symlink_to(tmp_path / "config.json")
    assert f"expected a file inside the checkpoint folder at {folder}/config.json" in refusal(folder)


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", *TOKENIZER_FILES, INDEX])
def test_small_files_with_two_names_are_refused_as_weights_are(tmp_path: Path, name: str) -> None:
    """They decide an engine's bytes too, and can be changed through the other name."""
    folder = write_sharded(tmp_path / "c")
    if not (folder / name).exists():
        (folder / name).write_text("{}")
    os.link(folder / name, tmp_path / "other")
    assert f"expected a file with one name at {folder}/{name}\n  found: a hard link, 2 names" in refusal(folder)
    (tmp_path / "other").unlink()
    open_checkpoint(folder)


def test_parent_component_that_is_a_link(tmp_path: Path) -> None:
    write_sharded(tmp_path / "elsewhere")
    folder = write_sharded(tmp_path / "c")
    (folder / "sub").symlink_to(tmp_path / "elsewhere")
    (folder / SECOND).unlink()
    (folder / SECOND).symlink_to(f"sub/{SECOND}")
    assert "a file inside the checkpoint folder" in refusal(folder)


def test_file_swapped_between_check_and_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_single(tmp_path / "c")
    outside = write_single(tmp_path / "outside") / "model.safetensors"
    weights = folder / "model.safetensors"
    real_open = os.open

    def swapping(change: Callable[[], object]) -> Callable[..., int]:
        def opened(path: Path, flags: int) -> int:
            if Path(path) == weights:
                change()
            return real_open(path, flags)

        return opened

    def to_link() -> None:
        weights.unlink()
        weights.symlink_to(outside)

    monkeypatch.setattr(checkpoint_files.os, "open", swapping(to_link))
    asked = f"expected a readable regular file at {weights}"
    assert f"{asked}\n  found: a link put there meanwhile" in refusal(folder)
    weights.unlink()
    shutil.copy(outside, weights)

    def parent_to_link() -> None:
        folder.rename(tmp_path / "moved")
        folder.symlink_to(outside.parent)

    monkeypatch.setattr(checkpoint_files.os, "open", swapping(parent_to_link))
    asked = f"expected a file inside the checkpoint folder at {folder}/model.safetensors"
    assert f"{asked}\n  found: a link to" in refusal(folder)


def test_things_that_are_no_files_do_not_block(tmp_path: Path) -> None:
    folder = write_sharded(tmp_path / "c")
    shard = folder / SECOND
    shard.unlink()
    os.mkfifo(shard)
    assert f"expected a regular file at {folder}/{SECOND}\n  found: a FIFO" in refusal(folder)
    shard.unlink()
    shard.mkdir()
    assert f"expected a regular file at {folder}/{SECOND}\n  found: a folder" in refusal(folder)
    shard.rmdir()
    shard.symlink_to("/dev/zero")
    asked = f"expected a file inside the checkpoint folder at {folder}/{SECOND}"
    assert f"{asked}\n  found: a link to /dev/zero" in refusal(folder)
    shard.unlink()
    here = os.getcwd()
    os.chdir(folder)  # a socket's path may have 108 bytes only
    try:
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(SECOND)
            assert f"expected a readable regular file at {folder}/{SECOND}" in refusal(folder)
    finally:
        os.chdir(here)
    shard.unlink()
    (folder / "config.json").unlink()
    os.mkfifo(folder / "config.json")
    assert f"expected a regular file at {folder}/config.json\n  found: a FIFO" in refusal(folder)


def test_damaged_shards_name_the_file_and_the_way_out(tmp_path: Path) -> None:
    folder = write_single(tmp_path / "c", w=torch.ones(64, 64))
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-100])
    assert "model.safetensors to have" in refusal(folder) and "it is cut off" in refusal(folder)
    weights.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    assert "found: a Git LFS pointer, not the weights\n  try: git lfs pull" in refusal(folder)
    weights.write_text("<!DOCTYPE html><html>sign in</html>")
    assert "found: an HTML page, not the weights\n  try: download the file again" in refusal(folder)


def test_file_that_changes_during_the_build(tmp_path: Path) -> None:
    folder = write_single(tmp_path / "c", w=torch.ones(64, 64))
    weights = folder / "model.safetensors"

    def opened() -> Checkpoint:
        checkpoint = open_checkpoint(folder)
        checkpoint.files.require_unchanged()
        return checkpoint

    checkpoint = opened()
    os.utime(weights, ns=(1, 1))
    with pytest.raises(
        CheckpointError, match=r"^expected .*model.safetensors to stay unchanged while the engine is built"
    ):
        checkpoint.files.require_unchanged()
    checkpoint = opened()
    before, whole = weights.stat(), weights.read_bytes()
    for change in (lambda: weights.write_bytes(whole[:-1] + b"x"), lambda: weights.chmod(0o600)):
        checkpoint = opened()
        change()
        os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))  # a program can put an mtime back
        assert weights.stat().st_mtime_ns == before.st_mtime_ns
        with pytest.raises(CheckpointError, match=r"^expected .*model.safetensors to stay unchanged"):
            checkpoint.files.require_unchanged()
    weights.write_bytes(whole)
    checkpoint = opened()
    with weights.open("ab") as file:
        file.write(b"x")
    with pytest.raises(CheckpointError, match="wait until the download has finished"):
        checkpoint.files.require_unchanged()
    weights.write_bytes(weights.read_bytes()[:-1])
    checkpoint = opened()
    os.truncate(weights, 1000)
    with pytest.raises(CheckpointError, match=r"^expected \d+ bytes in .*model.safetensors, as when it was opened"):
        checkpoint.source.rows("w", 0, 64)
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"^expected .*config.json to stay unchanged"):
        checkpoint.files.require_unchanged()


@pytest.mark.parametrize(
    ("files", "kind", "said"),
    [
        (["pytorch_model.bin", "pytorch_model-2.pt"], Unsupported, "pickle files run code when read, llmc never opens"),
        (["adapter_config.json", "adapter_model.safetensors"], Unsupported, "found: an adapter (LoRA)"),
        (["consolidated.safetensors"], Unsupported, "found: Meta's or Mistral's own form"),
        (["a.safetensors", "b.safetensors"], CheckpointError, "found: a.safetensors, b.safetensors without an index"),
        (["model.gguf"], Unsupported, "found: only GGUF files: model.gguf"),
        ([], CheckpointError, "found: config.json and no weights\n  try: the weights too (hf download"),
    ],
)
def test_folders_without_weights_say_what_is_there(
    tmp_path: Path, files: list[str], kind: type[LlmcError], said: str
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    for name in files:
        os.mkfifo(tmp_path / name)  # reading it would block forever
    message = refusal(tmp_path, kind)
    assert "weights in model.safetensors, or in shards listed by" in message
    assert said in message


def test_small_files_are_capped(tmp_path: Path) -> None:
    folder = write_single(tmp_path / "c")
    with (folder / "tokenizer.json").open("wb") as file:
        file.truncate(1 << 30)  # sparse
    asked = f"expected a file of at most 134217728 bytes at {folder}/tokenizer.json"
    assert f"{asked}\n  found: 1073741824 bytes" in refusal(folder)


def test_no_descriptors_are_left_behind(tmp_path: Path) -> None:
    folder = write_sharded(tmp_path / "c")
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        checkpoint = open_checkpoint(folder)
        del checkpoint
        (folder / "generation_config.json").write_text("[]")
        refusal(folder)
        (folder / "generation_config.json").unlink()
    assert len(os.listdir("/proc/self/fd")) <= before
