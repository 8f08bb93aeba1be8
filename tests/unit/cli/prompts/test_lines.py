"""Lines of a prompts file; `tests/scripts/cli/batch.txt` has the refusals and what is written."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmc.cli.prompts.batch import read
from llmc.cli.prompts.lines import Chat, PromptLine, prompt_line
from llmc.cli.prompts.openai import BatchLine
from llmc.runtime.errors import RecipeError

USER = {"role": "user", "content": "a"}


def test_prompt_files_are_read(tmp_path: Path):
    path = tmp_path / "p.jsonl"
    path.write_text(
        '{"prompt": "a", "max_tokens": 3}\n\n{"tokens": [1, 2], "logit_bias": {"5": 1.5}, "id": 7}\n'
        '{"messages": [{"role": "user", "content": "a"}], "id": "x"}\n'
        '{"custom_id": "y", "body": {"prompt": "b"}}\n'
    )
    assert read(str(path), engine="e.llmc", chat=Chat()) == [
        PromptLine(0, prompt="a", options={"max_tokens": 3}),
        PromptLine(1, tokens=(1, 2), options={"logit_bias": {5: 1.5}}, id=7),
        PromptLine(2, messages=(USER,), id="x"),
        BatchLine(3, "y", "/v1/completions", "e.llmc", prompt="b"),
    ]


def test_a_system_message_goes_before_conversations_that_have_none():
    own = ({"role": "system", "content": "b"}, USER)
    assert Chat(True, "s").messages((USER,)) == ({"role": "system", "content": "s"}, USER)
    assert Chat(True, "s").messages(own) == own
    assert Chat(True).messages((USER,)) == (USER,)


def test_lines_say_whether_a_chat_changes_them():
    text, ids, talk = PromptLine(0, prompt=""), PromptLine(0, tokens=(1,)), PromptLine(0, messages=(USER,))
    assert [line.heeds(Chat(True)) for line in (text, ids, talk)] == [True, False, False]
    assert [line.heeds(Chat(True, "s")) for line in (text, ids, talk)] == [True, False, True]
    plain = BatchLine(0, "a", "/v1/completions", "m", prompt="a")
    assert not plain.heeds(Chat(True, "s"))
    assert BatchLine(0, "a", "/v1/chat/completions", "m", messages=(USER,)).heeds(Chat(True, "s"))


@pytest.mark.parametrize("value", ["no", 1, None])
def test_special_is_true_or_false(value: object):
    with pytest.raises(RecipeError, match=r'^expected "special" as true or false at p:1'):
        prompt_line(0, {"prompt": "a", "special": value}, "p:1")
    assert prompt_line(0, {"prompt": "a", "special": False}, "p:1").options == {"special": False}
