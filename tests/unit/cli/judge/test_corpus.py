"""What eval scores: texts, token ids and JSON lines; `tests/scripts/cli/judge.txt` has the refusals."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from support.commands import Outcome
from support.engines import PicoEngine, small_checkpoint

import llmc
from llmc.cli.judge.corpus import Passage, cut, prefix, read, refuse_unknown_tokens, whole_texts
from llmc.cli.judge.subjects import subject
from llmc.runtime.engine import Engine
from llmc.runtime.errors import RecipeError
from llmc.runtime.evaluate import TextSize, Windows

TEXT = 'def parse(text):\n    """Return the numbers of a text."""\n    return [int(one) for one in text.split()]\n'
LM_EVAL = {
    10: (9624.821136523467, 3.802819640726041, 1.9270695167753786),
    512: (334.4787139734286, 2.3314519986302553, 1.221228726889484),
}
"""By the size of the windows: word_perplexity, byte_perplexity, bits_per_byte."""


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
    def wanted(first: int | None, limit: int | None, how: Windows = "separate") -> list[list[int]]:
        return [one.wanted for one in cut([[1, 2, 3], [4, 5, 6]], 3, first, limit, how)]

    assert wanted(0, None) == [[1, 2], [3], [4, 5], [6]]
    assert wanted(0, 4) == [[1, 2], [3], [4]]
    assert wanted(None, 2) == [[2, 3]]
    assert wanted(None, 3) == [[2, 3], [5]]
    assert wanted(0, 5, "rolling") == [[1, 2, 3], [4, 5]]


def test_words_and_bytes_are_those_of_texts_alone():
    text, ids = Passage("t", text="a bé"), Passage("i", tokens=(1,))
    assert whole_texts([text, text]) == TextSize(4, 10)
    assert whole_texts([text, ids]) is None


def test_rolling_figures_are_those_of_lm_eval(pico_engine: PicoEngine, call: Callable[..., Outcome], tmp_path: Path):
    """lm-evaluation-harness 0.4.13, `HFLM(checkpoint, dtype="float32", max_length=N, add_bos_token=False)` and its
    `loglikelihood_rolling`, transformers 5.23, torch 2.13, run once; without add_bos_token it scores a BOS more."""
    (tmp_path / "t").write_text(TEXT)
    for size, expected in LM_EVAL.items():
        row = call(
            "eval", pico_engine("none"), "--text", tmp_path / "t", "--windows", "rolling", "--window", size, "--json"
        ).json
        found = [row[name] for name in ("word_perplexity", "byte_perplexity", "bits_per_byte")]
        assert found == pytest.approx(expected, rel=1e-6)


def test_rolling_windows_read_bos_else_eos_before_a_text(pico_engine: PicoEngine, tmp_path: Path):
    """lm-evaluation-harness 0.4.13, `HFLM.prefix_token_id`: the tokenizer's bos_token, else its eos_token."""
    one = subject(str(pico_engine("none")), None)
    bare = llmc.build(small_checkpoint(tmp_path / "c", tokenizer=False), tmp_path / "e.llmc", quantize="none")
    with llmc.load(one.path) as engine, llmc.load(bare) as without:
        begin, end = (engine.tokenizer.token_to_id(engine.tokenizer.named[name]) for name in ("bos_token", "eos_token"))

        def of(asked: Engine, bos: int | None, *eos: int) -> int:
            return prefix(replace(one.manifest.model, bos=bos, eos_ids=eos), asked)

        assert (of(engine, 3, 1), of(engine, None, 5), of(without, None, 5, 1)) == (3, begin, 5)
        del engine.tokenizer.named["bos_token"]
        assert of(engine, None, 5) == end != begin
        with pytest.raises(RecipeError, match="cannot cut rolling windows\n  found: neither BOS nor EOS"):
            of(without, None)
