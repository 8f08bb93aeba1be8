"""Engines that are judged together: as many open at once as memory holds, closed before the next ones open."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace

import pytest
from support.engines import PicoEngine

from llmc.cli.judge.subjects import Subject, demand_one_tokenizer, groups, subject
from llmc.runtime.errors import RecipeError, ResourceError


@pytest.fixture
def pico(pico_engine: PicoEngine) -> Subject:
    return subject(str(pico_engine("int8")), None)


def together(subjects: list[Subject], room: int) -> list[list[str]]:
    """The groups on a machine with memory for `room` engines."""
    opened: set[str] = set()

    @contextmanager
    def load(one: Subject) -> Iterator[str]:
        if len(opened) == room:
            raise ResourceError("cannot load, too little memory")
        opened.add(one.path)
        yield one.path
        opened.remove(one.path)

    with closing(groups(subjects, load)) as found:
        return list(found)


def test_engines_run_together_where_memory_allows(pico: Subject, capsys: pytest.CaptureFixture[str]):
    several = [replace(pico, path=name) for name in ("a", "b", "c")]
    assert together(several, room=3) == [["a", "b", "c"]]
    assert capsys.readouterr().err == ""
    assert together(several, room=2) == [["a", "b"], ["c"]]
    assert capsys.readouterr().err == (
        "llmc: c waits until the engines before it are done: cannot load, too little memory\n"
    )
    assert together(several, room=1) == [["a"], ["b"], ["c"]]
    with pytest.raises(ResourceError):
        together(several, room=0)


def test_the_facts_of_a_subject_are_known_before_it_is_loaded(pico: Subject):
    assert (pico.profile, pico.limits.max_batch, pico.limits.max_context) == ("cpu", 8, 512)
    assert pico.formats == {"int8": 57}


def test_engines_must_read_the_same_tokens(pico: Subject):
    demand_one_tokenizer([pico, replace(pico, path="b")])
    model = replace(pico.manifest.model, bos=7)
    with pytest.raises(RecipeError, match=r"expected engines with one tokenizer, not .* and b\n  found: another id of"):
        demand_one_tokenizer([pico, replace(pico, path="b", manifest=replace(pico.manifest, model=model))])


def test_messages_need_one_chat_template(pico: Subject):
    other = replace(pico, path="b", template="{{ messages }}")
    demand_one_tokenizer([pico, other])
    with pytest.raises(RecipeError, match=r"not .* and b\n  found: another chat template"):
        demand_one_tokenizer([pico, other], messages=True)
