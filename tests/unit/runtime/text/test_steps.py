"""Steps that multiply a text are refused before the library reads them; those of published tokenizers are not.

Growth was measured with tokenizers 0.23: ten ByteLevel pre-tokenizers make 102,400 pieces of 100 letters é.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Mapping
from typing import Any

import pytest
from support.samples.tokenizers import byte_level_chat, pico, sentencepiece

from llmc.runtime.errors import EngineError
from llmc.runtime.guard import panics
from llmc.runtime.text.steps import check_steps
from llmc.runtime.text.tokenizer import Tokenizer

DATA, CONFIG = pico()
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}


def charsmap(*texts: bytes) -> dict[str, Any]:
    data = (4).to_bytes(4, "little") + bytes(4) + b"".join(text + b"\0" for text in texts)
    return {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(data).decode()}


def replace(old: str, new: str, kind: str = "String") -> dict[str, Any]:
    return {"type": "Replace", "pattern": {kind: old}, "content": new}


def sequence(name: str, *steps: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", name: list(steps)}


def template(*pieces: str, ids: int = 1) -> dict[str, Any]:
    single = [
        {"Sequence": {"id": "A", "type_id": 0}} if p == "A" else {"SpecialToken": {"id": p, "type_id": 0}}
        for p in pieces
    ]
    return {
        "type": "TemplateProcessing",
        "single": single,
        "pair": [],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [0] * ids, "tokens": ["<s>"] * ids}},
    }


def with_parts(**parts: Any) -> bytes:
    return json.dumps({**json.loads(DATA), **parts}).encode()


SPLITS = [{"type": "Split", "pattern": {"Regex": r"\p{N}{1,3}"}, "behavior": "Isolated", "invert": False}] * 6
PUBLISHED: dict[str, dict[str, Any]] = {
    "Llama 3": {"pre_tokenizer": sequence("pretokenizers", SPLITS[0], BYTES), "decoder": BYTES},
    "DeepSeek": {"normalizer": sequence("normalizers"), "pre_tokenizer": sequence("pretokenizers", *SPLITS, BYTES)},
    "GPT-2": {"pre_tokenizer": BYTES, "decoder": BYTES, "post_processor": BYTES},
    "Qwen": {
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": sequence("pretokenizers", SPLITS[0], BYTES),
        "decoder": BYTES,
        "post_processor": BYTES,
    },
    "Llama 2": {
        "normalizer": sequence("normalizers", {"type": "Prepend", "prepend": "▁"}, replace(" ", "▁")),
        "decoder": sequence(
            "decoders", replace("▁", " "), {"type": "ByteFallback"}, {"type": "Fuse"}, {"type": "Strip", "content": " "}
        ),
        "post_processor": template("<s>", "A"),
    },
    "Gemma": {
        "normalizer": replace(" ", "▁"),
        "pre_tokenizer": {
            "type": "Split",
            "pattern": {"String": " "},
            "behavior": "MergedWithPrevious",
            "invert": False,
        },
        "decoder": sequence("decoders", replace("▁", " "), {"type": "ByteFallback"}, {"type": "Fuse"}),
    },
    "BERT": {
        "normalizer": {"type": "BertNormalizer", "lowercase": True},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "post_processor": template("<s>", "A", "<s>"),
    },
    "ALBERT": {
        "normalizer": sequence(
            "normalizers",
            *(
                replace("``", '"'),
                replace("''", '"'),
                {"type": "NFKD"},
                {"type": "StripAccents"},
                {"type": "Lowercase"},
            ),
            *(charsmap("ﷺ".encode() * 11), replace(" {2,}", " ", "Regex")),
        ),
        "pre_tokenizer": sequence("pretokenizers", {"type": "WhitespaceSplit"}, {"type": "Metaspace"}),
        "decoder": {"type": "Metaspace"},
        "post_processor": template("<s>", "A", "<s>"),
    },
    "T5": {"normalizer": charsmap("ﷺ".encode() * 11), "pre_tokenizer": {"type": "Metaspace"}},
    "Llama 3.1's post-processor": {"post_processor": sequence("processors", BYTES, template("<s>", "A"))},
}


@pytest.mark.parametrize("parts", PUBLISHED.values(), ids=PUBLISHED)
def test_published_shapes_pass_with_room(parts: dict[str, Any]):
    check_steps(with_parts(**parts))
    normalizer = parts.get("normalizer")
    if normalizer:  # and four times as much is not refused
        check_steps(with_parts(**{**parts, "normalizer": sequence("normalizers", replace("a", "aaaa"), normalizer)}))


def test_the_bundled_ones_and_the_samples_pass():
    for data in (DATA, byte_level_chat()[0], sentencepiece()[0], sentencepiece(metaspace=True)[0]):
        check_steps(data)


REFUSED: dict[str, dict[str, Any]] = {
    "ByteLevel in the pre-tokenizer": {"pre_tokenizer": sequence("pretokenizers", *[BYTES] * 16)},
    "in the normalizer": {"normalizer": sequence("normalizers", *[{"type": "ByteLevel"}] * 16)},
    "in both": {
        "normalizer": sequence("normalizers", *[{"type": "ByteLevel"}] * 8),
        "pre_tokenizer": sequence("pretokenizers", *[BYTES] * 8),
    },
    "in sequences of sequences": {
        "pre_tokenizer": sequence("pretokenizers", *[sequence("pretokenizers", *[BYTES] * 4)] * 4)
    },
    "doubled by Replace": {"normalizer": sequence("normalizers", *[replace("a", "aa")] * 16)},
    "one long content": {"normalizer": replace("a", "b" * 40_000)},
    "a pattern that matches nothing": {"normalizer": sequence("normalizers", *[replace("", "b", "Regex")] * 16)},
    "Prepend": {"normalizer": sequence("normalizers", *[{"type": "Prepend", "prepend": "a" * 40}] * 3)},
    "NFKD with others": {"normalizer": sequence("normalizers", {"type": "NFKD"}, replace("a", "a" * 4000))},
    "a characters map": {"normalizer": charsmap(b"a" * 40_000)},
    "the decoder": {"decoder": sequence("decoders", *[replace("a", "aa")] * 16)},
    "copies": {"post_processor": template(*"AAAAA")},
    "copies of copies": {"post_processor": sequence("processors", template(*"AAA"), template(*"AA"))},
    "many tokens": {"post_processor": template("<s>", "A", ids=5000)},
    "many steps": {"pre_tokenizer": sequence("pretokenizers", *[SPLITS[0]] * 65)},
    "no type": {"normalizer": {"normalizers": [{"type": "ByteLevel"}] * 16}},
}


@pytest.mark.parametrize("parts", REFUSED.values(), ids=REFUSED)
def test_what_multiplies_is_refused(parts: dict[str, Any]):
    with pytest.raises(EngineError, match=r"^(cannot use|expected .*) (of )?t\.json"):
        check_steps(with_parts(**parts), "t.json")
    with pytest.raises(EngineError, match=r"x\.llmc"):
        Tokenizer.from_bytes(with_parts(**parts), CONFIG, "tokenizer.json of x.llmc")


def test_other_spellings_of_a_key_are_the_same_key():
    evil = json.dumps(REFUSED["doubled by Replace"]["normalizer"]).encode()
    for key in (rb'"\u006eormalizer"', rb'"norm\u0061l\u0069zer" ', b'"normalizer"\n'):
        with pytest.raises(EngineError, match="multiplies a text"):
            check_steps(DATA.rstrip().removesuffix(b"}") + b"," + key + b":" + evil + b', "normalizer": null}')


def test_a_step_with_two_types_is_refused():
    with pytest.raises(EngineError, match=r"cannot read tokenizer.json\n  found: a key twice"):
        check_steps(b'{"normalizer": {"type": "NFC", "type": "ByteLevel"}}')


def test_a_token_named_like_a_part_is_no_part():
    check_steps(b'{"model": {"vocab": {"normalizer": 5, "x\\"decoder": 6}}}')


def test_a_panic_names_the_file_and_is_not_printed(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    runaway = {"type": "Split", "pattern": {"Regex": "(x+x+)+y"}, "behavior": "Isolated", "invert": False}
    tokenizer = Tokenizer.from_bytes(with_parts(pre_tokenizer=runaway), CONFIG, "tokenizer.json of x.llmc")
    monkeypatch.setattr(panics, "_owned", True)
    with pytest.raises(EngineError, match=r"cannot encode a text with tokenizer\.json of x\.llmc\n  found: PanicExc"):
        tokenizer.encode("x" * 100)
    assert capfd.readouterr().err == ""


def test_what_others_write_meanwhile_is_not_lost(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(panics, "_owned", True)
    with panics.panics_unprinted():
        os.write(2, b"one\n")
    with pytest.raises(ValueError, match="two"), panics.panics_unprinted():
        os.write(2, b"two\n")
        raise ValueError("two")
    assert capfd.readouterr().err == "one\ntwo\n"
