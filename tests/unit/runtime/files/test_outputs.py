"""Outputs: what may be replaced, and that no link or spelling leads to an input."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from llmc.runtime.errors import RecipeError, ResourceError
from llmc.runtime.files.outputs import FileKind, check_output, require_distinct

KIND = FileKind("a table", ".tab", b"TAB", offset=1)


def put(path: Path, data: bytes = b"-other") -> Path:
    path.write_bytes(data)
    return path


def test_what_may_be_written(tmp_path: Path):
    check_output(tmp_path / "new", KIND)
    check_output(put(tmp_path / "old", b"-TAB and more"), KIND)
    check_output(put(tmp_path / "empty", b""), KIND)
    check_output(put(tmp_path / "other"), KIND, force=True)
    check_output(Path("a name alone"), KIND, [tmp_path / "old", "org/name", "fp8"])


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("how", ["itself", "dotted", "symbolic", "hard", "chain"])
@pytest.mark.parametrize("whole_folder", [False, True])
def test_an_input_is_never_replaced(tmp_path: Path, force: bool, how: str, whole_folder: bool):
    folder = tmp_path / "in"
    folder.mkdir()
    source = put(folder / "x", b"-TAB")
    out = tmp_path / "out"
    if how == "itself":
        out = source
    elif how == "dotted":
        out = folder / ".." / "in" / "x"
    elif how == "hard":
        os.link(source, out)
    else:
        out.symlink_to(source)
        if how == "chain":
            out = tmp_path / "second"
            out.symlink_to(tmp_path / "out")
    with pytest.raises(RecipeError, match=f"cannot write a table to .*\n  found: {source} is an input of this command"):
        check_output(out, KIND, [folder if whole_folder else source], force=force)


def test_a_folder_that_is_an_input_gets_no_new_part(tmp_path: Path):
    put(tmp_path / "config.json")
    check_output(tmp_path / "x.tab", KIND, [tmp_path])
    with pytest.raises(RecipeError, match=r"try: a name that ends in \.tab, or another folder"):
        check_output(tmp_path / "model.safetensors", KIND, [tmp_path], force=True)


def test_an_older_output_in_a_folder_that_is_an_input_is_replaced(tmp_path: Path):
    old, other = put(tmp_path / "old.tab", b"-TAB"), put(tmp_path / "other.tab", b"not one")
    check_output(old, KIND, [tmp_path])
    for path, inputs in ((old, [tmp_path, old]), (other, [tmp_path])):
        with pytest.raises(RecipeError, match="is an input of this command"):
            check_output(path, KIND, inputs, force=True)


def test_the_folder_of_an_input_that_is_a_file_takes_any_name(tmp_path: Path):
    check_output(tmp_path / "engine.bin", KIND, [put(tmp_path / "recipe.yaml")])


def test_without_an_ending_of_its_own_a_file_may_not_be_new_in_a_folder_that_is_an_input(tmp_path: Path):
    """Such as a report called adapter_config.json, with which the folder is no checkpoint any more."""
    folder = tmp_path / "in"
    folder.mkdir()
    link = tmp_path / "link"
    link.symlink_to(folder / "new.json")
    for path in (folder / "adapter_config.json", folder / "LICENSE", link):
        with pytest.raises(RecipeError, match="would have a file that is none\n  try: another folder"):
            check_output(path, FileKind("a report", "", b"{"), [folder], force=True)


def test_two_outputs_have_two_paths(tmp_path: Path):
    (tmp_path / "link").symlink_to(tmp_path / "a")
    require_distinct({"the engine": tmp_path / "a", "the report": tmp_path / "b", "the dump": None})
    for other in (tmp_path / "a", tmp_path / "no" / ".." / "a", tmp_path / "link"):
        with pytest.raises(RecipeError, match=r"^cannot write the engine and the dump to .*\n  found: one path"):
            require_distinct({"the engine": tmp_path / "a", "the report": None, "the dump": other})


def test_what_may_not_be_written(tmp_path: Path):
    other = put(tmp_path / "other")
    with pytest.raises(RecipeError, match="a file of 6 bytes that is not a table\n  try: another name, or --force"):
        check_output(other, KIND)
    with pytest.raises(RecipeError, match="found: a folder"):
        check_output(tmp_path, KIND, force=True)
    with pytest.raises(ResourceError, match=r"no folder .*no\n  try: mkdir -p .*no"):
        check_output(tmp_path / "no" / "x", KIND)
    assert other.read_bytes() == b"-other"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written(tmp_path: Path):
    tmp_path.chmod(0o500)
    with pytest.raises(ResourceError, match="cannot be written"):
        check_output(tmp_path / "x", KIND)
