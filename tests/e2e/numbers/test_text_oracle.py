"""Text and ids of every kind of tokenizer are those of the tokenizers library 0.23, however a text is cut."""

from __future__ import annotations

import pytest
from support.samples import vocabularies
from support.samples.strings import STRINGS
from support.samples.tokenizers import sentencepiece
from support.samples.vocabularies import KINDS
from tokenizers import AddedToken, decoders, normalizers
from tokenizers import Tokenizer as RawTokenizer

from llmc.runtime.text.stream import TextStream
from llmc.runtime.text.tokenizer import Tokenizer

BUILT = [(Tokenizer.from_bytes(raw.to_str().encode(), {}), raw) for raw in (kind() for kind in KINDS)]
PAIRS = pytest.mark.parametrize(("tokenizer", "raw"), BUILT, ids=[kind.__name__ for kind in KINDS])
ADDED = ("<tool>", "x    y", "日本語", "a<|im_end|>b", " <|user|> hi", "<s>twice", "</s>")


@PAIRS
def test_ids_are_the_librarys(tokenizer: Tokenizer, raw: RawTokenizer):
    assert len(STRINGS) >= 60
    for text in STRINGS:
        for bos in (True, False):
            assert tokenizer.encode(text, bos=bos) == raw.encode(text, add_special_tokens=bos).ids, text
    for text in ADDED:
        assert tokenizer.encode(text, special=True, bos=False) == raw.encode(text, add_special_tokens=False).ids, text


@PAIRS
def test_a_text_is_the_librarys(tokenizer: Tokenizer, raw: RawTokenizer):
    for text in (*STRINGS, *ADDED):
        ids = raw.encode(text).ids
        for skip in (True, False):
            assert tokenizer.decode(ids, skip_special=skip) == raw.decode(ids, skip_special_tokens=skip), text


@PAIRS
def test_a_prompt_and_what_follows_are_the_text_of_the_whole(tokenizer: Tokenizer, raw: RawTokenizer):
    """The rule of a completion: no character is lost or added where the model took over, whatever the cut."""
    for text in (*STRINGS, *ADDED):
        ids = raw.encode(text).ids
        whole = raw.decode(ids)
        if "\ufffd" in whole:  # in the text itself, not of a cut
            continue
        for cut in range(len(ids) + 1):
            before, after = ids[:cut], ids[cut:]
            # a character that the prompt only begins belongs to what follows
            prompt = tokenizer.decode(before).rstrip("\ufffd")
            assert prompt + tokenizer.decode(after, after=before) == whole, (text, cut)
            stream = TextStream(tokenizer, after=before)
            pieces = [*map(stream.push, after), stream.finish()]
            assert prompt + "".join(pieces) == whole, (text, cut)


@PAIRS
def test_a_token_has_the_text_that_it_adds(tokenizer: Tokenizer, raw: RawTokenizer):
    if isinstance(raw.decoder, decoders.BPEDecoder):
        pytest.skip("a token's space comes with the next one")
    for text in STRINGS:
        ids = raw.encode(text, add_special_tokens=False).ids
        whole = b"".join(map(tokenizer.token_bytes, ids)).decode("utf-8", "replace")
        assert whole.strip() == raw.decode(ids, skip_special_tokens=False).strip(), text


@PAIRS
def test_stops_match_where_the_model_took_over(tokenizer: Tokenizer, raw: RawTokenizer):
    """vLLM and text-generation-inference keep the text of the prompt for this; issue: a stop of " world" was missed."""
    ids, more = raw.encode("Hello").ids, raw.encode("Hello world").ids
    shared = next((at for at, (a, b) in enumerate(zip(ids, more, strict=False)) if a != b), len(ids))
    stream = TextStream(tokenizer, " world", after=more[:shared])
    text = "".join(map(stream.push, more[shared:])) + stream.finish()
    assert stream.stopped, text
    assert not text.strip()


EXPLAINED = {
    # kind, added token, special, normalized: the text inside "a … b", and the library's
    ("byte_level", "čaj", False, True): "čaj",
    ("byte_level", "<|été|>", True, False): "<|été|>",
    ("llama2", "<\uff5cbegin▁of▁sentence\uff5c>", True, False): "<\uff5cbegin▁of▁sentence\uff5c>",
    ("llama2", "x▁y", False, False): "x▁y",
    ("llama2", "<0x0041>", False, False): "<0x0041>",
    ("gemma", "<\uff5cend▁of▁turn\uff5c>", True, False): "<\uff5cend▁of▁turn\uff5c>",
    ("metaspace_first", "▁begin▁", True, False): "▁begin▁",
    ("unigram", "a▁b", False, False): "a▁b",
    ("wordpiece", "##tool", False, False): "##tool",
    ("word_ends", "x</w>y", True, False): "x</w>y",
}
"""Added tokens are literal text: they are matched before any letter is replaced, so decoding gives them back."""


@pytest.mark.parametrize("case", EXPLAINED, ids=lambda case: f"{case[0]}-{case[1]}")
def test_added_tokens_are_literal_text(case: tuple[str, str, bool, bool]):
    name, content, special, normalized = case
    raw = next(kind for kind in KINDS if kind.__name__ == name)()
    added = AddedToken(content, normalized=normalized, special=special)
    (raw.add_special_tokens if special else raw.add_tokens)([added])
    tokenizer, token = Tokenizer.from_bytes(raw.to_str().encode(), {}), raw.token_to_id(content)
    for text in (f"a {content} b", content, f"{content}b"):
        ids = raw.encode(text, add_special_tokens=False).ids
        assert token in ids
        assert EXPLAINED[case] in tokenizer.decode(ids, skip_special=False)
    assert tokenizer.text_of(token).strip() == EXPLAINED[case]


def test_a_token_of_spaces_that_the_model_knows_too_is_spaces():
    """Gemma lists its runs of "▁" as added tokens, and the model's merges give them for spaces."""
    raw = RawTokenizer.from_buffer(sentencepiece()[0])
    raw.normalizer, raw.decoder = normalizers.Replace(" ", "▁"), vocabularies.gemma().decoder
    assert raw.token_to_id("▁▁") is not None
    raw.add_tokens([AddedToken("▁▁", normalized=False)])
    tokenizer = Tokenizer.from_bytes(raw.to_str().encode(), {})
    ids = tokenizer.encode("a  b", bos=False)
    assert raw.token_to_id("▁▁") in ids
    assert tokenizer.decode(ids) == raw.decode(ids) == "a  b"
