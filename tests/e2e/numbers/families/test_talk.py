"""Chats with models of many families: prompts, ids, BOS and end tokens are those of transformers 5.23.0."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from support.samples.talking.talkers import CONTENT_OF_PARTS, EVERY_TALK, TALKERS, WITH_PARTS

import llmc
from llmc.compiler.build import build
from llmc.compiler.checkpoint.checkpoint import open_checkpoint
from llmc.compiler.config.generation import parse_generation
from llmc.compiler.families.config import parse_config
from llmc.compiler.tokens.conversation import template_notes
from llmc.compiler.tokens.resolve import SpecialTokens, resolve
from llmc.compiler.tokens.said import sources_of
from llmc.recipes.recipe import Recipe
from llmc.runtime.errors import LlmcError
from llmc.runtime.text.chat import ChatTemplate, chat_template_source
from llmc.runtime.text.tokenizer import Tokenizer


def read(folder: Path, name: str) -> dict[str, Any]:
    return json.loads((folder / name).read_text()) if (folder / name).exists() else {}


def opened(folder: Path) -> tuple[Tokenizer, SpecialTokens, ChatTemplate]:
    """What a build makes of the files, without the process that checks them."""
    config = parse_config((folder / "config.json").read_text())
    generation = parse_generation(json.dumps(read(folder, "generation_config.json")))
    declared, data = read(folder, "tokenizer_config.json"), (folder / "tokenizer.json").read_bytes()
    special = resolve(sources_of(config, generation, declared, {}), Tokenizer.from_bytes(data, {}))
    tokenizer = Tokenizer.from_bytes(data, special.named)
    tokenizer.begin_with(special.bos)
    source = chat_template_source(declared, None)
    assert source is not None
    return tokenizer, special, ChatTemplate(source, **special.named)


def in_parts(talk: dict[str, Any]) -> dict[str, Any]:
    """Each text as a list of one part: LLaVA's template loses a text that is none, so llmc writes it so by itself."""
    messages = copy.deepcopy(talk["messages"])
    for message in messages:
        if isinstance(message.get("content"), str):
            message["content"] = [{"type": "text", "text": message["content"]}]
    return {**talk, "messages": messages}


def theirs(tokenizer: Any, talk: dict[str, Any]) -> str | Exception:
    """transformers' prompt, or why there is none."""
    talk = {"add_generation_prompt": True, **copy.deepcopy(talk)}
    try:
        return tokenizer.apply_chat_template(talk.pop("messages"), tokenize=False, **talk)
    except Exception as error:  # templates of text add a text to a list: any error of Python
        return error


@pytest.mark.parametrize("name", TALKERS)
def test_prompts_and_special_tokens_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    """Ids are those of tokenizer.json: classes of transformers cut words as the published file, not this one, does."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    folder = TALKERS[name].write(tmp_path / "c")
    oracle = AutoTokenizer.from_pretrained(folder)
    fast = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    tokenizer, special, template = opened(folder)
    assert special.named == oracle.special_tokens_map
    assert tokenizer.encode("hi") == oracle("hi").input_ids
    told = set()
    for label, talk in EVERY_TALK.items():
        expected = theirs(oracle, in_parts(talk) if name == "llava" else talk)
        if isinstance(expected, Exception):
            with pytest.raises(LlmcError):
                template.render(**talk)
            continue
        told.add(label)
        assert template.render(**talk) == expected, label
        if "<start_of_turn>" not in str(talk) and "</s>" not in str(talk):  # llmc takes no special token of a user
            ids = template.encode(tokenizer, **talk)
            assert ids == fast(expected, add_special_tokens=False).input_ids, label
            if special.bos is not None and expected.startswith(tokenizer.text_of(special.bos)):
                assert (ids[0], ids.count(special.bos)) == (special.bos, 1), label
    assert "user" in told
    assert (CONTENT_OF_PARTS in told) or name not in WITH_PARTS
    # the list of generation_config.json is heeded, and the template's mark of an end is among them
    generation, config = (read(folder, f"{kind}.json").get("eos_token_id") for kind in ("generation_config", "config"))
    listed = generation if isinstance(generation, list) else [config]
    assert {*listed} <= {*special.eos_ids} <= {*listed, config, tokenizer.token_to_id(oracle.eos_token)}
    assert [*template_notes(template, tokenizer, special.eos_ids, 10**6)] == []


def test_each_end_token_of_the_list_ends_an_answer(tmp_path: Path) -> None:
    """Gemma's config.json names <eos> only; its template ends an answer with <end_of_turn>."""
    folder = TALKERS["gemma 3"].write(tmp_path / "c")
    report = build(open_checkpoint(folder, random_weights=1), tmp_path / "e.llmc", Recipe())
    with llmc.load(report.path) as engine:
        for name in ("<eos>", "<end_of_turn>"):
            end = engine.tokenizer.token_to_id(name)
            assert end is not None
            found = engine.chat(
                [{"role": "user", "content": "Hi"}], max_tokens=3, temperature=0.0, logit_bias={end: 100.0}
            )
            assert (found.finish_reason, found.token_ids, found.text) == ("stop", [end], "")
