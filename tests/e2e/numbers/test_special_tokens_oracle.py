"""Special tokens of public spellings are those of AutoTokenizer and generate(), transformers 5.23.0.

The source: `tokenization_utils_base.py` (`_from_pretrained`), `models/auto/tokenization_auto.py` for the class,
`tokenization_utils_tokenizers.py` for the post-processor, `generation/utils.py` (`_prepare_generation_config`).
"""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
from support.samples.spellings import SPELLINGS, Spelling

from llmc.compiler.checkpoint.checkpoint import open_checkpoint
from llmc.compiler.checkpoint.tokenizer_check import Checked, start_check
from llmc.compiler.families import FAMILIES
from llmc.compiler.tokens.names import CLASSES, NAMES, OF_MODEL_TYPE, PLAIN, UNHEARD
from llmc.compiler.vision.table import ROWS
from llmc.runtime.text.tokenizer import Tokenizer

SAYS = {
    "OpenHermes-2.5-Mistral-7B": "EOS: config.json says 3 ('<|im_end|>'), generation_config.json says 2 ('</s>'), "
    "tokenizer_config.json says 3 ('<|im_end|>'); answers end with 2 ('</s>'), 3 ('<|im_end|>')",
    "Qwen2.5-7B-Instruct": "BOS: config.json says 420 ('<|endoftext|>'), generation_config.json says 420 "
    "('<|endoftext|>'), the tokenizer's files name none; texts begin without one, as tokenizer.json says",
    "Yi-34B-Chat": "EOS: config.json says 481 ('<|endoftext|>'), generation_config.json says 3 ('<|im_end|>'), "
    "tokenizer_config.json says 3 ('<|im_end|>'); answers end with 3 ('<|im_end|>'), 481 ('<|endoftext|>')",
    "special_tokens_map.json against tokenizer_config.json": "eos_token: special_tokens_map.json says '<|im_end|>', "
    "tokenizer_config.json '</s>'; taken is '<|im_end|>', because tokenizer_config.json lists no added_tokens_decoder "
    "(as in transformers)",
    "special_tokens_map.json beside added_tokens_decoder": "bos_token: special_tokens_map.json says '<s>', "
    "tokenizer_config.json nothing; taken is None, because tokenizer_config.json lists added_tokens_decoder "
    "(as in transformers)",
    "add_bos_token against the post-processor": "add_bos_token is true in tokenizer_config.json, but tokenizer.json "
    "adds none: texts begin with 1 ('<s>') (transformers 5 adds none)",
    "a post-processor against add_bos_token": "add_bos_token is false in tokenizer_config.json, but tokenizer.json "
    "adds 1 ('<s>'): texts begin without it (transformers 5 adds it)",
}
"""One note of a build where files disagree."""
OBEYED = {"add_bos_token against the post-processor": 1, "a post-processor against add_bos_token": None}
"""BOS where add_bos_token is obeyed, as in transformers 4 and unlike in 5.23.0 (`_from_pretrained` drops the key)."""
SILENT = ("Llama-2-7b-chat", "TinyLlama-1.1B-Chat", "Llama-3-8B", "Llama-3.1-8B-Instruct", "SmolLM2-1.7B-Instruct")
"""Files that agree: no note."""


def resolved(folder: Path) -> Checked:
    return start_check(open_checkpoint(folder, random_weights=1)).result()


@pytest.mark.parametrize("name", SPELLINGS)
def test_names_bos_and_end_tokens(name: str, tmp_path: Path):
    from transformers import AutoConfig, AutoTokenizer, GenerationConfig

    spelling: Spelling = SPELLINGS[name]
    folder = spelling.write(tmp_path / "c")
    theirs = AutoTokenizer.from_pretrained(folder)
    ours = resolved(folder)
    assert ours.special.named == theirs.special_tokens_map
    # BOS in front of a text
    plain, whole = theirs("hi", add_special_tokens=False).input_ids, theirs("hi").input_ids
    assert whole[len(whole) - len(plain) :] == plain
    front = whole[: len(whole) - len(plain)]
    front = [OBEYED[name]] * (OBEYED[name] is not None) if name in OBEYED else front
    assert ([] if ours.special.bos is None else [ours.special.bos]) == front
    tokenizer = Tokenizer.from_bytes((folder / "tokenizer.json").read_bytes(), ours.special.named)
    tokenizer.begin_with(ours.special.bos)
    assert tokenizer.encode("hi") == [*front, *plain]
    # end tokens: those of generate(), those of config.json and, deliberately, the tokenizer's own
    config = AutoConfig.from_pretrained(folder)
    saved = (folder / "generation_config.json").exists()
    generation = GenerationConfig.from_pretrained(folder) if saved else GenerationConfig.from_model_config(config)
    wanted = {theirs.eos_token_id}
    for ids in (generation.eos_token_id, config.eos_token_id):
        wanted |= set(ids) if isinstance(ids, list) else {ids}
    assert ours.special.eos_ids == tuple(sorted(wanted - {None}))
    assert (SAYS[name] in ours.notes) if name in SAYS else (name not in SILENT or ours.notes == ()), ours.notes


@pytest.mark.parametrize("name", CLASSES)
def test_defaults_of_tokenizer_classes(name: str):
    """What each constructor takes for names that no file gives."""
    from transformers.models.auto.tokenization_auto import tokenizer_class_from_name

    found = tokenizer_class_from_name(name)
    assert found is not None
    parameters = inspect.signature(found.__init__).parameters
    defaults = {one: parameters[one].default for one in NAMES if one in parameters}
    assert CLASSES[name] == {one: text for one, text in defaults.items() if isinstance(text, str)}


def test_tokenizer_classes_of_model_types():
    """Of every type that llmc reads; a type that AutoTokenizer does not know takes the class that its files declare."""
    from transformers.models.auto import tokenization_auto as auto

    kinds = {one.name for one in FAMILIES.values()} | {row.model_type for row in ROWS.values()}
    for kind in kinds | PLAIN | OF_MODEL_TYPE.keys():
        known = auto.TOKENIZER_MAPPING_NAMES.get(kind)
        plain = known == "TokenizersBackend"
        assert (kind in PLAIN) == plain, kind
        assert OF_MODEL_TYPE.get(kind) == (None if plain else known), kind
        unheard = kind in auto.MODELS_WITH_INCORRECT_HUB_TOKENIZER_CLASS and not plain
        assert (kind in UNHEARD) == unheard, kind


@pytest.mark.parametrize("declared", (None, "PreTrainedTokenizerFast", "LlamaTokenizerFast", "GPT2Tokenizer", "Nobody"))
@pytest.mark.parametrize("family", ("llama", "mistral", "qwen2", "qwen3"))
@pytest.mark.parametrize("kind", ("byte_level", "llama_of_transformers"))
def test_the_class_is_the_one_that_auto_tokenizer_takes(kind: str, family: str, declared: str | None, tmp_path: Path):
    from transformers import AutoTokenizer

    tokens = ("<|endoftext|>",)
    spelling = Spelling(family, kind, tokens, tokenizer=None if declared is None else {"tokenizer_class": declared})
    folder = spelling.write(tmp_path / "c")
    assert resolved(folder).special.named == AutoTokenizer.from_pretrained(folder).special_tokens_map
