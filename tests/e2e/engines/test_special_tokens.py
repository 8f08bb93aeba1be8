"""Engines whose files disagree on special tokens: what ends a text, what begins one, and what templates read.

Names, BOS and end tokens are those of transformers 5.23.0 (tests/e2e/numbers/test_special_tokens_oracle.py).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.commands import Outcome
from support.samples.spellings import LLAMA3, QWEN, SPELLINGS, Spelling

import llmc
from llmc.runtime.errors import CheckpointError, RecipeError

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
Call = Callable[..., Outcome]
Build = Callable[..., tuple[Path, tuple[str, ...]]]
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SAID = "answers will not stop: the chat template ends an answer with '<|im_end|>' (id 3), which is no end token"
S = {"bos_token_id": "<s>", "eos_token_id": "</s>"}
BYTES = Spelling("llama", "byte_level", QWEN, "<s>", {"bos_token": "<s>", "eos_token": "</s>"}, config=S)
WORDS = Spelling("llama", "llama2", QWEN, "<s>", {"bos_token": "<s>", "eos_token": "</s>"}, config=S)


@pytest.fixture
def build(tmp_path: Path) -> Build:
    """Builds an engine of random weights; returns its path and the warnings of the build."""

    def run(spelling: Spelling, change: Callable[[Path], None] = lambda folder: None) -> tuple[Path, tuple[str, ...]]:
        folder = spelling.write(tmp_path / "c")
        change(folder)
        from llmc.compiler.build import build as compile_engine
        from llmc.compiler.checkpoint.checkpoint import open_checkpoint
        from llmc.recipes.recipe import Recipe

        report = compile_engine(open_checkpoint(folder, random_weights=1), tmp_path / "e.llmc", Recipe())
        return report.path, report.warnings

    return run


def rows(count: int) -> Callable[[Path], None]:
    """An embedding of so many rows less than the tokenizer has tokens."""

    def change(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "vocab_size": config["vocab_size"] - 8 - count}))

    return change


def test_an_end_token_that_only_the_tokenizer_names_ends_an_answer(build: Build):
    """generate() of transformers 5.23.0 would go on: it reads the configs only. This difference is deliberate."""
    path, warnings = build(replace(BYTES, tokenizer={"bos_token": "<s>", "eos_token": "<|im_end|>"}))
    with llmc.load(path) as engine:
        end = engine.tokenizer.token_to_id("<|im_end|>")
        assert end is not None
        found = engine.generate("hi", max_tokens=5, temperature=0.0, logit_bias={end: 100.0})
    assert (found.finish_reason, found.token_ids, found.text) == ("stop", [end], "")
    assert "EOS: config.json says 2 ('</s>'), tokenizer_config.json says 3 ('<|im_end|>'); answers end with" in str(
        warnings
    )


@pytest.mark.parametrize("spelling", (BYTES, WORDS), ids=("bytes", "words"))
def test_a_prompt_that_spells_bos_has_one(build: Build, spelling: Spelling):
    path, _ = build(spelling)
    with llmc.load(path) as engine:
        encode = engine.tokenizer.encode
        plain = encode("Hello")
        assert plain[0] == engine.tokenizer.token_to_id("<s>")
        assert encode("<s>Hello", special=True) == plain
        assert encode("Hello", special=True) == plain
        assert encode("<s>", special=True) == plain[:1]
        assert encode("<s><s>Hello", special=True) == plain[:1] + plain, "what the user doubles stays"
        assert encode("<s>Hello", special=True, bos=False) == plain
        assert plain[0] not in encode("<s>Hello")[1:]
        assert engine.generate("<s>Hello", special=True, max_tokens=1).prompt_tokens == len(plain)


def test_templates_read_every_name_and_write_bos_once(build: Build):
    names = "{{ bos_token }}{{ messages[0].content }}{{ eos_token }}{{ pad_token }}{{ image_token }}{{ sep_token }}"
    tokenizer = {"pad_token": "<|im_end|>", "eos_token": "</s>", "image_token": "<|im_start|>"}
    path, _ = build(replace(BYTES, tokenizer=tokenizer, special_map={"bos_token": "<s>"}, template=names))
    with llmc.load(path) as engine:
        tokens = [engine.tokenizer.token_to_id(one) for one in ("<s>", "</s>", "<|im_end|>", "<|im_start|>")]
        ids = engine.encode_chat([{"role": "user", "content": "<s>a"}])
    assert [ids[0], *ids[-3:]] == tokens
    assert ids.count(ids[0]) == 1, "neither the message nor the post-processor adds one"


def test_a_name_that_no_file_gives_is_undefined(build: Build):
    """transformers 5.23.0 passes names that are set only: `{{ bos_token }}` is empty, though config.json has an id."""
    template = "{{ bos_token }}{% if bos_token is defined %}X{% endif %}{{ messages[0].content }}"
    path, _ = build(replace(BYTES, tokenizer={"tokenizer_class": "PreTrainedTokenizerFast"}, template=template))
    with llmc.load(path) as engine:
        assert engine.tokenizer.named == {}
        assert engine.encode_chat([{"role": "user", "content": "a"}]) == engine.tokenizer.encode("a", bos=False)


@pytest.mark.parametrize(
    ("template", "said"),
    (
        (CHATML, SAID),
        (CHATML.replace("<|im_end|>", "</s>"), ""),
        (CHATML.replace("<|im_end|>", "{{ eos_token }}"), ""),
        (CHATML.replace("<|im_end|>", "###"), ""),
        (CHATML.replace("<|im_end|>", "<|im_end|></s>"), ""),
        (CHATML.replace("{% endfor %}", "{% endfor %}{% if not add_generation_prompt %}</s>{% endif %}"), SAID),
        ("{% for m in messages %}[{{ m.role }}] {{ m.content | trim }} </s>{% endfor %}", ""),
        ("{% for m in messages %}{% if m.role != 'user' %}{{ raise_exception('no') }}{% endif %}a{% endfor %}", ""),
        ("{% for m in messages %}{{ m.role }}: {{ m.content[:3] }}<|im_end|>{% endfor %}", ""),
    ),
)
def test_a_build_says_of_answers_that_will_not_stop(build: Build, template: str, said: str):
    _, warnings = build(replace(BYTES, template=template))
    assert [one for one in warnings if "answers will not stop" in one] == ([said] if said else [])


def test_the_llama_3_release_whose_answers_did_not_stop(build: Build):
    """Meta-Llama-3-8B-Instruct as first published: its configs named <|end_of_text|> only."""
    first = replace(
        SPELLINGS["Llama-3-8B"],
        template="{{ bos_token }}{% for m in messages %}{{ m.role }}\n\n{{ m.content }}<|eot_id|>{% endfor %}",
    )
    _, warnings = build(first)
    assert any(f"ends an answer with {LLAMA3[3]!r}" in one for one in warnings)
    _, warnings = build(replace(first, generation={"eos_token_id": [LLAMA3[1], LLAMA3[3]]}))
    assert not any("answers will not stop" in one for one in warnings)


def test_added_tokens_without_a_row(build: Build, call: Call):
    template = CHATML.replace("<|im_start|>", "<|endoftext|>")
    path, warnings = build(replace(BYTES, template=template), rows(2))
    first = QWEN[0]
    with llmc.load(path) as engine:
        beyond = engine.tokenizer.token_to_id(first)
        assert beyond is not None and beyond == engine.vocab_size
        refused = (
            rf"^cannot run a prompt with '<\|endoftext\|>' \(id {beyond}\)\n  found: an embedding of {beyond} rows"
        )
        for prompt in (f"a{first}", [5, beyond]):
            with pytest.raises(RecipeError, match=refused):
                engine.generate(prompt, max_tokens=1, special=True if isinstance(prompt, str) else None)
        with pytest.raises(RecipeError, match=refused):
            engine.chat([{"role": "user", "content": "hi"}], max_tokens=1)
        with pytest.raises(RecipeError, match=rf"token ids below {beyond} in logit_bias"):
            engine.generate("a", logit_bias={beyond: 1.0})
        assert engine.generate(f"a{first}", max_tokens=1).completion_tokens == 1, "spelled by a user it is plain text"
        assert engine.generate("a", max_tokens=1, stop=first).completion_tokens == 1
    count = (
        f"added tokens without one of the {beyond} rows of the embedding: '<|endoftext|>' ({beyond}), '<|im_start|>'"
    )
    assert any(one.startswith(count) for one in warnings)
    assert any(one.startswith(f"the chat template writes '<|endoftext|>' (id {beyond})") for one in warnings)
    found = call("run", path, first, "--special", "--max-tokens", 1)
    assert (found.code, f"id {beyond}" in found.err) == (2, True)


def test_an_end_token_without_a_row_is_left_out_and_bos_refused(build: Build):
    last = replace(BYTES, tokenizer={"bos_token": "<s>", "eos_token": QWEN[1]})
    _, warnings = build(last, rows(1))
    assert any("an end token is left out:" in one and "is not below the" in one for one in warnings)
    with pytest.raises(
        CheckpointError, match=r"end token that the model can write; \d+ \('<\|im_start\|>'\) is not below"
    ):
        build(replace(last, config={"bos_token_id": "<s>"}, generation={"eos_token_id": QWEN[1]}), rows(1))
    with pytest.raises(CheckpointError, match=r"expected the tokens that tokenizer.json adds to each text below the"):
        build(replace(BYTES, front=QWEN[1]), rows(1))


def test_a_model_that_samples_without_top_k_takes_50(build: Build):
    """transformers 5.23.0, GenerationConfig._get_default_generation_params: top_k 50 where no file sets one."""
    path, warnings = build(replace(BYTES, generation={"do_sample": True, "temperature": 0.7, **S}))
    assert any("has no top_k: it is 50" in one for one in warnings)
    with llmc.load(path) as engine:
        assert engine._defaults.top_k == 50
        assert engine._params({"top_k": 0}).top_k == 0
    for generation in ({"do_sample": True, "top_k": 0}, {"temperature": 0.7}, {"do_sample": True, "top_k": 7}):
        path, warnings = build(replace(BYTES, generation={**generation, **S}))
        assert not any("top_k" in one for one in warnings)


def test_a_map_that_is_not_read_is_not_judged(build: Build):
    decoder = {"bos_token": "<s>", "eos_token": "</s>", "added_tokens_decoder": ("<s>", "</s>")}
    build(replace(BYTES, tokenizer=decoder, special_map={"bos_token": 7}))
    with pytest.raises(
        CheckpointError, match='expected "bos_token" as a text, an object with "content" or null in spec'
    ):
        build(replace(BYTES, special_map={"bos_token": 7}))


@pytest.fixture
def words(build: Build) -> Path:
    return build(WORDS)[0]


def completed(engine: Any, prompt: str, *tokens: str, **options: Any) -> Any:
    """A result whose text is made of these tokens, and then of the last one."""
    ids = [engine.tokenizer.token_to_id(one) for one in tokens]
    return engine.generate(prompt, temperature=0.0, logit_bias={one: 100.0 for one in ids}, **options)


def test_prompt_and_completion_are_the_text_of_the_whole(words: Path):
    """The oracle is `tokenizers.Tokenizer.decode` of prompt and answer together."""
    with llmc.load(words) as engine:
        found = completed(engine, "Hello", "▁world", max_tokens=2)
        assert found.text == " world world"
        assert engine.tokenizer.decode(found.token_ids) == "world world", "alone, as the library decodes it"
        assert completed(engine, "Hello", "▁world", max_tokens=3, stop=" world").text == ""
        streamed = engine.stream("Hello", temperature=0.0, max_tokens=2, logit_bias={found.token_ids[0]: 100.0})
        assert next(piece.text for piece in streamed) == " world"
        ids = engine.tokenizer.encode("Hello")
        assert completed(engine, ids, "▁world", max_tokens=1).text == " world", "of token ids too"  # pyright: ignore
        assert completed(engine, [ids[0]], "▁world", max_tokens=1).text == "world"  # pyright: ignore


def test_show_prompt_and_log_probabilities_show_a_token_as_inside_a_text(words: Path, call: Call, tmp_path: Path):
    shown = call("run", words, "a world", "--max-tokens", 1, "--temperature", 0, "--show-prompt")
    assert "' world'" in shown.err and shown.code == 0
    with llmc.load(words) as engine:
        world = engine.tokenizer.token_to_id("▁world")
    lines = []
    for url, key in (("/v1/completions", "prompt"), ("/v1/chat/completions", "messages")):
        content = "Hello" if key == "prompt" else [{"role": "user", "content": "Hello"}]
        logprobs = {"logprobs": 1} if key == "prompt" else {"logprobs": True, "top_logprobs": 1}
        body = {key: content, "max_tokens": 2, "temperature": 0, "logit_bias": {str(world): 100}, **logprobs}
        lines.append(json.dumps({"custom_id": url, "url": url, "body": body}))
    (tmp_path / "b.jsonl").write_text("\n".join(lines))
    (tmp_path / "t.jinja").write_text("{% for m in messages %}{{ m.content }} says{% endfor %}")
    found = call("run", words, "--prompts", tmp_path / "b.jsonl", "--chat-template", tmp_path / "t.jinja")
    plain, chat = (json.loads(line)["response"]["body"]["choices"][0] for line in found.out.splitlines())
    assert (plain["text"], plain["logprobs"]["tokens"]) == (" world world", [" world", " world"])
    assert plain["logprobs"]["text_offset"] == [0, 6]
    assert chat["message"]["content"] == " world world"
    assert [one["token"] for one in chat["logprobs"]["content"]] == [" world", " world"]


@pytest.mark.parametrize(
    ("front", "asked", "begins"), [(None, True, ["<s>"]), ("<s>", False, []), ("<s>", True, ["<s>"])]
)
def test_a_text_begins_as_add_bos_token_says(build: Build, front: str, asked: bool, begins: list[str]):
    """As transformers 4.57's LlamaTokenizerFast; 5.23.0 drops the key beside a tokenizer.json."""
    names = {"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": asked}
    path, warnings = build(Spelling("llama", "byte_level", QWEN, front, names, config=S))
    with llmc.load(path) as engine:
        tokenizer = engine.tokenizer
        assert tokenizer is not None
        ids = tokenizer.encode("hi")
        assert [tokenizer.text_of(token) for token in ids[: len(begins)]] == begins
        assert ids[len(begins) :] == tokenizer.encode("hi", bos=False)
        assert tokenizer.encode("<s>hi", special=True) == tokenizer.encode("<s>hi", special=True, bos=False)
        prompt = engine.generate("hi", max_tokens=1).prompt_tokens
    assert prompt == len(ids)
    assert any("add_bos_token is" in said for said in warnings) == (bool(front) != asked)


