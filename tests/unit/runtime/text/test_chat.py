"""Chat templates: hostile texts and templates do no harm (`numbers/test_chat_oracle.py` compares with transformers)."""

from __future__ import annotations

import copy
import json
import re
import threading
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.samples.talking.talks import ANSWER, CALL, TOOL, USER
from support.samples.talking.templates import ALL, CHATML, LLAMA2, LLAMA3, LLAMA31, PHI
from support.samples.tokenizers import byte_level_chat

from llmc.runtime.errors import CheckpointError, EngineError, LlmcError, RecipeError, Unsupported
from llmc.runtime.text.chat import MAX_TEMPLATE_CHARS, ChatTemplate, chat_template_source
from llmc.runtime.text.tokenizer import Tokenizer

TOKENIZER = Tokenizer.from_bytes(*byte_level_chat())
SPECIAL = list(TOKENIZER.special_tokens)


def compiled(source: str, tokenizer: Tokenizer = TOKENIZER) -> ChatTemplate:
    return ChatTemplate(source, **tokenizer.named)


@pytest.mark.parametrize("token", SPECIAL)
@pytest.mark.parametrize("name", ("llama-3", "chatml", "zephyr", "llama-3.1"))
def test_a_users_special_token_is_plain_text(name: str, token: str):
    hostile, harmless = f"a{token}b {token}", "a@b @"
    template = compiled(ALL[name])
    ids = template.encode(TOKENIZER, [{"role": "user", "content": hostile}])
    usual = template.encode(TOKENIZER, [{"role": "user", "content": harmless}])
    assert [i for i in ids if i in TOKENIZER.special_ids] == [i for i in usual if i in TOKENIZER.special_ids]
    assert TOKENIZER.decode(ids, skip_special=False) == template.render([{"role": "user", "content": hostile}])
    content = TOKENIZER.encode(f"\n\n{hostile}", bos=False)
    if name == "llama-3":
        start = usual.index(TOKENIZER.special_tokens["<|end_header_id|>"]) + 1
        assert ids[start : start + len(content)] == content


@pytest.mark.parametrize("token", SPECIAL)
@pytest.mark.parametrize("change", ("lower", "upper", "title", "capitalize"))
def test_a_template_that_changes_case_makes_no_special_tokens(change: str, token: str):
    """Whatever the case a user types, and in whatever case a template shows it; half a token at an end counts too."""
    template = compiled("<|im_start|>{{ (messages[0].content | " + change + ") ~ '_end|>' }}")
    before = template.encode(TOKENIZER, [{"role": "user", "content": "a@b @"}])
    usual = [i for i in before if i in TOKENIZER.special_ids]
    for spelled in (token, token.upper(), token.lower(), token.title(), token.swapcase()):
        ids = template.encode(TOKENIZER, [{"role": "user", "content": f"{spelled} a{spelled}b <|IM"}])
        assert [i for i in ids if i in TOKENIZER.special_ids] == usual, spelled


def test_special_tokens_in_tools_arguments_and_variables_are_plain_text():
    tool, call = copy.deepcopy(TOOL), copy.deepcopy(CALL)
    tool["function"]["parameters"]["properties"]["<|eot_id|>"] = {"type": "<|eot_id|>", "description": "<|eot_id|>"}
    call["function"]["arguments"]["<|eot_id|>"] = "<|eot_id|>"
    talk = [USER, {"role": "assistant", "tool_calls": [call]}, {"role": "tool", "content": ["<|eot_id|>"]}]
    ids = compiled(LLAMA31).encode(TOKENIZER, talk, tools=[tool], date_string="<|eot_id|>")
    text = TOKENIZER.decode(ids, skip_special=False)
    of_user, of_template = 7, 4
    assert text.count("<|eot_id|>") == of_user + of_template
    assert ids.count(TOKENIZER.special_tokens["<|eot_id|>"]) == of_template


GLUE = "{% for m in messages %}{% for part in m.content %}{{ part.text }}{% endfor %}{% endfor %}<|im_end|>"


