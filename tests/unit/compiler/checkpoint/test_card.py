"""The model card: which words of it become an engine's name and licence, and that no card stops a build."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.checkpoints import write_single

from llmc.compiler.checkpoint.card import Card, read_card
from llmc.compiler.checkpoint.checkpoint import open_checkpoint
from llmc.compiler.checkpoint.folder import Folder

COMMIT = "0123456789abcdef0123456789abcdef01234567"
BOMB = "a: &a [x]\nb: &b [*a, *a]\nc: [*b, *b]"


@pytest.mark.parametrize(
    ("card", "said"),
    [
        ("", Card(None, None)),
        ("# pico-python\n\ntext", Card("pico-python", None)),
        ("---\nlicense: apache-2.0\n---\n\n# Model Card for Some-7B\n", Card("Some-7B", "apache-2.0")),
        ("---\r\nlicense: mit\r\n---\r\n# Some 7B\r\n", Card("Some 7B", "mit")),
        ("---\nlicense: other\nlicense_name: llama3.2\n---\n## Model Information", Card(None, "llama3.2")),
        ("---\nlicense: other\n---\n", Card(None, "other")),
        ("---\nlicense: [mit, apache-2.0]\nmodel_name: One\n---\n# Two", Card("One", "mit, apache-2.0")),
        ("---\nmodel-index:\n- name: Indexed\n  results: []\n---\n# Two", Card("Indexed", None)),
        ("---\nlicense:\nmodel-index: []\n---\n# Two", Card("Two", None)),
        ("---\nlicense: {a: b}\nmodel_name: [[x]]\n---\n# <img src=x>", Card(None, None)),
        (f"---\nlicense: mit\n{BOMB}\n---\n# Two", Card("Two", None)),
        ("---\nlicense: mit\nlicense: mit\n---\n# Two", Card("Two", None)),
        ("---\nlicense: mit\n", Card(None, None)),
        ('---\nlicense: "a\\u001b[2Jb"\n---\n# a\x1b[2Jb', Card(None, None)),
        (f"---\nlicense: {'m' * 97}\n---\n# {'n' * 97}", Card(None, None)),
        (f"# {' ' * 100_000}<", Card(None, None)),
        ("# Two" + " " * (1 << 20), Card(None, None)),
    ],
)
def test_what_a_card_says(tmp_path: Path, card: str, said: Card):
    (tmp_path / "README.md").write_bytes(card.encode())
    assert read_card(Folder(tmp_path)) == said


def test_a_licence_file_is_named_where_no_card_names_the_licence(tmp_path: Path):
    (tmp_path / "LICENSE.txt").touch()
    (tmp_path / "licensed-to-me").touch()
    assert read_card(Folder(tmp_path)) == Card(None, "see LICENSE.txt")
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n")
    assert read_card(Folder(tmp_path)) == Card(None, "mit")


@pytest.mark.parametrize("odd", ["folder", "link"])
def test_a_card_that_is_no_file_of_the_folder_says_nothing(tmp_path: Path, odd: str):
    (tmp_path / "secret").write_text("# secret")
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    (folder / "README.md").mkdir() if odd == "folder" else (folder / "README.md").symlink_to("../secret")
    assert read_card(Folder(folder)) == Card(None, None)


@pytest.mark.parametrize(
    ("repository", "hub_id", "name"),
    [
        ("models--org--name-1.5", "org/name-1.5", "name-1.5"),
        ("models--gpt2", "gpt2", "gpt2"),
        ("datasets--org--name", None, "Carded"),
        ("models--a--b--c", None, "Carded"),
        ("models----b", None, "Carded"),
        ("models--org--\x1b", None, "Carded"),
        ("anything", None, "Carded"),
    ],
)
def test_the_hubs_cache_names_the_model(tmp_path: Path, repository: str, hub_id: str | None, name: str):
    folder = write_single(tmp_path / repository / "snapshots" / COMMIT)
    (folder / "README.md").write_text("# Carded")
    checkpoint = open_checkpoint(folder)
    assert (checkpoint.hub_id, checkpoint.revision, checkpoint.name) == (hub_id, COMMIT, name)
    elsewhere = folder.rename(tmp_path / COMMIT)
    checkpoint = open_checkpoint(elsewhere)
    assert (checkpoint.hub_id, checkpoint.revision, checkpoint.name) == (None, None, "Carded")
