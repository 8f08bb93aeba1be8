"""Environment variables are read in one file, and one that means nothing is named."""

from __future__ import annotations

import re

import pytest
from repo.imports import package_sources
from support.paths import ROOT

from llmc.runtime import environment
from llmc.runtime.errors import RecipeError


def test_variables_of_the_table_are_those_that_are_read():
    text = package_sources()["runtime", "environment"]
    read = set(re.findall(r'(?:os\.environ\.get\(|in |, )"(LLMC_[A-Z]+)"', text.split("def debug")[1]))
    assert {*environment.VARIABLES} == read


def test_the_page_has_the_table():
    page = (ROOT / "docs" / "environment.md").read_text(encoding="utf-8")
    assert dict(re.findall(r"^\| `(LLMC_\w+)` \| (.*) \|$", page, re.MULTILINE)) == environment.VARIABLES


def test_unknown_variables_are_named_with_the_nearest(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LLMC_CASHE", "x")
    monkeypatch.setenv("LLMC_MAX_TOKENS", "3")
    monkeypatch.setenv("LLMC_TEMPERATURE", "0")
    monkeypatch.setenv("LLMC_FAKE_TRACE", "a test's")
    monkeypatch.setenv("LLMC_FOO", "1")
    monkeypatch.setenv("LLMC_SLOWNESS", "1")
    monkeypatch.setenv("LLMC_TARGET", "cpu")
    assert environment.unknown() == [
        "no variable LLMC_CASHE is known (did you mean 'LLMC_CACHE'?): it has no effect",
        "no variable LLMC_FOO is known: it has no effect",
        "no variable LLMC_MAX_TOKENS is known: it has no effect",
        "no variable LLMC_SLOWNESS is known: it has no effect",
        "no variable LLMC_TARGET is known: it has no effect",
        "no variable LLMC_TEMPERATURE is known: it has no effect",
    ]


def test_a_library_s_setting_is_the_user_s_first(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LLMC_FAKE_X", "theirs")
    environment.settle("LLMC_FAKE_X", "ours")
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    settings = environment.with_huge_pages()
    assert settings is not None and settings["LLMC_FAKE_X"] == "theirs"
    assert settings["GLIBC_TUNABLES"] == "glibc.malloc.hugetlb=1"
    monkeypatch.setenv("GLIBC_TUNABLES", "x")
    assert environment.with_huge_pages() is None


def test_a_wrong_number_of_threads_blames_who_asked(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LLMC_THREADS", "5000")
    for asked in (None, 5000):  # the command line passes the variable's value on
        with pytest.raises(RecipeError, match=r"^expected LLMC_THREADS from 1 to 4096"):
            environment.threads(asked)
    with pytest.raises(RecipeError, match=r"^expected threads from 1 to 4096"):
        environment.threads(0)


LAUNCHED = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "host", "MASTER_PORT": "29500"}


def test_variables_of_a_launcher(monkeypatch: pytest.MonkeyPatch):
    for name in (*environment.LAUNCHERS, "TORCHELASTIC_USE_AGENT_STORE", "TORCHELASTIC_RESTART_COUNT"):
        monkeypatch.delenv(name, raising=False)
    assert environment.launched() is None
    monkeypatch.setenv("MASTER_ADDR", "left over")
    assert environment.launched() is None
    for name, value in LAUNCHED.items():
        monkeypatch.setenv(name, value)
    assert environment.launched() == environment.Launched(1, 2, "host", 29500, False, "0")
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "3")
    assert environment.launched() == environment.Launched(1, 2, "host", 29500, True, "3")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert environment.launched() == environment.Launched(1, 2, "host", 29500, True, "3", 1)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("RANK", "", "expected the variable RANK: which rank this process is, from 0"),
        ("MASTER_ADDR", "", "expected the variable MASTER_ADDR: the host of rank 0, as all others reach it"),
        ("RANK", "2", "expected RANK from 0 to 1\n  found: '2'"),
        ("RANK", "-1", "expected RANK from 0 to 1\n  found: '-1'"),
        ("WORLD_SIZE", "two", "expected WORLD_SIZE from 1 to 4096\n  found: 'two'"),
        ("WORLD_SIZE", "0", "expected WORLD_SIZE from 1 to 4096\n  found: '0'"),
        ("LOCAL_RANK", "2", "expected LOCAL_RANK from 0 to 1\n  found: '2'"),
        ("MASTER_PORT", "65536", "expected MASTER_PORT from 1 to 65535\n  found: '65536'"),
    ],
)
def test_wrong_variables_of_a_launcher(name: str, value: str, message: str, monkeypatch: pytest.MonkeyPatch):
    for one, good in {**LAUNCHED, name: value}.items():
        monkeypatch.setenv(one, good)
    with pytest.raises(RecipeError) as caught:
        environment.launched()
    assert str(caught.value).startswith(message)


def test_the_page_has_the_variables_of_launchers():
    page = (ROOT / "docs" / "environment.md").read_text(encoding="utf-8")
    assert dict(re.findall(r"^\| `((?:RANK|W|M|LOCAL)\w*)` \| (.*) \|$", page, re.MULTILINE)) == environment.LAUNCHERS