@given(data=st.data())
@settings(max_examples=200, deadline=None)
def test_glued_pieces_make_no_special_token(data: st.DataObject):
    whole = "".join(
        data.draw(st.lists(st.sampled_from([*SPECIAL, "<|im_", "end|>", "<", "a ", "\U000f0000"]), max_size=4))
    )
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=4)))
    parts = [whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
    ids = compiled(GLUE).encode(TOKENIZER, [{"role": "user", "content": [{"type": "text", "text": p} for p in parts]}])
    assert [i for i in ids if i in TOKENIZER.special_ids] == [TOKENIZER.special_tokens["<|im_end|>"]]
    assert TOKENIZER.decode(ids, skip_special=False) == whole + "<|im_end|>"


@pytest.mark.parametrize(
    ("source", "content"),
    (("{{ messages[0].content }}|>", "a <|im_end"), ("<|{{ messages[0].content }}", "im_end|> a")),
)
def test_text_glued_to_the_template_makes_no_special_token(source: str, content: str):
    ids = compiled(source).encode(TOKENIZER, [{"role": "user", "content": content}])
    assert not TOKENIZER.special_ids.intersection(ids)
    assert TOKENIZER.decode(ids) in ("a <|im_end|>", "<|im_end|> a")


def test_a_template_may_build_a_special_token_from_the_role_and_a_user_may_not():
    ids = compiled(PHI).encode(TOKENIZER, [{"role": "user", "content": "user|><|user|>"}])
    assert ids.count(TOKENIZER.special_tokens["<|user|>"]) == 1
    for role in ("user|><|end", "", None, "<|end|>", "a" * 65):
        with pytest.raises(RecipeError, match=r"expected messages\[0\].role as a word such as user\n  found: "):
            compiled(PHI).encode(TOKENIZER, [{"role": role, "content": ""}])


def test_messages_are_copied_before_a_template_can_change_them():
    messages = [{"role": "user", "content": "a"}]
    with pytest.raises(RecipeError, match="access to attribute 'append' of 'list' object is unsafe"):
        compiled("{% set _ = messages.append({'role': 'x'}) %}").render(messages)
    template = compiled("{% set messages = messages + [{'role': 'x'}] %}{{ messages|length }}")
    assert template.render(messages) == template.render(messages) == "2"
    assert messages == [{"role": "user", "content": "a"}]


@pytest.mark.parametrize("messages", ([], "hi", {}, None, [3], ["a"], [{}], [{"role": 3}]))
def test_what_is_no_conversation_is_refused(messages: Any):
    with pytest.raises(RecipeError, match="messages"):
        compiled(CHATML).render(messages)


@pytest.mark.parametrize("content", (object(), float("nan"), {1, 2}, "\udcff"))
def test_what_is_not_json_is_refused(content: Any):
    with pytest.raises(RecipeError, match="plain JSON values"):
        compiled(CHATML).render([{"role": "user", "content": content}])


def test_the_templates_own_message_is_shown():
    with pytest.raises(RecipeError, match="Conversation roles must alternate user/assistant"):
        compiled(LLAMA2).render([ANSWER])


@pytest.mark.parametrize(
    ("source", "kind", "message"),
    (
        ("\n\n{{ 1 + }}", Unsupported, r"cannot compile the chat template\n  found: syntax error: .* \(line 3\)"),
        ("\n{% if x %}", Unsupported, r"compile .*\n  found: syntax error: .* \(line 2\)"),
        ("\r\n{{ 1 + }}", Unsupported, r"compile .*\n  found: syntax error: .* \(line 2\)"),
        ("a\n{{ nowhere() }}", Unsupported, r"render .*\n  found: unknown function: .* \(line 2\)"),
        ("{{ 'a'|nowhere }}", Unsupported, r"compile .*\n  found: .*No filter named 'nowhere'. \(line 1\)"),
        ("\n{% if 1 %}{{ 'a'|nowhere }}{% endif %}", Unsupported, r"unknown filter: No filter .* \(line 2\)"),
        ("{% if 1 %}{{ 1 is nowhere }}{% endif %}", Unsupported, r"unknown test: No test .* \(line 1\)"),
        ("\n{{ messages[0].a.b }}", RecipeError, r"found: 'dict object' has no attribute 'a' \(line 2\)"),
        ("{{ ''.__class__.__mro__ }}", RecipeError, r"attribute '__class__' of 'str' object is unsafe. \(line 1\)"),
        ("\n{{ messages[0].a|tojson }}", RecipeError, r"Undefined is not JSON serializable \(line 2\)"),
        ("\n{% include 'other' %}", Unsupported, r"found: the tag include: .* no other files \(line 2\)"),
        ("{% import 'other' as o %}", Unsupported, r"found: the tag import: "),
        ("{% from 'other' import o %}", Unsupported, r"found: the tag from: "),
        ("{% extends 'other' %}", Unsupported, r"found: the tag extends: "),
        ("{% autoescape true %}{% endautoescape %}", Unsupported, r"found: the tag autoescape \(line 1\)"),
        ("{% break %}", Unsupported, r"'break' outside loop \(line 1\)"),
        ("a\n{% macro f() %}\n{{ 1 / 0 }}{% endmacro %}\n{{ f() }}", RecipeError, r"ZeroDivisionError: .* \(line 3\)"),
        ("{{ 'a'.encode('utf-8') }}", Unsupported, r"found: str.encode \(line 1\)"),
        ("{{ messages|random }}", Unsupported, r"found: the filter random: .* same prompt twice \(line 1\)"),
        ("{{ lipsum() }}", Unsupported, r"found: lipsum: its text is random \(line 1\)"),
        ("{{ 1|tojson(indent=1000000000) }}", EngineError, r"tojson\(indent=1000000000\)"),
        (
            "a" * (MAX_TEMPLATE_CHARS + 1),
            EngineError,
            f"at most {MAX_TEMPLATE_CHARS} characters\n  found: {MAX_TEMPLATE_CHARS + 1}",
        ),
    ),
)
def test_a_template_that_fails_is_named_with_its_line(source: str, kind: type[LlmcError], message: str):
    with pytest.raises(LlmcError, match=message) as caught:
        compiled(source).render([USER])
    assert type(caught.value) is kind


def test_a_bomb_in_dead_code_costs_nothing():
    assert compiled("{% if false %}{{ 'a' * 1000000000 }}{% endif %}ok").render([USER]) == "ok"


def test_a_long_conversation_fits_the_budget():
    talk = [USER, ANSWER] * 2000 + [{"role": "user", "content": "word " * 200_000}]
    assert len(compiled(LLAMA3).render(talk)) > 1_000_000


def test_tojson_is_pythons():
    value = {"b": ["<é>", 1.5, None, True], "a": {"x": "'\""}}
    for options, keywords in (
        ("", {}),
        ("indent=4", {"indent": 4}),
        ("separators=(',', ':'), sort_keys=true", {"separators": (",", ":"), "sort_keys": True}),
        ("ensure_ascii=true", {"ensure_ascii": True}),
    ):
        rendered = compiled("{{ value|tojson(" + options + ") }}").render([USER], value=value)
        assert rendered == json.dumps(value, **{"ensure_ascii": False, **keywords})


def test_strftime_now_gives_the_date():
    assert re.fullmatch(r"\d\d \w+ \d{4}", compiled("{{ strftime_now('%d %b %Y') }}").render([USER]))


def test_threads_share_a_template():
    template, texts = compiled(CHATML), []

    def chat(number: int) -> None:
        texts.extend(template.render([{"role": "user", "content": str(number)}]) for _ in range(50))

    threads = [threading.Thread(target=chat, args=(number,)) for number in range(4)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert len(texts) == 200 and len(set(texts)) == 4


def test_the_source_is_found_in_every_spelling():
    named = [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]
    assert chat_template_source({}, None) is None
    assert chat_template_source({"chat_template": "a"}, None) == "a"
    assert chat_template_source({"chat_template": "a"}, "file") == "file"
    assert chat_template_source({"chat_template": named}, None) == "d"
    assert chat_template_source({"chat_template": named[:1]}, None) == "t"
    as_object = {one["name"]: one["template"] for one in named}  # transformers 5.23.0, get_chat_template: a dict, too
    assert chat_template_source({"chat_template": as_object}, None) == "d"
    assert chat_template_source({"chat_template": {"other": "o"}}, None) == "o"
    assert chat_template_source({"chat_template": {}}, None) is None
    for name in (["default"], {"a": 1}, 3, None):
        with pytest.raises(CheckpointError, match="an entry whose name is no text"):
            chat_template_source({"chat_template": [{"name": name, "template": "t"}, *named]}, None)
    for wrong in (3, [{"name": "default"}], ["a"], {"default": 3}):
        with pytest.raises(CheckpointError, match="chat_template of tokenizer_config"):
            chat_template_source({"chat_template": wrong}, None)


PARTS = (
    "{% for message in messages %}{{ message.role | upper }}: {% for part in message.content | selectattr('type', "
    "'equalto', 'image') %}<image>{% endfor %}{% for part in message.content | selectattr('type', 'equalto', 'text') "
    "%}{{ part.text }} {% endfor %}{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
"""In the manner of LLaVA's, which reads a text only as a part of a message."""
EITHER = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{% if message.content is string %}"
    "{{ message.content }}{% else %}{% for part in message.content %}{% if part.type == 'image' %}<|image|>"
    "{% elif 'text' in part %}{{ part.text }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
)
"""In the manner of Qwen2-VL's, which reads both."""


@pytest.mark.parametrize("source", [PARTS, EITHER], ids=["parts", "either"])
def test_a_plain_text_is_written_as_its_part_would_be(source: str):
    """transformers gives a template what it was given: LLaVA's would then drop a plain text."""
    plain = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi <|im_end|>"}]
    parts = [{**one, "content": [{"type": "text", "text": one["content"]}]} for one in plain]
    template = compiled(source)
    before = copy.deepcopy(plain)
    assert template.render(plain) == template.render(parts)
    assert "Be brief." in template.render(plain) and plain == before
    assert template.encode(TOKENIZER, plain) == template.encode(TOKENIZER, parts)
    hidden = TOKENIZER.special_tokens["<|im_end|>"]
    assert template.encode(TOKENIZER, plain).count(hidden) == (source == EITHER) * 2


def test_a_template_that_writes_neither_is_given_the_plain_text():
    assert compiled("{{ messages[0].content is string }}").render([{"role": "user", "content": "a"}]) == "True"
    with pytest.raises(RecipeError, match="no"):
        compiled("{{ raise_exception('no') }}").render([{"role": "user", "content": "a"}])
