"""What eval scores: texts, token ids and JSON lines; `tests/scripts/cli/judge.txt` has the refusals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.engines import PicoEngine

import llmc
from llmc.cli.judge.corpus import Passage, cut, read, refuse_unknown_tokens
from llmc.runtime.errors import RecipeError


def test_files_are_read_in_the_order_of_their_kinds(tmp_path: Path):
    (tmp_path / "t").write_text("text\n")
    (tmp_path / "i").write_text("[[1, 2], []]")
    (tmp_path / "l").write_text('{"tokens": [3]}\n\n{"messages": [{"role": "user", "content": "a"}], "id": 1}\n')
    found = read([str(tmp_path / "t")], [str(tmp_path / "i")], [str(tmp_path / "l")])
    assert found == [
        Passage(f"{tmp_path}/t", text="text\n"),
        Passage(f"{tmp_path}/i[0]", tokens=(1, 2)),
        Passage(f"{tmp_path}/i[1]", tokens=()),
        Passage(f"{tmp_path}/l:1", tokens=(3,)),
        Passage(f"{tmp_path}/l:3", messages=({"role": "user", "content": "a"},)),
    ]


@pytest.mark.parametrize("value", [[[True]], [[1.0]], [["a"]], [{"a": 1}], {"tokens": [[1]]}, 3])
def test_what_is_no_list_of_ids_is_refused(tmp_path: Path, value: object):
    (tmp_path / "i").write_text(json.dumps(value))
    with pytest.raises(RecipeError, match=r"expected (a list of lists of token ids|token ids as a list of whole)"):
        read([], [str(tmp_path / "i")], [])


@pytest.mark.parametrize("value", ["a", [], [5], [{"content": "a"}], [{"role": 5}]])
def test_what_is_no_conversation_is_refused_with_its_line(tmp_path: Path, value: object):
    (tmp_path / "l").write_text("\n" + json.dumps({"messages": value}))
    with pytest.raises(RecipeError, match=r'^expected ("messages" as a list|messages as \{"role").* at .*/l:2'):
        read([], [], [str(tmp_path / "l")])


def test_messages_that_the_template_refuses_name_their_line(pico_engine: PicoEngine, tmp_path: Path):
    (template := tmp_path / "t.jinja").write_text(
        "{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no tools') }}{% endif %}"
        "{{ m.content }}{% endfor %}"
    )
    with llmc.load(pico_engine("int8"), chat_template=template) as engine:
        said = r"^cannot render the chat template at l:3\n  found: no tools"
        with pytest.raises(RecipeError, match=said):
            Passage("l:3", messages=({"role": "tool", "content": "a"},)).encode(engine, 0)


def test_ids_must_be_in_the_vocabulary():
    refuse_unknown_tokens([Passage("i[0]", tokens=(0, 9)), Passage("t", text="a"), Passage("i[1]", tokens=())], 10)
    with pytest.raises(RecipeError, match=r"expected token ids below 9 at i\[0\]\n  found: 9"):
        refuse_unknown_tokens([Passage("i[0]", tokens=(0, 9))], 9)


def test_a_bos_of_its_own_is_not_scored(pico_engine: PicoEngine):
    with llmc.load(pico_engine("int8")) as engine:
        ids = engine.tokenizer.encode("def f(", bos=False)
        assert Passage("t", text="def f(").encode(engine, 0) == ids
        assert Passage("i", tokens=(0, *ids)).encode(engine, 0) == ids
        assert Passage("i", tokens=(0, *ids)).encode(engine, None) == [0, *ids]


def test_a_limit_counts_scored_tokens_over_all_texts():
    assert list(cut([[1, 2, 3], [4, 5, 6]], 3, 0, None)) == [[0, 1, 2], [0, 3], [0, 4, 5], [0, 6]]
    assert list(cut([[1, 2, 3], [4, 5, 6]], 3, 0, 4)) == [[0, 1, 2], [0, 3], [0, 4]]
    assert list(cut([[1, 2, 3], [4, 5, 6]], 3, None, 2)) == [[1, 2, 3]]
