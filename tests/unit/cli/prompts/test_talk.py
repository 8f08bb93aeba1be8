"""Commands of a conversation that need no engine; `tests/e2e/cli/test_chat.py` has the others."""

from __future__ import annotations

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
