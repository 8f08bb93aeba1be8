"""The bundled pico-chat answers questions that it was not trained on, in bf16 and int8, and in the middle of a talk."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from model import Shape
from paraphrase import HERE, Message, read_facts
from support.commands import Outcome
from support.paths import ROOT
from tokenizers import Tokenizer
from train import QUESTION_WEIGHT, encode

import llmc
from llmc.runtime.engine import Engine

CHECKPOINT = ROOT / "examples" / "checkpoints" / "pico-chat"
LARGEST = 8 * 10**6
"""Bytes of the folder."""
RIGHT = 32
"""Of 40 held-out questions."""
HELD_OUT = yaml.safe_load((HERE / "heldout.yaml").read_text(encoding="utf-8"))
BEFORE = ({"role": "user", "content": "how do I install llmc?"}, {"role": "assistant", "content": "pip"})


@pytest.fixture(scope="module", params=["int8", pytest.param("none", marks=pytest.mark.soak)])
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    path = tmp_path_factory.mktemp("pico-chat") / f"{request.param}.llmc"
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it has all that an engine may want
        llmc.build(CHECKPOINT, path, quantize=request.param)
    with llmc.load(path) as loaded:
        yield loaded


def asked(question: str, *before: dict[str, str]) -> list[dict[str, str]]:
    return [*before, {"role": "user", "content": question}]


def misses(engine: Engine, questions: list[dict[str, Any]], *before: dict[str, str]) -> list[tuple[str, str, str]]:
    """Question, answer and finish reason of each that does not say what it must, or does not end by itself."""
    prompts = [engine.encode_chat(asked(one["question"], *before)) for one in questions]
    answers = zip(questions, engine.generate(prompts, max_tokens=100, temperature=0), strict=True)
    return [
        (one["question"], answer.text, answer.finish_reason)
        for one, answer in answers
        if answer.finish_reason != "stop" or not any(text in answer.text for text in one["expect"])
    ]


def test_held_out_questions_are_answered(engine: Engine):
    assert len(HELD_OUT) == 40
    missed = misses(engine, HELD_OUT)
    assert len(HELD_OUT) - len(missed) >= RIGHT, missed


def test_held_out_questions_are_answered_after_another(engine: Engine):
    first = asked("how do I install llmc?")
    turn = (*first, {"role": "assistant", "content": engine.chat(first, temperature=0).text})
    assert "pip install '.[build]'" in turn[1]["content"]
    missed = misses(engine, HELD_OUT, *turn)
    assert len(HELD_OUT) - len(missed) >= RIGHT, missed


def test_the_first_question_of_nearly_every_fact_is_answered(engine: Engine):
    facts = [{"question": fact.questions[0], "expect": fact.expect[:1]} for fact in read_facts() if fact.about]
    assert len(misses(engine, facts)) <= len(facts) // 10


def test_the_command_line_chats_with_it(engine: Engine, call: Callable[..., Outcome]):
    done = call("run", engine.info.path, "--chat", "how do I build an engine?")
    assert (done.code, done.out) == (0, "`llmc build CHECKPOINT -o model.llmc`\n")
    assert "(stop)" in done.err


def test_the_checkpoint_is_small_and_whole():
    files = {path.name: path.stat().st_size for path in CHECKPOINT.iterdir()}
    assert sum(files.values()) <= LARGEST
    names = {"README.md", "config.json", "generation_config.json", "model.safetensors"}
    assert files.keys() == names | {"tokenizer.json", "tokenizer_config.json"}


def test_training_has_the_tokens_of_the_chat_template(engine: Engine):
    """What is trained is what `chat` gives: roles, ends of messages and line ends too."""
    talk = [
        Message("system", "Be brief."),
        Message("user", "  HÉLLO\n\nwörld <b> "),
        Message("assistant", "`llmc -h`"),
        Message("user", "Ok?"),
    ]
    tokenizer = Tokenizer.from_file(str(CHECKPOINT / "tokenizer.json"))
    text = encode(tokenizer, [talk], ["`llmc`", "`llmc -h`"])
    messages = [{"role": one.role, "content": one.content} for one in talk]
    begin = tokenizer.encode("<|im_start|>assistant\n").ids
    assert text.ids.tolist() + begin == engine.encode_chat(messages)
    assert "\n héllo\n\nwörld <b><|im_end|>" in tokenizer.decode(text.ids.tolist(), skip_special_tokens=False)
    answer = [*tokenizer.encode("`llmc -h`").ids, tokenizer.token_to_id("<|im_end|>")]
    assert text.following[text.weights == 1].tolist() == answer, "the end token is learnt too"
    assert sorted(set(text.weights.tolist())) == pytest.approx([0.0, QUESTION_WEIGHT, 1.0])
    (before,) = torch.where(text.answers >= 0)[0].tolist()
    assert text.answers[before] == 1 and text.following[before] == answer[0]


def test_any_text_is_encoded(engine: Engine):
    for text in ("", "ÄÖ 你好 \U0001f600\x00\r\n", "".join(map(chr, range(1, 0x250)))):
        assert engine.tokenizer.decode(engine.tokenizer.encode(text)) == text


def test_the_shape_is_the_scripts(engine: Engine):
    shape, info = Shape(), engine.info
    assert (info.vocab_size, info.hidden_size, info.layers) == (shape.vocab, shape.hidden, shape.layers)
    assert info.chat and info.max_context == shape.context and Path(info.path).stat().st_size < LARGEST
