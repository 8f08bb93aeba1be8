"""Token ids: a user's text never becomes a special token, and every id sequence has one text."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.samples.tokenizers import byte_level_chat, pico, sentencepiece
from tokenizers import Tokenizer as RawTokenizer
from tokenizers import decoders

from llmc.runtime.errors import EngineError, RecipeError
from llmc.runtime.text.tokenizer import Tokenizer, library_errors

Sample = tuple[bytes, dict[str, str]]


def metaspace() -> Sample:
    return sentencepiece(metaspace=True)


SAMPLES: tuple[Callable[[], Sample], ...] = (pico, byte_level_chat, sentencepiece, metaspace)
BUILT = [(Tokenizer.from_bytes(*sample()), RawTokenizer.from_buffer(sample()[0])) for sample in SAMPLES]
PAIRS = pytest.mark.parametrize(("tokenizer", "raw"), BUILT, ids=[sample.__name__ for sample in SAMPLES])


@PAIRS
@given(text=st.text(max_size=40))
@settings(max_examples=60, deadline=None)
def test_text_without_special_tokens_has_the_librarys_ids(tokenizer: Tokenizer, raw: RawTokenizer, text: str):
    for bos in (True, False):
        assert tokenizer.encode(text, bos=bos) == raw.encode(text, add_special_tokens=bos).ids
        assert tokenizer.encode(text, bos=bos, special=True) == raw.encode(text, add_special_tokens=bos).ids


@PAIRS
def test_bos_comes_from_the_post_processor(tokenizer: Tokenizer, raw: RawTokenizer):
    assert tokenizer.encode("")[0] == tokenizer.token_to_id(tokenizer.named["bos_token"])
    assert tokenizer.encode("", bos=False) == []
    assert tokenizer.around == ((raw.token_to_id(tokenizer.named["bos_token"]),), ())


@PAIRS
def test_a_special_token_in_the_text_becomes_plain_pieces(tokenizer: Tokenizer, raw: RawTokenizer):
    name = tokenizer.named["eos_token"]
    end = tokenizer.special_tokens[name]
    text = f"the end{name} or {name}{name}"
    blind = RawTokenizer.from_str(raw.to_str())
    blind.encode_special_tokens = True
    assert tokenizer.encode(text) == blind.encode(text).ids
    assert end not in tokenizer.encode(text)
    assert tokenizer.encode(text, special=True).count(end) == 3
    assert tokenizer.decode(tokenizer.encode(text, bos=False)) == text


def test_normalized_special_tokens_are_found_in_every_spelling():
    document = json.loads(pico()[0])
    document["normalizer"] = {"type": "Lowercase"}
    document["added_tokens"][1] |= {"normalized": True}
    data = json.dumps(document).encode()
    assert 1 in RawTokenizer.from_buffer(data).encode("a <|END_OF_TEXT|>").ids, "the library sees it: a fair test"
    assert 1 not in Tokenizer.from_bytes(data, {}).encode("a <|END_OF_TEXT|>")


def test_a_special_token_that_ordinary_pieces_spell_is_refused():
    document = json.loads(sentencepiece()[0])
    document["model"]["merges"] += [["<", "s"], ["<s", ">"]]
    document["model"]["vocab"]["<s"] = len(document["model"]["vocab"])
    document["normalizer"] = None
    tokenizer = Tokenizer.from_bytes(json.dumps(document).encode(), {})
    with pytest.raises(RecipeError, match=r"'<s>', which this tokenizer cannot split into plain pieces"):
        tokenizer.encode("a<s>", bos=False)


@PAIRS
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_marked_text_is_split_where_the_library_splits_it(tokenizer: Tokenizer, raw: RawTokenizer, data: st.DataObject):
    pieces = st.sampled_from([*tokenizer.special_tokens, "a b", " the ", "\n", "<", "|>"])
    text = "".join(data.draw(st.lists(pieces, max_size=8)))
    ids = raw.encode(text, add_special_tokens=False).ids
    # A marked blank touches no special token, so that nothing may change, though the twins are in use.
    assert tokenizer.encode_marked(text + "!", [(len(text), len(text) + 1)]) == (
        raw.encode(text + "!", add_special_tokens=False).ids
    )
    assert tokenizer.encode_marked(text, []) == ids


@PAIRS
def test_marked_special_tokens_are_plain_and_the_others_are_not(tokenizer: Tokenizer, raw: RawTokenizer):
    name = tokenizer.named["eos_token"]
    number = tokenizer.special_tokens[name]
    text = f"a{name}b{name}c"
    ids = tokenizer.encode_marked(text, [(1, 1 + len(name))])
    assert ids.count(number) == 1
    assert tokenizer.decode(ids, skip_special=False).replace(" ", "") == text
    cut = ids.index(number)
    assert ids[:cut] == tokenizer.encode(f"a{name}b", bos=False)
    assert ids[cut + 1 :] == raw.encode(f"{name}c", add_special_tokens=False).ids[1:]


def test_a_marked_overlap_leaves_the_shorter_special_token():
    raw = RawTokenizer.from_buffer(pico()[0])
    raw.add_special_tokens(["<a>", "<a>b", "><"])
    tokenizer = Tokenizer.from_bytes(raw.to_str().encode(), {})
    assert tokenizer.encode_marked("<a>b", [(3, 4)])[0] == tokenizer.token_to_id("<a>")
    assert tokenizer.encode_marked("<a><a>", [])[0] == tokenizer.token_to_id("<a>")
    assert tokenizer.token_to_id("<a>") in tokenizer.encode_marked("><a>", [(0, 1)])


@PAIRS
@given(data=st.data())
@settings(max_examples=80, deadline=None)
def test_decode_is_the_librarys(tokenizer: Tokenizer, raw: RawTokenizer, data: st.DataObject):
    ids = data.draw(st.lists(st.integers(0, raw.get_vocab_size() + 5), max_size=20))
    for skip in (True, False):
        expected = raw.decode(ids, skip_special_tokens=skip)
        text = tokenizer.decode(ids, skip_special=skip)
        # In a byte-fallback run with an invalid byte the library gives up the whole run.
        assert text == expected or ("\ufffd" in text and isinstance(raw.decoder, decoders.Sequence))


@PAIRS
@given(text=st.text(max_size=30))
@settings(max_examples=60, deadline=None)
def test_valid_text_decodes_as_the_library_does(tokenizer: Tokenizer, raw: RawTokenizer, text: str):
    ids = raw.encode(text).ids
    assert tokenizer.decode(ids) == raw.decode(ids)


def test_only_the_first_leading_blank_is_stripped():
    data, config = metaspace()
    blank = RawTokenizer.from_buffer(data).get_vocab()["▁"]
    tokenizer = Tokenizer.from_bytes(data, config)
    nothing = 1_000_000
    assert [tokenizer.decode([blank] * count) for count in (1, 2, 3)] == ["", " ", "  "]
    assert tokenizer.decode([nothing, blank, nothing, blank]) == " "


def test_a_run_of_bytes_keeps_its_valid_characters():
    tokenizer = Tokenizer.from_bytes(*sentencepiece())
    ids = [3 + byte for byte in "é日".encode()] + [3 + 0xE6, 3 + 0x97]
    assert tokenizer.decode(ids) == "é日\ufffd\ufffd"


@pytest.mark.parametrize("text", ["naïve", "ĠX", "<|été|>", "čaj", "đem", "ñandú", "日本"])
def test_an_added_token_is_literal_text(text: str):
    """tokenizers 0.23.3 reads its letters as bytes: findings/tokenizers-decodes-added-tokens-as-bytes.sh."""
    raw = RawTokenizer.from_buffer(pico()[0])
    raw.add_tokens([text])
    tokenizer = Tokenizer.from_bytes(raw.to_str().encode(), {})
    ids = tokenizer.encode(f"é {text}b", bos=False)
    assert tokenizer.token_to_id(text) in ids
    assert tokenizer.decode(ids) == f"é {text}b"


def test_token_bytes():
    tokenizer = Tokenizer.from_bytes(*pico())
    text = "def é日🙂"
    assert b"".join(map(tokenizer.token_bytes, tokenizer.encode(text, bos=False))) == text.encode()
    assert tokenizer.token_bytes(1) == b"<|end_of_text|>"
    assert tokenizer.token_bytes(10**12) == tokenizer.token_bytes(-1) == b""
    pieces = Tokenizer.from_bytes(*sentencepiece())
    assert pieces.token_bytes(3 + 0xE9) == b"\xe9"
    assert [pieces.token_bytes(token) for token in pieces.encode(" the", bos=False)] == [b" ", b" the"]


def test_a_decoder_that_cannot_decode_nothing():
    """tokenizers 0.23.3, decoders/strip.rs: Strip with `stop` panics on an empty text."""
    document = json.loads(sentencepiece()[0])
    document["decoder"] = {"type": "Strip", "content": "x", "start": 0, "stop": 1}
    tokenizer, raw = Tokenizer.from_bytes(data := json.dumps(document).encode(), {}), RawTokenizer.from_buffer(data)
    ids = tokenizer.encode("the", bos=False)
    assert tokenizer.decode(ids) == raw.decode(ids) and tokenizer.decode([]) == ""


def test_truncation_and_padding_of_the_file_do_not_apply():
    document = json.loads(pico()[0])
    document["truncation"] = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
    document["padding"] = {
        **{"strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": None},
        **{"pad_id": 5, "pad_type_id": 0, "pad_token": "<|pad|>"},
    }
    tokenizer = Tokenizer.from_bytes(json.dumps(document).encode(), {})
    assert tokenizer.encode("a b c d") == Tokenizer.from_bytes(*pico()).encode("a b c d")


@pytest.mark.parametrize("data", (b"", b"{", b"\xff\xfe", b"[]", b'{"model": {"type": "?"}}'))
def test_what_is_no_tokenizer_is_an_error(data: bytes):
    with pytest.raises(EngineError, match=r"cannot read tokenizer\.json"):
        Tokenizer.from_bytes(data, {})


def test_a_text_that_is_no_text_is_refused():
    tokenizer = Tokenizer.from_bytes(*pico())
    with pytest.raises(RecipeError, match="a lone surrogate at character 1"):
        tokenizer.encode("a\ud800")
    with pytest.raises(RecipeError, match="cannot encode a text\n  found: int"):
        tokenizer.encode(3)  # pyright: ignore[reportArgumentType]


def test_panics_become_errors_and_interrupts_do_not():
    class Panic(BaseException):
        pass

    with pytest.raises(EngineError, match="cannot ask\n  found: Panic: oh"), library_errors("ask"):
        raise Panic("oh")
    for kind in (KeyboardInterrupt, SystemExit):
        with pytest.raises(kind), library_errors("ask"):
            raise kind