def notes_on_ids(warnings: tuple[str, ...]) -> list[str]:
    return [said for said in warnings if "token" in said and "template" not in said]


def test_a_default_of_the_architecture_is_named_only_where_it_counts(build: Build):
    """transformers 5.23.0, LlamaConfig: bos_token_id 1, eos_token_id 2."""
    named = {"bos_token": "<s>", "eos_token": "</s>"}
    assert not notes_on_ids(build(replace(BYTES, tokenizer=named, config={}))[1])
    (said,) = notes_on_ids(build(replace(BYTES, tokenizer={}, config={}))[1])
    assert said.startswith("no file names an end token: the architecture's 2")


@pytest.mark.parametrize("ids", [None, [], -1])
def test_a_model_without_an_end_token_is_said(build: Build, ids: Any):
    def change(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "eos_token_id": ids}))

    path, warnings = build(replace(BYTES, tokenizer={"bos_token": "<s>"}), change)
    assert [one for one in warnings if one.startswith("no file names an end token: answers end at the most tokens")]
    with llmc.load(path) as engine:
        assert engine.generate("hi", max_tokens=2).finish_reason == "length"


def test_a_null_in_the_map_hides_a_name_and_is_said(build: Build):
    """transformers 5.23.0, tokenization_utils_base.py: special_tokens_map.json goes before tokenizer_config.json."""

    def change(folder: Path) -> None:
        (folder / "special_tokens_map.json").write_text('{"eos_token": null}')

    _, warnings = build(BYTES, change)
    assert any("eos_token: special_tokens_map.json says None, tokenizer_config.json '</s>'" in one for one in warnings)


@pytest.mark.parametrize("default", [True, False])
def test_named_templates_that_are_left_out_are_named(build: Build, default: bool):
    """transformers 5.23.0 (`get_chat_template`) takes "tool_use" for a conversation with tools, else "default"."""

    def change(folder: Path) -> None:
        config = json.loads((folder / "tokenizer_config.json").read_text())
        config["chat_template"] = {"tool_use": CHATML, "rag": CHATML + " "} | (
            {"default": "x" + CHATML} if default else {}
        )
        (folder / "tokenizer_config.json").write_text(json.dumps(config))

    _, warnings = build(BYTES, change)
    said = "chat templates that are left out, because a conversation takes 'default': 'tool_use', 'rag'"
    assert said in warnings
    assert any("no chat template" in warning for warning in warnings) != default
