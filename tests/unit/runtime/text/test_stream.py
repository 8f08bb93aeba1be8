"""Streamed text: every piece is final, and all pieces are the text of all tokens up to a stop string."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.samples.tokenizers import pico, sentencepiece

from llmc.runtime.errors import RecipeError
from llmc.runtime.text.stream import TextStream
from llmc.runtime.text.tokenizer import Tokenizer

BYTE_LEVEL = Tokenizer.from_bytes(*pico())
SENTENCEPIECE = Tokenizer.from_bytes(*sentencepiece())
METASPACE = Tokenizer.from_bytes(*sentencepiece(metaspace=True))
TOKENIZERS = pytest.mark.parametrize(
    "tokenizer", (BYTE_LEVEL, SENTENCEPIECE, METASPACE), ids=("bytes", "sentencepiece", "metaspace")
)


def cut(text: str, stops: list[str]) -> str:
    """The oracle: character by character, until some stop string is complete."""
    for end in range(len(text) + 1):
        if starts := [end - len(stop) for stop in stops if text[:end].endswith(stop)]:
            return text[: min(starts)]
    return text


def run(tokenizer: Tokenizer, ids: list[int], stops: list[str]) -> tuple[list[str], TextStream]:
    stream = TextStream(tokenizer, stops)
    pieces = [stream.push(token) for token in ids]
    return [*pieces, stream.finish()], stream


@TOKENIZERS
@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_the_pieces_are_the_text_up_to_the_first_stop(tokenizer: Tokenizer, data: st.DataObject):
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=24))
    text = tokenizer.decode(ids)
    parts = st.builds(lambda a, b: text[min(a, b) : max(a, b)], st.integers(0, 60), st.integers(0, 60))
    stops = data.draw(st.lists((parts | st.text("abe \n", max_size=3)).filter(bool), max_size=4))
    pieces, stream = run(tokenizer, ids, stops)
    assert "".join(pieces) == stream.text == cut(text, stops)
    assert stream.stopped == any(stop in text for stop in stops)


@TOKENIZERS
@given(text=st.text(max_size=30))
@settings(max_examples=100, deadline=None)
def test_text_that_was_encoded_streams_back(tokenizer: Tokenizer, text: str):
    ids = tokenizer.encode(text)
    pieces, _ = run(tokenizer, ids, [])
    assert "".join(pieces) == tokenizer.decode(ids)
    assert not any("\ufffd" in piece for piece in pieces) or "\ufffd" in tokenizer.decode(ids)


@pytest.mark.parametrize("tokenizer", (BYTE_LEVEL, SENTENCEPIECE), ids=("bytes", "sentencepiece"))
def test_a_character_appears_with_its_last_byte(tokenizer: Tokenizer):
    ids = tokenizer.encode("日", bos=False)
    pieces, _ = run(tokenizer, ids, [])
    assert len(ids) >= 3
    assert pieces[-3:] == ["", "日", ""]


@pytest.mark.parametrize("tokenizer", (BYTE_LEVEL, SENTENCEPIECE), ids=("bytes", "sentencepiece"))
def test_invalid_bytes_come_out_as_replacement_characters(tokenizer: Tokenizer):
    ids = tokenizer.encode("日", bos=False)[:-1]
    pieces, _ = run(tokenizer, ids, [])
    assert "\ufffd" not in "".join(pieces[:-1])
    assert pieces[-1].startswith("\ufffd")
    stream = TextStream(tokenizer)
    for token in [*ids, *tokenizer.encode("a", bos=False)]:
        stream.push(token)
    assert "\ufffd" in stream.text, "the next character makes it certain"


def test_the_space_before_the_first_word_is_dropped_and_the_others_stay():
    ids = SENTENCEPIECE.encode("the the  the", bos=True)
    pieces, _ = run(SENTENCEPIECE, ids, [])
    assert [piece for piece in pieces if piece] == ["the", " the", " ", " the"]


def test_a_special_token_is_no_left_neighbour():
    ids = METASPACE.encode("the")
    assert "".join(run(METASPACE, [*ids, 1, *ids], [])[0]) == "the the" == METASPACE.decode([*ids, 1, *ids])


def test_possible_beginnings_of_a_stop_string_are_held_back():
    ids = BYTE_LEVEL.encode("xSTOP", bos=False)
    stream = TextStream(BYTE_LEVEL, ["STOP!"])
    assert "".join(map(stream.push, ids)) == "x"
    assert not stream.stopped
    assert stream.finish() == "STOP"
    stream = TextStream(BYTE_LEVEL, ["STOP"])
    assert "".join(map(stream.push, [*ids, *ids])) == "x"
    assert (stream.stopped, stream.text, stream.finish()) == (True, "x", "")


@pytest.mark.parametrize("stops", ([""], ["a", ""], [3]))
def test_a_stop_that_is_no_text_is_refused(stops: list[str]):
    with pytest.raises(
        RecipeError, match=rf"expected stop\[{len(stops) - 1}\] as a string that is not empty\n  found: (''|3)"
    ):
        TextStream(BYTE_LEVEL, stops)


def test_each_token_is_decoded_a_constant_number_of_times(monkeypatch: pytest.MonkeyPatch):
    seen = []
    decode = METASPACE._pieces.decode
    monkeypatch.setattr(METASPACE._pieces, "decode", lambda ids: seen.extend(ids) or decode(ids))
    run(METASPACE, METASPACE.encode("the " * 200), [])
    assert len(seen) <= 6 * len(METASPACE.encode("the " * 200))
