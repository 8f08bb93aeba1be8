"""What runs the scripts: it lets through what a script says, and nothing else."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from scripts.expected import Lines, matches
from scripts.forked import forked_llmc
from scripts.runner import parse, report, run, update

WHY = "# Why this script exists.\n"


def failure(folder: Path, steps: str, **names: str) -> str:
    script = parse(WHY + steps)
    return report(script, run(script, folder, os.environ, names))


@pytest.mark.parametrize(
    "steps",
    [
        "$ echo a\na\n",
        "$ echo a >&2; echo b\nb\n! a\n",
        "$ false\n[exit 1]\n$ (exit 3)\n[exit 3]\n",
        "$ true\n",
        "$ printf 'a\\n\\nb'\na\n\nb\n\n# A comment.\n$ x=1\n$ cd /; echo $x\n1\n",
        "$ echo \\\na b\na b\n",
        "$ cat f/g\nof g\n\n-- f/g --\nof g\n-- h --\n",
        "$ echo $THERE; pwd\n$THERE\n$PWD\n",
    ],
)
def test_what_a_script_says_passes(tmp_path: Path, steps: str):
    assert failure(tmp_path, steps, THERE="/some/path") == ""


@pytest.mark.parametrize(
    ("steps", "difference"),
    [
        ("$ true\n$ echo b\na\n$ echo c\nd\n", "$ echo b\n--- expected\n+++ got\n@@ -1 +1 @@\n-a\n+b"),
        ("$ echo a\n", "+a"),
        ("$ printf 'a\\nb'\na\n", "+b"),
        ("$ echo a\na\nb\n", "-b"),
        ("$ echo a\na\n\nb\n", "-b"),
        ("$ echo a >&2\na\n", "-a\n+! a"),
        ("$ false\n", "+[exit 1]"),
        ("$ true\n[exit 1]\n", "-[exit 1]"),
        ("$ (exit 2)\n[exit 1]\n", "+[exit 2]"),
        ("$ cat f\nof f\n", "+[exit 1]"),
        ("$ exit 0\n", "+[exit without end: "),
        ("$ echo 'a\n", "+[exit without end: "),
    ],
)
def test_anything_else_fails_with_the_difference(tmp_path: Path, steps: str, difference: str):
    assert difference in failure(tmp_path, steps)


@pytest.mark.parametrize(
    ("expected", "got", "same"),
    [
        (("a ... c",), ("a b c",), True),
        (("a ... c",), ("a  c",), True),
        (("a ... c",), ("a b d",), False),
        (("a ... c",), ("a b", "c"), False),
        (("a.c",), ("abc",), False),
        (("a", "...", "z"), ("a", "z"), True),
        (("a", "...", "z"), ("a", "b", "", "z"), True),
        (("a", "..."), ("a", "b", "c"), True),
        (("a", "...", "z"), ("a", "b"), False),
        (("...",), (), True),
        (("...",), ("[exit 1]",), False),
        (("...",), ("! a",), False),
        (("...", "! ..."), ("a", "! b", "! c"), True),
        (("! ...",), ("! a", "[exit 1]"), False),
        (("! ...",), ("a",), False),
        ((), ("a",), False),
    ],
)
def test_three_dots_stand_for_text_in_a_line_or_for_lines(expected: Lines, got: Lines, same: bool):
    assert matches(expected, got) is same


def test_an_update_changes_only_what_does_not_match(tmp_path: Path):
    script = parse(
        f"{WHY}$ printf '%s\\n' new 'took 3 s' x y end\nold\ntook ... s\n...\nend\n\n# Kept.\n$ echo a\n...\n"
        "$ printf '%s\\n' a 'cannot do it' b; false\n...\ncannot do this\n...\n\n-- f --\ntext\n"
    )
    written = run(script, tmp_path, os.environ, {})
    assert report(script, written)
    after = update(script, written)
    assert after.text() == script.text().replace("\nold\n", "\nnew\n").replace(
        "do this\n...\n", "do it\n...\n[exit 1]\n"
    )
    assert report(after, written) == ""


def test_a_command_that_hangs_is_killed_and_named(tmp_path: Path):
    script = parse(WHY + "$ echo a\na\n$ echo b; sleep 1000\nb\n$ echo c\nc\n")
    written = run(script, tmp_path, os.environ, {}, limit_s=1)
    killed = "[exit without end: killed after 1 s]"
    assert written == [("a",), ("b", killed), (killed,)]
    assert report(script, written).startswith("$ echo b; sleep 1000\n")


@pytest.mark.parametrize(
    "text",
    ["$ true\n", WHY, f"{WHY}$ echo a\n# A comment.\na\n", f"{WHY}$ true", f"{WHY}a\n", f"{WHY}-- f --\n$ true\n"],
)
def test_what_is_no_script_is_refused(text: str):
    with pytest.raises(ValueError, match=r"a script begins with a comment|output after a comment"):
        parse(text)


def test_a_forked_llmc_has_its_own_streams_folder_and_variables(tmp_path: Path):
    with forked_llmc(tmp_path) as llmc:
        script = parse(
            f"{WHY}$ mkdir d; cd d; LLMC_NOTHING=1 {llmc} bild 2>&1 | tail -n 1; echo x > p; {llmc} run e --prompts p\n"
            "  try: llmc --help\n! llmc: expected ... in p:1\n! ...\n[exit 2]\n"
        )
        (tmp_path / "run").mkdir()
        assert report(script, run(script, tmp_path / "run", os.environ, {})) == ""
