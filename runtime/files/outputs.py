"""No command writes over its inputs or over a file of another kind, checked before the work; small files come whole."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from ..errors import RecipeError, ResourceError
from .safetensors import kind_of_file


@dataclass(frozen=True)
class FileKind:
    """A kind of file that llmc writes."""

    name: str
    """With its article: "an engine"."""
    suffix: str
    """How its names end, "" if files of other kinds end so too. A new file in a folder that is an input must end so."""
    mark: bytes
    """What its files have at `offset`; an older file with it may be replaced."""
    offset: int = 0

    def matches(self, path: Path) -> bool:
        """True if the file has the mark."""
        with open(path, "rb") as file:
            file.seek(self.offset)
            return file.read(len(self.mark)) == self.mark


def check_output(path: Path, kind: FileKind, inputs: Iterable[str | Path] = (), *, force: bool = False) -> None:
    """Check that a file of `kind` may be written to `path`, new or in place of an old one.

    `inputs` are what the command reads: files, folders with files, and names that are no path. A hard or symbolic link
    to an input counts as the input; an older output with an ending of its own, in a folder that is an input, is none.
    `force` lets a file of another kind be replaced, an input never. An empty file may be replaced always.

    Raises:
        RecipeError: the path is an input, a folder, or a file of another kind.
        ResourceError: its folder is missing, or cannot be read or written.
    """
    asked = f"cannot write {kind.name} to {path}"
    folder = path.parent
    sources = [Path(one) for one in inputs]
    own_ending = kind.suffix and path.suffix == kind.suffix
    for source in _files(sources):
        if _same(path, source) and not (own_ending and source not in sources and _is_own(source, kind)):
            raise RecipeError(asked, found=f"{source} is an input of this command", fix="another name")
    if not own_ending and not path.exists() and any(_same(path.resolve().parent, source) for source in sources):
        fix = f"a name that ends in {kind.suffix}, or another folder" if kind.suffix else "another folder"
        raise RecipeError(asked, found=f"{folder} is an input, and would have a file that is none", fix=fix)
    if not folder.is_dir():
        raise ResourceError(asked, found=f"no folder {folder}", fix=f"mkdir -p {folder}")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ResourceError(asked, found=f"the folder {folder} cannot be written", fix="another folder")
    if not path.exists():
        return
    facts = path.stat()
    if not path.is_file():
        raise RecipeError(asked, found=kind_of_file(facts.st_mode), fix="the name of a file")
    if force or not facts.st_size:
        return
    try:
        own = kind.matches(path)
    except OSError as error:
        raise ResourceError(asked, found=f"its old content cannot be read: {error.strerror}", fix="--force") from error
    if not own:
        raise RecipeError(
            asked, found=f"a file of {facts.st_size} bytes that is not {kind.name}", fix="another name, or --force"
        )


def write_whole(path: Path, data: bytes) -> None:
    """Put `data` in place of a file, or leave the old one as it is; a link keeps pointing at the file.

    Raises:
        ResourceError: it cannot be written.
    """
    try:
        target = path.resolve()
        new = target.with_name(f".{target.name}.{os.getpid()}")
        try:
            with open(new, "xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(new, target)
        finally:
            new.unlink(missing_ok=True)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        found = getattr(error, "strerror", None) or str(error)
        raise ResourceError(f"cannot write {path}", found=found, fix="another name, or more room") from error


def require_distinct(outputs: Mapping[str, Path | None]) -> None:
    """Check that no two outputs of a command have the same path; they are given by what they are, None if not asked.

    Raises:
        RecipeError: two have.
    """
    asked = ((name, path) for name, path in outputs.items() if path is not None)
    for (name, path), (other, its) in combinations(asked, 2):
        if path.resolve() == its.resolve():
            raise RecipeError(f"cannot write {name} and {other} to {path}", found="one path", fix="another name")


def _files(inputs: Iterable[Path]) -> Iterator[Path]:
    for one in inputs:
        if one.is_dir():
            yield from (entry for entry in one.iterdir() if not entry.is_dir())
        elif one.exists():
            yield one


def _is_own(source: Path, kind: FileKind) -> bool:
    """True if a file in a folder that is an input is an older output, by its name and its mark."""
    return source.suffix == kind.suffix and source.is_file() and kind.matches(source)


def _same(path: Path, source: Path) -> bool:
    return path.exists() and source.exists() and os.path.samefile(path, source)
