"""Hugging Face ids: which text is one, which files are fetched, and what links may lead to."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from llmc.compiler.checkpoint.checkpoint import open_checkpoint
from llmc.compiler.checkpoint.hub import HubId, download, parse_hub_id
from llmc.runtime.errors import CheckpointError, ResourceError, Unsupported

COMMIT = "0123456789abcdef0123456789abcdef01234567"
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "vocab_size": 10,
}


def make_cache(root: Path, name: str = "org/name") -> Path:
    """A repository in the cache: blobs, a snapshot of links to them, a ref. The snapshot's folder."""
    repository = root / f"models--{name.replace('/', '--')}"
    snapshot = repository / "snapshots" / COMMIT
    for folder in (repository / "blobs", repository / "refs", snapshot):
        folder.mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    (repository / "blobs" / "aa").write_text(json.dumps(CONFIG))
    save_file({"w": torch.ones(2)}, repository / "blobs" / "bb")
    (snapshot / "config.json").symlink_to("../../blobs/aa")
    (snapshot / "model.safetensors").symlink_to("../../blobs/bb")
    return snapshot


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("org/name", HubId("org/name", None)),
        ("hf://meta-llama/Llama-3.2-1B", HubId("meta-llama/Llama-3.2-1B", None)),
        ("org/name@main", HubId("org/name", "main")),
        ("org/name@refs/pr/3", HubId("org/name", "refs/pr/3")),
        (f"org/name@{COMMIT}", HubId("org/name", COMMIT)),
        ("name", None),
        ("./org/name", None),
        ("/org/name", None),
        ("a/b/c", None),
        ("../name", None),
        ("org/..", None),
        ("org/name@../../x", None),
        ("org/name@", None),
        ("org/na me", None),
    ],
)
def test_what_is_a_hub_id(text: str, meant: HubId | None) -> None:
    assert parse_hub_id(text) == meant


def test_without_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ResourceError) as caught:
        open_checkpoint("org/name")
    fix = "pip install '.[hub]' in a checkout of llmc, or pass a local folder"
    assert f"found: huggingface_hub is not installed\n  try: {fix}" in str(caught.value)


def test_a_folder_of_that_name_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = make_cache(tmp_path / "cache")
    folder = tmp_path / "org" / "name"
    folder.mkdir(parents=True)
    for name in ("config.json", "model.safetensors"):
        (folder / name).write_bytes((snapshot / name).read_bytes())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert open_checkpoint("org/name").path == folder


def test_links_of_a_snapshot_stay_in_its_repository(tmp_path: Path) -> None:
    snapshot = make_cache(tmp_path)
    other = make_cache(tmp_path, "org/other")
    checkpoint = open_checkpoint(snapshot)
    assert checkpoint.revision == COMMIT
    assert [facts.name for facts in checkpoint.files.facts] == ["config.json", "model.safetensors"]
    os.link(snapshot / ".." / ".." / "blobs" / "bb", tmp_path / "second-name")
    open_checkpoint(snapshot)
    (snapshot / "model.safetensors").unlink()
    (snapshot / "model.safetensors").symlink_to(other / ".." / ".." / "blobs" / "bb")
    with pytest.raises(
        CheckpointError, match=r"^expected a file inside the checkpoint folder at .*model.safetensors\n  found: a link"
    ):
        open_checkpoint(snapshot)


class _Client:
    """Stands for the hub: records what is asked for and puts it into the cache."""

    def __init__(self, snapshot: Path, repository: dict[str, bytes]) -> None:
        self.snapshot, self.repository = snapshot, repository
        self.asked: list[tuple[str | None, list[str]]] = []

    def __call__(
        self, name: str, *, revision: str | None, allow_patterns: list[str], ignore_patterns: list[str]
    ) -> str:
        from huggingface_hub.utils import filter_repo_objects

        self.asked.append((revision, allow_patterns))
        wanted = filter_repo_objects(
            list(self.repository), allow_patterns=allow_patterns, ignore_patterns=ignore_patterns
        )
        for file in wanted:
            (self.snapshot / file).write_bytes(self.repository[file])
        return str(self.snapshot)


def use_client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, repository: dict[str, bytes]) -> _Client:
    snapshot = tmp_path / "models--org--name" / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    client = _Client(snapshot, repository)
    monkeypatch.setattr("huggingface_hub.snapshot_download", client)
    return client


def test_only_needed_files_are_fetched_and_of_one_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = json.dumps({"weight_map": {"w": "model-00001-of-00001.safetensors"}}).encode()
    weights = ("model-00001-of-00001.safetensors", "consolidated.safetensors", "pytorch_model.bin", "original/x.json")
    small = (
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "README.md",
        "LICENSE.txt",
    )
    repository = dict.fromkeys((*weights, *small, "code.py"), b"{}") | {"model.safetensors.index.json": index}
    client = use_client(tmp_path, monkeypatch, repository)
    folder, warnings = download(HubId("org/name", "main"), weights=True)
    assert (folder, warnings) == (client.snapshot, [])
    assert sorted(file.name for file in folder.iterdir()) == [
        "LICENSE.txt", "README.md", "chat_template.jinja", "config.json", "model-00001-of-00001.safetensors",
        "model.safetensors.index.json", "tokenizer.json", "tokenizer_config.json",
    ]  # fmt: skip
    assert [revision for revision, _ in client.asked] == ["main", COMMIT]


def test_a_repository_of_pickles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client = use_client(tmp_path, monkeypatch, {"config.json": b"{}", "pytorch_model.bin": b"x"})
    with pytest.raises(Unsupported) as caught:
        download(HubId("org/name", None), weights=True)
    assert "expected weights in safetensors files in org/name\n  found: neither model.safetensors nor" in str(
        caught.value
    )
    assert [file.name for file in client.snapshot.iterdir()] == ["config.json"]
    download(HubId("org/name", None), weights=False)
