"""The distribution's name: `llmc` on PyPI is another program, so no text sends a user there."""

from __future__ import annotations

import re
import subprocess
import tomllib
from importlib import metadata

from support.paths import ROOT

import llmc
from llmc.runtime.errors import DISTRIBUTION, install_hint

FOREIGN = re.compile(
    r"\b(?:pip3? (?:install|download|index versions)|pipx (?:run|install)|uvx)(?: +-[^ ]+)* +['\"]?llmc(?=['\"\s]|$)"
    r"|\bllmc\[",
    re.MULTILINE,
)
"""A package manager asked for `llmc` or one of its extras."""


def test_the_name_has_one_home():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["name"] == DISTRIBUTION != "llmc"
    assert project["scripts"] == {"llmc": "llmc.cli:main"}
    assert llmc.__version__ == metadata.version(DISTRIBUTION) == project["version"]


def test_a_hint_works_in_a_checkout_and_names_an_extra():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    assert install_hint("build") == "pip install '.[build]' in a checkout of llmc"
    shown = subprocess.run(["git", "grep", "-hoE", r"\.\[[a-z,-]+\]"], cwd=ROOT, capture_output=True, text=True).stdout
    named = {extra for text in shown.split() for extra in text[2:-1].split(",")}
    assert "build" in named <= extras.keys()


def test_no_text_names_the_other_program():
    for wrong in ("pip install 'llmc[build]'", "pip install -U llmc", "`llmc[build]` also", "uv pip install llmc\n"):
        assert FOREIGN.search(wrong), wrong
    for right in ("pip install '.[build]' in a checkout of llmc", "install llmc-engine", "pip install /src/llmc/x.whl"):
        assert not FOREIGN.search(right), right
    files = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    found = []
    for name in files.rstrip("\0").split("\0"):
        path = ROOT / name
        if (
            path.suffix in (".py", ".md", ".txt", ".toml", ".yaml", ".yml", ".sh", "")
            and "test_distribution" not in name
        ):
            text = path.read_text(encoding="utf-8", errors="replace")
            if name.startswith("examples/chat/"):  # people ask for the wrong package: answers name the right one
                text = "\n".join(line for line in text.splitlines() if "answer:" in line)
            found += [f"{name}: {match[0]}" for match in FOREIGN.finditer(text)]
    assert found == []
