"""Import directions: what makes the runtime run without torch and keeps the parts apart is checked, not promised."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("cli", "compiler", "passes", "quantize", "recipes", "runtime")
FILES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
LAYERS = ("runtime", "quantize", "compiler", "passes", "compiler/back", "cli")
COMPILER_BACK = ("targets", "store", "weights", "build")
RUNTIME_MAY_IMPORT = {"numpy", "onnxruntime", "tokenizers", "minijinja"}
CLI_MAY_IMPORT_AT_START = {"typer"}


def layer(parts: tuple[str, ...]) -> int:
    """The layer of a module given by its path inside the package, such as ("compiler", "graph")."""
    if parts[:1] == ("compiler",) and set(parts[1:2]) & set(COMPILER_BACK):
        return LAYERS.index("compiler/back")
    return LAYERS.index(parts[0])


def imports(tree: ast.AST, inside: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """The modules a file imports, as paths; those of this package start with "llmc". `inside` is the file's package."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (tuple(alias.name.split(".")) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield tuple((node.module or "").split("."))
        elif isinstance(node, ast.ImportFrom):
            base = ("llmc", *inside)[: len(inside) + 2 - node.level]
            module = (*base, *(node.module.split(".") if node.module else ()))
            # `from . import name` may name a module: it counts as one
            yield from (
                [module] if node.module and len(module) > 2 else [(*module, alias.name) for alias in node.names]
            )


def wrong_directions(source: str, file: tuple[str, ...]) -> list[str]:
    """Imports that point to a layer above the file's own, as readable lines."""
    own = layer(file)
    found = []
    for module in imports(ast.parse(source), file[:-1]):
        ours = module[0] == "llmc" and len(module) > 1 and module[1] in FOLDERS and module[1] != "recipes"
        if ours and layer(module[1:]) > own:
            found.append(f"{'/'.join(file)} imports {'.'.join(module)}")
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_to_lower_layers(path: Path):
    if path.parent.name != "recipes":
        assert wrong_directions(path.read_text(encoding="utf-8"), path.relative_to(ROOT).with_suffix("").parts) == []


@pytest.mark.parametrize(
    ("source", "file", "count"),
    [
        ("from ..compiler.graph import Graph", ("runtime", "bind"), 1),
        ("def f():\n    from .. import compiler", ("runtime", "bind"), 1),
        ("import llmc.passes.rule", ("compiler", "graph"), 1),
        ("from .build import build", ("compiler", "graph"), 1),
        ("from . import store", ("compiler", "graph"), 1),
        ("from ..store import EngineWriter", ("compiler", "families", "llama"), 1),
        ("from ..store import EngineWriter", ("compiler", "targets", "__init__"), 0),
        ("from ..runtime.errors import LlmcError", ("compiler", "graph"), 0),
        ("from .errors import LlmcError", ("runtime", "bind"), 0),
        ("import numpy", ("runtime", "bind"), 0),
    ],
)
def test_the_check_finds_wrong_directions(source: str, file: tuple[str, ...], count: int):
    assert len(wrong_directions(source, file)) == count


def test_onnx_runtime_has_one_door():
    """Its telemetry is off only if `runtime/ort.py` is what imports it."""
    users = {
        str(path.relative_to(ROOT))
        for path in FILES
        if any(m[0] == "onnxruntime" for m in imports(ast.parse(path.read_text(encoding="utf-8")), path.parts))
    }
    assert users == {"runtime/ort.py"}


@pytest.mark.parametrize("path", sorted((ROOT / "runtime").rglob("*.py")), ids=lambda path: path.name)
def test_the_runtime_imports_only_what_it_may(path: Path):
    names = {module[0] for module in imports(ast.parse(path.read_text(encoding="utf-8")), ("runtime",))}
    assert names - set(sys.stdlib_module_names) - {"llmc"} <= RUNTIME_MAY_IMPORT


def modules_after(statement: str) -> set[str]:
    """Top-level names in sys.modules of a fresh interpreter after a statement."""
    code = f"{statement}\nimport sys\nprint(*sorted({{name.partition('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


HEAVY = {"numpy", "torch", "onnx", "onnx_ir", "onnxruntime", "transformers", "tokenizers", "minijinja", "yaml", "rich"}


@pytest.mark.parametrize("statement", ["import llmc", "import llmc.cli.app"])
def test_starting_imports_nothing_heavy(statement: str):
    assert modules_after(statement) & HEAVY == set()


def test_loading_an_engine_imports_no_compiler_library():
    banned = {"torch", "onnx", "onnx_ir", "triton", "transformers", "ml_dtypes"}
    names = " ".join(f"import llmc.runtime.{path.stem}\n" for path in sorted((ROOT / "runtime").glob("[a-z]*.py")))
    assert modules_after(names.replace("\n ", "\n")) & banned == set()
