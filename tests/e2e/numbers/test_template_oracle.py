"""Templates give what the Jinja2 environment of transformers gives: expressions, features, random templates.

Values of: transformers 5.23.0, utils/chat_template_utils.py (`_compile_jinja_template`, `render_jinja_template`)
with jinja2 3.1.6. An error of both counts as equal; messages are Jinja2's where Jinja2 has one.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import example, given, settings
from support.samples.expressions import ALL as EXPRESSIONS
from support.samples.expressions import EXPLAINED, VARIABLES
from support.samples.features import ALL as TEMPLATES
from support.samples.features import TALKS
from support.samples.grammar import templates

from llmc.runtime.errors import EngineError, LlmcError
from llmc.runtime.text.chat import FUEL, ChatTemplate
from llmc.runtime.text.template import Template

ADDRESS = " at 0x"
"""In a text of Jinja2's: it is another one in every run, and so no prompt. llmc refuses to make it."""


def theirs(source: str, variables: dict[str, Any]) -> str | Exception:
    from transformers.utils.chat_template_utils import _compile_jinja_template

    try:
        return _compile_jinja_template(source).render(**copy.deepcopy(variables))
    except Exception as error:
        return error


def ours(source: str, variables: dict[str, Any]) -> str | LlmcError:
    try:
        return Template(source).render(copy.deepcopy(variables), FUEL)
    except LlmcError as error:
        return error


def compare(source: str, variables: dict[str, Any]) -> None:
    expected, found = theirs(source, variables), ours(source, variables)
    if isinstance(expected, Exception):
        assert isinstance(found, LlmcError), expected
    elif ADDRESS in expected:
        assert "it is an address" in str(found)
    else:
        assert found == expected


@pytest.mark.parametrize("expression", [one for one in EXPRESSIONS if one not in EXPLAINED])
def test_an_expression_has_jinjas_value(expression: str):
    compare("{{ " + expression + " }}", VARIABLES)


@pytest.mark.parametrize("expression", EXPLAINED)
def test_what_differs_is_refused_by_name(expression: str):
    source = "{{ " + expression + " }}"
    assert isinstance(theirs(source, VARIABLES), str)
    assert EXPLAINED[expression] in str(ours(source, VARIABLES))


def test_no_deterministic_filter_or_test_of_jinja_is_left_out():
    """Every name of jinja2.filters.FILTERS and jinja2.tests.TESTS is in an expression above; random is refused."""
    from jinja2.filters import FILTERS
    from jinja2.tests import TESTS

    text = " ".join((*EXPRESSIONS, *EXPLAINED))
    assert [name for name in FILTERS if f"|{name}" not in text and f"'{name}'" not in text] == []
    assert [name for name in TESTS if f"is {name}" not in text and f"'{name}'" not in text and name.isalpha()] == []


@pytest.mark.parametrize("ends", ("\n", "\r\n", "\r"), ids=("LF", "CRLF", "CR"))
@pytest.mark.parametrize("add", (True, False), ids=("prompt", "answered"))
@pytest.mark.parametrize("talk", TALKS.values(), ids=TALKS)
@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_gives_transformers_prompt(name: str, talk: dict[str, Any], add: bool, ends: str):
    from transformers.utils.chat_template_utils import render_jinja_template

    source, tokens = TEMPLATES[name], {"bos_token": "<s>", "eos_token": "</s>"}
    source = source if "\r" in source else source.replace("\n", ends)
    talk = {"tools": None, **copy.deepcopy(talk), "add_generation_prompt": add}
    try:
        conversations = [copy.deepcopy(talk["messages"])]
        rest = {name: value for name, value in talk.items() if name != "messages"}
        expected = render_jinja_template(conversations, chat_template=source, **tokens, **rest)[0][0]
    except Exception:
        with pytest.raises(LlmcError):
            ChatTemplate(source, **tokens).render(**talk)
        return
    assert ChatTemplate(source, **tokens).render(**talk) == expected


@given(source=templates)
@example(source="{% for m in messages %}{% macro f() %}{{ m }}{% endmacro %}{% set ns = f %}{% endfor %}")
@settings(max_examples=400, deadline=None)
def test_random_templates_give_the_same_or_both_fail(source: str):
    messages = [{"role": "user", "content": "hi a"}, {"role": "assistant", "content": ["x", {"a": 1}]}]
    variables = {"messages": messages, "y": [1, "a"], "nothing": None}
    if isinstance(found := ours(source, variables), EngineError):
        assert "budget" in str(found) or "too deep" in str(found) or "at most" in str(found) or "bits" in str(found)
        return
    compare(source, variables)
