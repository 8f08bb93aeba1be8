"""The wheel holds exactly the package of this tree: a file that is forgotten there fails only on a user's machine."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from support.paths import PACKAGE, ROOT

NEEDED_TO_BUILD = ("pyproject.toml", "README.md", "LICENSE", "__init__.py", "__main__.py", "py.typed")


def package_files() -> set[str]:
    """What the wheel must hold, as paths inside it."""
    files = {path for folder in PACKAGE for path in (ROOT / folder).rglob("*.py")}
    files |= set((ROOT / "recipes").rglob("*.yaml")) | {ROOT / "recipes/recipe.schema.json"}
    files |= set((ROOT / "compiler").rglob("*.cu*"))  # CUDA C++ and its headers
    files |= {ROOT / "__init__.py", ROOT / "__main__.py", ROOT / "py.typed"}
    return {f"llmc/{path.relative_to(ROOT).as_posix()}" for path in files}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """Built from a copy, so that neither old build folders nor the tree itself change."""
    folder = tmp_path_factory.mktemp("wheel")
    tree = folder / "tree"
    for name in PACKAGE:
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "tests", tree / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    for name in NEEDED_TO_BUILD:
        shutil.copy(ROOT / name, tree / name)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "--wheel-dir", str(folder), str(tree)], check=True, capture_output=True, text=True)
    (built,) = folder.glob("llmc_engine-*.whl")
    return zipfile.ZipFile(built)


@pytest.mark.slow
def test_the_wheel_is_the_tree(wheel: zipfile.ZipFile):
    inside = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert inside == package_files()


@pytest.mark.slow
def test_the_wheel_carries_its_script_and_licence(wheel: zipfile.ZipFile):
    (folder,) = {name.split("/")[0] for name in wheel.namelist() if ".dist-info/" in name}
    assert "llmc = llmc.cli:main" in wheel.read(f"{folder}/entry_points.txt").decode()
    assert "Apache License" in wheel.read(f"{folder}/licenses/LICENSE").decode()
    metadata = wheel.read(f"{folder}/METADATA").decode()
    assert "License-Expression: Apache-2.0" in metadata
    assert "Provides-Extra: build" in metadata


@pytest.mark.slow
def test_the_wheel_starts_where_nothing_else_of_the_tree_is(wheel: zipfile.ZipFile, tmp_path: Path):
    """The script's own code path, from the wheel's files alone, in an empty folder."""
    wheel.extractall(tmp_path / "site")
    code = f"import sys; sys.path.insert(0, {str(tmp_path / 'site')!r}); from llmc.cli.app import run; run(['--help'])"
    code += "; import llmc; print(llmc.__file__)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "Usage: llmc" in done.stdout
    assert done.stdout.strip().endswith(str(tmp_path / "site/llmc/__init__.py"))
