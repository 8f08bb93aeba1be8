"""Exit codes: one table, which the errors, --help and docs/ci.md agree with."""

from __future__ import annotations

import re

import pytest
from support.paths import ROOT

from llmc.cli.app import run
from llmc.cli.common import exits
from llmc.cli.common.exits import EXIT_CODES
from llmc.runtime import errors
from llmc.runtime.errors import LlmcError

CONSTANTS = {value for name, value in vars(exits).items() if name.isupper() and isinstance(value, int)}


def test_the_table_has_the_code_of_every_error_and_constant():
    classes = [one for one in vars(errors).values() if isinstance(one, type) and issubclass(one, LlmcError)]
    assert len(classes) == 7
    assert {one.exit_code for one in classes} | CONSTANTS | {0} == {*EXIT_CODES}


def test_the_page_has_the_same_table():
    page = (ROOT / "docs" / "ci.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| (\d+) \| (.+) \|$", page, re.MULTILINE) == [
        (str(code), meaning) for code, meaning in EXIT_CODES.items()
    ]


def test_help_ends_with_the_table(capsys: pytest.CaptureFixture[str]):
    assert run(["--help"]) == 0
    table = capsys.readouterr().out.partition("\nExit codes:\n")[2]
    rows = re.findall(r"^  (\d+) +(.+)$", table, re.MULTILINE)
    assert [int(code) for code, _ in rows] == [*EXIT_CODES]
    assert " ".join(table.split()) == " ".join(f"{code} {meaning}" for code, meaning in EXIT_CODES.items())
