"""The ladder of --debug: a level shows those below it, other texts are not even made, and only 0 to 4 are levels."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from llmc.runtime.errors import RecipeError
from llmc.runtime.progress import debug, debugging, set_debug_level, timed


@pytest.fixture(autouse=True)
def quiet_again() -> Iterator[None]:
    yield
    set_debug_level("0")


@pytest.mark.parametrize("level", range(5))
def test_a_level_shows_those_below_it(level: int, capsys: pytest.CaptureFixture[str]):
    set_debug_level(str(level))
    for one in range(1, 5):
        debug(one, f"text {one}")
    shown = capsys.readouterr()
    assert shown.err.splitlines() == [f"debug {one}: text {one}" for one in range(1, level + 1)]
    assert shown.out == ""
    assert [debugging(one) for one in range(1, 5)] == [one <= level for one in range(1, 5)]


def test_a_text_is_made_only_when_it_is_shown(capsys: pytest.CaptureFixture[str]):
    made = []
    set_debug_level("2")
    debug(3, lambda: str(made.append(3)))
    debug(2, lambda: f"{made.append(2)}")
    assert made == [2]
    with timed(2, "work"), timed(3, "silence"):
        pass
    assert capsys.readouterr().err.splitlines()[1].startswith("debug 2: work: 0.0")


def test_the_variable_is_the_level_without_the_flag(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LLMC_DEBUG", "2")
    set_debug_level(None)
    assert debugging(2) and not debugging(3)
    set_debug_level("0")
    assert not debugging(1)
    monkeypatch.setenv("LLMC_DEBUG", "")
    set_debug_level(None)
    assert not debugging(1)


@pytest.mark.parametrize("text", ["5", "-1", "yes", "1.0", "9" * 99, " 1", ""])
def test_other_levels_are_refused_and_none_is_shown(text: str, monkeypatch: pytest.MonkeyPatch):
    set_debug_level("4")
    with pytest.raises(RecipeError, match=r"^expected --debug from 0 to 4\n  found: '.{0,40}'$"):
        set_debug_level(text)
    assert not debugging(1)
    monkeypatch.setenv("LLMC_DEBUG", text or "no")
    with pytest.raises(RecipeError, match=r"^expected LLMC_DEBUG from 0 to 4\n  found: '.{0,40}'$"):
        set_debug_level(None)
