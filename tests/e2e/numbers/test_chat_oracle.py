"""Chat templates give the text and the ids of transformers."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from support.samples.talking.talks import TALKS
from support.samples.talking.templates import ALL, LLAMA2, LLAVA, QWEN2_VL
from support.samples.tokenizers import byte_level_chat, sentencepiece
from tokenizers import Tokenizer as RawTokenizer

from llmc.runtime.errors import LlmcError
from llmc.runtime.text.chat import ChatTemplate
from llmc.runtime.text.tokenizer import Tokenizer

TOKENIZER = Tokenizer.from_bytes(*byte_level_chat())


def compiled(source: str, tokenizer: Tokenizer = TOKENIZER) -> ChatTemplate:
    return ChatTemplate(source, **tokenizer.named)


def theirs(source: str, data: bytes, config: dict[str, Any], talk: dict[str, Any], tokenize: bool) -> Any:
    """transformers' prompt; None if the template raises."""
    import jinja2
    from transformers import PreTrainedTokenizerFast

    oracle = PreTrainedTokenizerFast(tokenizer_object=RawTokenizer.from_buffer(data), chat_template=source, **config)
    talk = {"add_generation_prompt": True, **copy.deepcopy(talk)}
    try:
        return oracle.apply_chat_template(talk.pop("messages"), tokenize=tokenize, return_dict=False, **talk)
    except jinja2.TemplateError:
        return None


@pytest.mark.parametrize("talk", TALKS.values(), ids=TALKS)
@pytest.mark.parametrize("source", ALL.values(), ids=ALL)
def test_text_and_ids_are_those_of_transformers(source: str, talk: dict[str, Any]):
    data, config = byte_level_chat()
    expected = theirs(source, data, config, talk, tokenize=False)
    before = copy.deepcopy(talk)
    if expected is None:
        with pytest.raises(LlmcError):
            compiled(source).render(**talk)
        return
    assert compiled(source).render(**talk) == expected
    assert compiled(source).encode(TOKENIZER, **talk) == theirs(source, data, config, talk, tokenize=True)
    assert talk == before


def test_ids_with_a_sentencepiece_tokenizer_and_one_bos():
    data, config = sentencepiece()
    tokenizer = Tokenizer.from_bytes(data, config)
    talk = TALKS["system"]
    ids = compiled(LLAMA2, tokenizer).encode(tokenizer, **talk)
    assert ids == theirs(LLAMA2, data, {"bos_token": "<s>", "eos_token": "</s>"}, talk, tokenize=True)
    assert (ids[0], ids.count(1)) == (1, 1)


@pytest.mark.parametrize("name", ["user", "system", "turns", "answered"])
@pytest.mark.parametrize("source", [LLAVA, QWEN2_VL], ids=["llava", "qwen2-vl"])
def test_talks_of_text_with_templates_of_images(source: str, name: str):
    """What transformers writes for texts as parts of messages is also what a plain text gives here."""
    data, config = byte_level_chat()
    talk = TALKS[name]
    parts = [{**one, "content": [{"type": "text", "text": one["content"]}]} for one in talk["messages"]]
    expected = theirs(source, data, config, talk | {"messages": parts}, tokenize=False)
    assert expected and compiled(source).render(**talk | {"messages": parts}) == expected
    assert compiled(source).render(**talk) == expected
