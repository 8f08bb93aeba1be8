"""OpenAI's batch lines: what each field becomes, and answers in the shape of the published output files."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from support.engines import PicoEngine
from support.paths import ROOT

import llmc
from llmc.cli.prompts import openai
from llmc.cli.prompts.lines import Chat
from llmc.cli.prompts.openai import CHAT, COMPLETIONS, BatchLine, batch_line
from llmc.runtime.engine import Engine
from llmc.runtime.errors import RecipeError, ResourceError
from llmc.runtime.sampling.draw import Sampled
from llmc.runtime.sampling.params import SamplingOptions
from llmc.runtime.scheduling.request import Result, Timings

USER = {"role": "user", "content": "a"}
TIMINGS = Timings(0.0, 0.0, 0.0)
# what the page of OpenAI's API reference shows of a line of an output file
KEYS = {"id", "custom_id", "response", "error"}
RESPONSE = {"status_code", "request_id", "body"}
COMPLETION = {"id", "object", "created", "model", "choices", "usage"}


@pytest.fixture(scope="module")
def engine(pico_engine: PicoEngine) -> Iterator[Engine]:
    with llmc.load(pico_engine("int8")) as loaded:
        yield loaded


def line(body: dict[str, Any], **more: Any) -> BatchLine:
    return batch_line(4, {"custom_id": "a", "body": body, **more}, "p:5")


def test_fields_become_options():
    given = {
        **{"temperature": 0.5, "top_p": 0.9, "seed": 1, "stop": ["x"], "presence_penalty": 1, "frequency_penalty": 2},
        **{"top_k": 4, "min_p": 0.1, "repetition_penalty": 1.1, "ignore_eos": True},
    }
    body = {"model": "m", "prompt": "a", **given, "max_tokens": 5, "logit_bias": {"7": -3}, "user": "u"}
    found = line({**body, "n": 1, "best_of": 1, "stream": False, "echo": False, "metadata": {}, "suffix": None})
    assert found.options == {**given, "max_tokens": 5, "logit_bias": {7: -3}}
    assert (found.index, found.url, found.model, found.prompt) == (4, COMPLETIONS, "m", "a")


def test_the_endpoint_is_the_url_s_else_the_body_s():
    assert line({"messages": [USER]}).url == line({"messages": [USER]}, url=CHAT, method="POST").url == CHAT
    assert line({"prompt": [1, 2]}).tokens == (1, 2)
    with pytest.raises(RecipeError, match=r'expected "prompt" in the body at p:5'):
        line({"max_tokens": 1}, url=COMPLETIONS)
    with pytest.raises(RecipeError, match=r'found: "prompt", which llmc does not support'):
        line({"prompt": "a"}, url=CHAT)
    with pytest.raises(RecipeError, match=r'expected the url "/v1/chat/completions" or .* at .*\n  found: \["a"\]'):
        line({"prompt": "a"}, url=["a"])
    with pytest.raises(RecipeError, match=r'found: "top_logprobs", which llmc does not support'):
        line({"prompt": "a", "top_logprobs": 1})


def test_logprobs_ask_for_what_is_shown():
    def asked(body: dict[str, Any]) -> tuple[Any, Any]:
        found = line(body)
        return found.options.get("logprobs"), found.top_logprobs

    talk = {"messages": [USER]}
    assert asked(talk) == asked({**talk, "logprobs": False}) == asked({"prompt": "a"}) == (None, None)
    assert asked({**talk, "logprobs": True}) == asked({"prompt": "a", "logprobs": 0}) == (1, 0)
    assert asked({**talk, "logprobs": True, "top_logprobs": 3}) == asked({"prompt": "a", "logprobs": 3}) == (3, 3)


@pytest.mark.parametrize(("key", "value"), [("n", True), ("stream", 0), ("best_of", 2), ("echo", True), ("store", 1)])
def test_a_field_with_one_value_has_no_other(key: str, value: object):
    with pytest.raises(RecipeError, match=rf'cannot run the body at p:5\n  found: "{key}": '):
        line({"prompt": "a", key: value})


def test_the_answer_of_a_chat(engine: Engine):
    found = line({"messages": [USER], "logprobs": True, "top_logprobs": 2, "max_tokens": 3})
    result = engine.generate([0, 5, 9], **found.options)
    answer = found.answer(engine, result)
    assert answer.keys() == KEYS and answer["response"].keys() == RESPONSE
    assert (answer["custom_id"], answer["error"], answer["response"]["status_code"]) == ("a", None, 200)
    body = answer["response"]["body"]
    assert body.keys() == COMPLETION and body["object"] == "chat.completion"
    cached = {"cached_tokens": 0}
    counts = {"prompt_tokens": 3, "completion_tokens": 3, "total_tokens": 6}
    assert body["usage"] == {**counts, "prompt_tokens_details": cached}
    (choice,) = body["choices"]
    assert choice.keys() == {"index", "message", "logprobs", "finish_reason"}
    assert choice["message"] == {"role": "assistant", "content": result.text, "refusal": None}
    content = choice["logprobs"]["content"]
    assert [one.keys() for one in content] == [{"token", "logprob", "bytes", "top_logprobs"}] * 3
    assert b"".join(bytes(one["bytes"]) for one in content).decode(errors="replace") == result.text
    for one, sampled in zip(content, result.logprobs, strict=True):
        assert one["logprob"] == sampled.logprob and len(one["top_logprobs"]) == 2
        assert one["top_logprobs"][0]["logprob"] >= one["top_logprobs"][1]["logprob"]


def test_the_answer_of_a_completion(engine: Engine):
    found = line({"prompt": "import ", "logprobs": 0, "max_tokens": 4, "temperature": 0})
    ids = found.encode(engine, Chat(True, "s"), special=False)
    assert ids == engine.tokenizer.encode("import "), "--chat is not for completions"
    answer = found.answer(engine, engine.generate(list(ids), **found.options))
    body = answer["response"]["body"]
    assert body.keys() == COMPLETION and body["object"] == "text_completion"
    (choice,) = body["choices"]
    assert choice.keys() == {"index", "text", "logprobs", "finish_reason"}
    logprobs = choice["logprobs"]
    assert "".join(logprobs["tokens"]) == choice["text"]
    for at, token in zip(logprobs["text_offset"], logprobs["tokens"], strict=True):
        assert choice["text"][at:].startswith(token)
    assert logprobs["top_logprobs"] == [{}] * 4
    plain = line({"prompt": "a"}).answer(engine, Result("x", [5], 2, 0, 1, "stop", (), TIMINGS))
    assert plain["response"]["body"]["choices"][0]["logprobs"] is None


def test_failures_have_a_status():
    for error, status, kind in (
        (RecipeError("expected x"), 400, "invalid_request_error"),
        (ResourceError("cannot y"), 500, "server_error"),
    ):
        answer = line({"prompt": "a"}).failure(error)
        assert answer.keys() == KEYS and answer["error"] is None
        assert answer["response"]["status_code"] == status
        problem = answer["response"]["body"]["error"]
        assert problem == {"message": str(error), "type": kind, "param": None, "code": type(error).__name__}


def test_the_page_names_every_field():
    page = (ROOT / "docs" / "prompts.md").read_text(encoding="utf-8")
    rows = [row for row in re.findall(r"^\| (.+?) \|", page, re.MULTILINE) if row.startswith("`")]
    named = [field for row in rows for field in re.findall(r"`(\w+)`", row)]
    assert sorted(named) == sorted([*openai.SUPPORTED, "messages", "prompt", "top_logprobs"])
    own = page.partition("All other\nkeys are")[2].partition(".\n")[0]
    assert re.findall(r"`(\w+)`", own) == list(SamplingOptions.__annotations__)


def test_a_token_that_is_a_part_of_a_character_is_shown_as_bytes(engine: Engine):
    found = line({"prompt": "a", "logprobs": 1})
    ids = engine.tokenizer.encode("aé€b", bos=False)
    assert len(ids) == 7, "each byte is a token"
    text = engine.tokenizer.decode(ids)
    sampled = tuple(Sampled(token, -1.0, ((token, -1.0),)) for token in ids)
    answer = found.answer(engine, Result(text, ids, 1, 0, len(ids), "length", sampled, TIMINGS))
    logprobs = answer["response"]["body"]["choices"][0]["logprobs"]
    assert logprobs["tokens"] == [
        "a", r"bytes:\xc3", r"bytes:\xa9", r"bytes:\xe2", r"bytes:\x82", r"bytes:\xac", "b",
    ]  # fmt: skip
    assert logprobs["text_offset"] == [0, 1, 1, 2, 2, 2, 3]
    assert logprobs["top_logprobs"][1] == {r"bytes:\xc3": -1.0}
