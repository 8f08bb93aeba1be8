"""Who imports whom in the package, by file, and the circles among them: read from the source, nothing is imported."""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path

from support.paths import PACKAGE, ROOT

Parts = tuple[str, ...]
"""A file of the package without its ending, or a module, as a path: ("runtime", "plan", "formula")."""
Edge = tuple[Parts, Parts]


def package_files() -> list[Path]:
    """Every Python file of the package's folders."""
    return sorted(path for top in PACKAGE for path in (ROOT / top).rglob("*.py"))


def root_files() -> list[Path]:
    """The package's face and its `python -m`, which lie in the root."""
    return sorted(ROOT.glob("__*__.py"))


def parts_of(path: Path) -> Parts:
    return path.relative_to(ROOT).with_suffix("").parts


def imported(source: str, file: Parts) -> Iterator[Parts]:
    """The modules a file imports anywhere in it, types too; those of the package start with "llmc".

    `from x import y` gives x.y: whether y is a module or a name in x, `resolve` tells. Modules that are named in a call
    count too: `import_module("llmc.cli.app")`.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and _name(node.func) in ("import_module", "__import__") and node.args:
            named = node.args[0]
            if isinstance(named, ast.Constant) and isinstance(named.value, str) and not named.value.startswith("."):
                yield tuple(named.value.split("."))
        elif isinstance(node, ast.Import):
            yield from (tuple(alias.name.split(".")) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ("llmc", *file[:-1])[: len(file) + 1 - node.level] if node.level else ()
            module = (*base, *(node.module.split(".") if node.module else ()))
            yield from ((*module, alias.name) for alias in node.names)


def _name(function: ast.expr) -> str:
    """The last name of what is called."""
    return str(getattr(function, "attr", getattr(function, "id", "")))


def resolve(module: Parts, known: Collection[Parts]) -> Parts | None:
    """The file behind a module of the package (with "llmc" in front), None for a module of something else.

    A folder is its `__init__`: its face.
    """
    if module[:1] != ("llmc",):
        return None
    for inside in (module[1:], module[1:-1]):
        for file in (inside, (*inside, "__init__")):
            if file in known:
                return file
    return ("__init__",) if len(module) <= 2 and ("__init__",) in known else None


def edges(sources: Mapping[Parts, str]) -> set[Edge]:
    """(importer, imported) among files."""
    found = set()
    for file, source in sources.items():
        targets = (resolve(module, sources) for module in imported(source, file))
        found |= {(file, target) for target in targets if target is not None and target != file}
    return found


def package_sources() -> dict[Parts, str]:
    return {parts_of(path): path.read_text(encoding="utf-8") for path in (*package_files(), *root_files())}


def rooms(files: Iterable[Parts]) -> set[Parts]:
    """Every folder, from the root () down."""
    return {file[:depth] for file in files for depth in range(len(file))}


def between(room: Parts, all_edges: Iterable[Edge]) -> dict[str, dict[str, Edge]]:
    """Which child of a room, file or folder, imports which other child, with one example each."""
    depth, found = len(room), {}
    for importer, target in sorted(all_edges):
        if importer[:depth] == target[:depth] == room and importer[depth] != target[depth]:
            found.setdefault(importer[depth], {}).setdefault(target[depth], (importer, target))
    return found


def circle(arrows: Mapping[str, Collection[str]]) -> list[str]:
    """Some children that import each other in a circle, [] if there are none."""
    path: list[str] = []
    done: set[str] = set()

    def walk(child: str) -> list[str]:
        if child in path:
            return path[path.index(child) :]
        if child in done:
            return []
        path.append(child)
        for target in arrows.get(child, ()):
            if found := walk(target):
                return found
        path.pop()
        done.add(child)
        return []

    return next((found for child in arrows if (found := walk(child))), [])
