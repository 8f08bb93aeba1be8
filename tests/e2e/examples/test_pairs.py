"""What pico-chat is trained on: the pairs are many, their commands exist, and no held-out question is among them."""

from __future__ import annotations

import re
import shlex
from functools import cache
from typing import Any

import pytest
import typer.main
import yaml
from paraphrase import HERE, Fact, corpus, read_facts
from train import CONVERSATIONS, SEED

from llmc.cli.app import application
from llmc.cli.common.help import SETTINGS

FACTS = read_facts()
COMMAND = re.compile(r"`(llmc [^`]*)`")
FLAG = re.compile(r"(?<![\w-])--[a-z][a-z-]*")


def phrasings(name: str) -> list[dict[str, Any]]:
    return yaml.safe_load((HERE / f"{name}.yaml").read_text(encoding="utf-8"))


def words(text: str) -> str:
    """A text without what typing may change."""
    return " ".join(re.findall(r"\w+", text.lower()))


def test_there_are_many_pairs_of_many_topics():
    questions = [question for fact in FACTS for question in fact.questions]
    assert len(FACTS) >= 200 and len(questions) >= 300
    assert len({fact.topic for fact in FACTS}) >= 12
    assert len({fact.answer for fact in FACTS}) == len(FACTS)
    assert len({words(one) or one for one in questions}) == len(questions), "a question has two answers"


@pytest.mark.parametrize("fact", FACTS, ids=lambda fact: fact.questions[0])
def test_an_answer_is_short_and_holds_what_it_must(fact: Fact):
    assert len(fact.answer) <= 160 and fact.expect and len(fact.questions) >= 5
    assert [text for text in fact.expect if text not in fact.answer] == []


def flags_of(command: Any) -> set[str]:
    own = {name for param in command.params for name in (*param.opts, *param.secondary_opts) if name[0] == "-"}
    return own | set(SETTINGS["help_option_names"])


@cache
def commands() -> dict[str, Any]:
    """All commands by their words, such as "cache list"."""
    found, waiting = {}, {"": typer.main.get_command(application())}
    while waiting:
        name, command = waiting.popitem()
        found[name] = command
        waiting |= {f"{name} {one}".strip(): sub for one, sub in getattr(command, "commands", {}).items()}
    return found


def unknown_in(line: str) -> list[str]:
    """What a command line names that llmc does not have."""
    known = commands()
    first, *rest = shlex.split(line)
    assert first == "llmc"
    name = ""
    while rest and f"{name} {rest[0]}".strip() in known:
        name = f"{name} {rest.pop(0)}".strip()
    if not name and rest and not rest[0].startswith("-"):
        return [rest[0]]
    flags = [one for one in rest if re.match(r"--?[a-z]", one)]
    return [f"{name} {flag}".strip() for flag in flags if flag not in flags_of(known[name])]


def test_all_commands_in_answers_exist():
    lines = {line for fact in FACTS for line in COMMAND.findall(fact.answer)}
    assert len(lines) > 80
    assert {line: found for line in sorted(lines) if (found := unknown_in(line))} == {}


def test_all_flags_named_alone_exist():
    known = set().union(*map(flags_of, commands().values()))
    named = {flag for fact in FACTS for flag in FLAG.findall(COMMAND.sub("", fact.answer))}
    assert len(named) > 5 and named - known == set()


def test_the_check_of_commands_finds_what_is_wrong():
    assert unknown_in("llmc build C -o e.llmc --quantise int8") == ["build --quantise"]
    assert unknown_in("llmc built C") == ["built"]
    assert unknown_in("llmc -h") == unknown_in("llmc build C -o e.llmc --target h100") == []


def test_held_out_phrasings_are_not_among_the_pairs():
    held_out, development = phrasings("heldout"), phrasings("development")
    assert len(held_out) == 40 and len(development) >= 60
    asked = {words(one["question"]) for one in held_out} | {words(one["question"]) for one in development}
    assert len(asked) == len(held_out) + len(development)
    assert asked & {words(question) for fact in FACTS for question in fact.questions} == set()
    for one in (*held_out, *development):
        assert [fact for fact in FACTS if any(text in fact.answer for text in one["expect"])], one


@pytest.mark.slow
def test_no_held_out_phrasing_is_in_the_training_text():
    trained = {
        words(message.content) for talk in corpus(SEED, CONVERSATIONS) for message in talk if message.role == "user"
    }
    assert len(trained) > CONVERSATIONS
    assert [one["question"] for one in phrasings("heldout") if words(one["question"]) in trained] == []
