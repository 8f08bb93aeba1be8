"""At build a template is tried with tools, a tool result and two turns: what llmc does not have is said then."""

from __future__ import annotations

import pytest
from support.samples.talking.templates import ALL

from llmc.compiler.checkpoint.trial import unsupported
from llmc.runtime.errors import EngineError
from llmc.runtime.text.chat import ChatTemplate


def problems(source: str) -> list[str]:
    return list(unsupported(ChatTemplate(source, bos_token="<s>", eos_token="</s>")))


@pytest.mark.parametrize("name", ALL)
def test_usual_templates_have_all_they_use(name: str):
    assert problems(ALL[name]) == []


@pytest.mark.parametrize(
    ("source", "with_what", "found"),
    (
        ("{% if tools %}\n{{ 'a'.encode() }}{% endif %}", "tools", "str.encode (line 2)"),
        (
            "{% for m in messages %}{% if m.role == 'tool' %}{{ m|yaml }}{% endif %}{% endfor %}",
            "a tool result",
            "'yaml'",
        ),
        ("{% if messages|length == 3 %}{% include 'x' %}{% endif %}", "two turns", "the tag include"),
        (
            "{% if messages[0].role == 'system' %}{{ today() }}{% endif %}",
            "a system message",
            "unknown function: 'today'",
        ),
        (
            "{% if not add_generation_prompt %}{{ messages|random }}{% endif %}",
            "an answer at the end",
            "the filter random",
        ),
    ),
)
def test_what_is_missing_is_named_with_its_conversation(source: str, with_what: str, found: str):
    (problem,) = problems(source)
    assert problem.startswith(f"cannot render the chat template with {with_what}; ") and found in problem


@pytest.mark.parametrize("source", ("{{ raise_exception('no tools') if tools }}", "{{ messages[1].content + 1 }}"))
def test_a_template_may_refuse_a_conversation(source: str):
    assert problems(source) == []


def test_a_template_that_needs_too_much_for_tools_is_refused():
    with pytest.raises(EngineError, match="more steps than its budget has"):
        problems("{% if tools %}{{ 'a' * 1000000000 }}{% endif %}")
