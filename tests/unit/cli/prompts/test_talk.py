"""Commands of a conversation that need no engine; `tests/e2e/cli/test_chat.py` has the others."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from llmc.cli.prompts.talk import Talk, command
from llmc.runtime.errors import RecipeError, ResourceError


@pytest.mark.parametrize(
    ("name", "found"),
    [("~no-such-user/x", "no folder ~no-such-user"), ("a\0b", "embedded null"), ("x" * 300, "File name too long")],
)
def test_a_name_that_no_file_can_have_is_refused(name: str, found: str):
    with pytest.raises(ResourceError, match=f"(?s)^cannot write .*{found}"):
        command(Talk(8), f"/save {name}")


def test_a_data_set_of_conversations_is_not_replaced_by_one(tmp_path: Path):
    path = tmp_path / "train.jsonl"
    path.write_text(line := '{"messages": [{"role": "user", "content": "a"}]}\n')
    with pytest.raises(RecipeError, match="a file of 49 bytes that is not a conversation\n  try: another name"):
        command(Talk(8), f"/save {path}")
    assert path.read_text() == line


def test_nothing_that_the_command_reads_is_replaced(tmp_path: Path):
    talk = Talk(8, inputs=[tmp_path / "engine.llmc", tmp_path / "checkpoint", "org/name"])
    (tmp_path / "checkpoint").mkdir()
    for name in ("engine.llmc", "checkpoint/talk.json"):
        (tmp_path / name).touch()
        with pytest.raises(RecipeError, match=f"{name} is an input of this command\n  try: another name"):
            command(talk, f"/save {tmp_path / name}")
    with pytest.raises(RecipeError, match="is an input, and would have a file that is none"):
        command(talk, f"/save {tmp_path / 'checkpoint' / 'new.json'}")
    command(talk, f"/save {tmp_path / 'new'}")


def test_a_talk_that_cannot_be_written_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    talk, path = Talk(8, [{"role": "user", "content": "a"}]), tmp_path / "talk.json"
    command(talk, f"/save {path}")
    before, link = path.read_text(), tmp_path / "link"
    link.symlink_to(path)
    talk.messages = []

    def full(_file: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(ResourceError, match=r"^cannot write .*talk.json\n  found: No space left on device"):
            command(talk, f"/save {path}")
    assert path.read_text() == before and len(list(tmp_path.iterdir())) == 2
    command(talk, f"/save {link}")
    assert path.read_text() != before and link.is_symlink()


def test_a_system_message_is_set_and_removed(capsys: pytest.CaptureFixture[str]):
    talk = Talk(8)
    for text in ("be brief", "-", ""):
        command(talk, f"/system {text}")
    assert talk.messages == []
    shown = "llmc: system message: "
    assert capsys.readouterr().err == f"{shown}be brief\n{shown}none\n{shown}none\n"
