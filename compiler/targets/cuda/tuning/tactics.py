"""Tables of measured tiles, one per chip: read strictly and written canonically, because they are inputs of a build.

A table overrides `default_tile` for its linears. Tiles change a kernel's speed and not its results, so a table that was
measured with other kernels is still useful.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

from .....recipes.strict_yaml import Document
from .....recipes.strict_yaml import Mapping as YamlMapping
from .....runtime.chips import CAPABILITIES
from .....runtime.errors import RecipeError, nearest
from .....runtime.files.outputs import FileKind, write_whole
from .....runtime.files.safetensors import open_regular, read_at
from ..cubins.compile import need_compiler

if TYPE_CHECKING:
    from ..kernels.linear.tiles import Tile

VERSION = 2
HEURISTIC = "heuristic"
"""The name that a plan records if no table was used."""
_MARK = "# Measured by llmc tune."
TABLE = FileKind("a table of tiles", "", _MARK.encode())
_FOLDER = Path(__file__).resolve().parents[4] / "recipes" / "tactics"
_MAX_BYTES = 1 << 20
_SCHEMA = "a table of tiles (docs/gpu.md)"
_SHOWN = 12
"""Hexadecimal digits of a table's digest in an engine's plan."""
_LINEAR = ("kind", "n", "k", "format", "tokens")
_SIZES = ("block_n", "block_k", "block_m", "splits", "warps", "stages")
_TILE = (*_SIZES, "route")
_TIMES = ("ns", "heuristic_ns")
_FACTS = ("gpu", "driver", "date", "kernels", "triton")
_LARGEST = 10**12
_DIGEST = re.compile(r"[0-9a-f]{64}")

Key = tuple[str, int, int, str, int]


def tile_key(kind: str, n: int, k: int, format: str, tokens: int) -> Key:
    """The key of a row. Steps share a row if their tokens, rounded up to a power of two, are equal."""
    return kind, n, k, format, 1 << max(tokens - 1, 0).bit_length()


@dataclass(frozen=True)
class Row:
    """The fastest tile of a linear [n, k] with weights of a format, in steps of at most `tokens`."""

    kind: str
    """See `kernels/linear/tiles.py`."""
    n: int
    k: int
    format: str
    tokens: int
    tile: Tile
    ns: int
    """Nanoseconds of a launch with this tile, with weights outside of caches."""
    heuristic_ns: int
    """The same with the heuristic's tile."""

    @property
    def key(self) -> Key:
        return tile_key(self.kind, self.n, self.k, self.format, self.tokens)

    @property
    def numbers(self) -> dict[str, int | str]:
        """The row as one flat mapping, in the order of the file."""
        linear = {name: getattr(self, name) for name in _LINEAR}
        return linear | asdict(self.tile) | {name: getattr(self, name) for name in _TIMES}

    def __str__(self) -> str:
        return f"{self.kind} {self.n} x {self.k} {self.format}, {self.tokens} token{'s' * (self.tokens > 1)}"


@dataclass(frozen=True)
class Table:
    """The rows of one chip, and the versions they were measured with."""

    sm: int
    gpu: str
    driver: str
    """The CUDA version that the driver supports."""
    date: str
    kernels: str
    """Digest of the kernels' sources (`cache.source_digest`)."""
    triton: str
    rows: tuple[Row, ...]

    @property
    def target(self) -> str:
        return f"sm_{self.sm}"

    @property
    def name(self) -> str:
        """The table's name in an engine's plan: the GPU and the beginning of the digest."""
        return f"{self.gpu} {self.digest[:_SHOWN]}"

    @property
    def digest(self) -> str:
        """SHA-256 of `to_yaml`: independent of comments and of the order of rows."""
        return hashlib.sha256(self.to_yaml()).hexdigest()

    @property
    def tiles(self) -> Mapping[Key, Tile]:
        return {row.key: row.tile for row in self.rows}

    def to_yaml(self) -> bytes:
        lines = [_MARK, f"version: {VERSION}", f"sm: {self.sm}"]
        lines += [f"{name}: {json.dumps(getattr(self, name))}" for name in _FACTS]
        lines.append("rows:" if self.rows else "rows: []")
        for row in sorted(self.rows, key=lambda row: row.key):
            lines.append(f"  - {{{', '.join(f'{name}: {number}' for name, number in row.numbers.items())}}}")
        return "\n".join([*lines, ""]).encode()

    def write(self, path: Path) -> None:
        """Write the table to `path` atomically."""
        write_whole(path, self.to_yaml())


def load_table(path: Path) -> Table:
    """Read a table's file.

    Raises:
        RecipeError: the file is not a table, or a row has a tile that its linear cannot have; names the line.
        ResourceError: the extra that compiles kernels is not installed; tiles are checked with it.
    """
    with open_regular(path, error=RecipeError) as (fd, size):
        if size > _MAX_BYTES:
            raise RecipeError(f"cannot read the table {path}", found=f"{size} bytes, at most {_MAX_BYTES}")
        return parse_table(str(path), read_at(fd, 0, size, what=str(path), error=RecipeError))


def parse_table(shown: str, text: bytes) -> Table:
    """Read a table from its text; `shown` names it in messages. Raises as `load_table`."""
    need_compiler()
    top = Document(shown, text, schema=_SCHEMA).mapping()
    _need(top, ("version", "sm", *_FACTS, "rows"))
    top["version"].integer(lambda found: "" if found == VERSION else f"version {found}: this llmc reads {VERSION}")
    sm = top["sm"].integer(
        lambda found: "" if found in CAPABILITIES else f"no chip sm_{found}, known: {', '.join(map(str, CAPABILITIES))}"
    )
    facts = {name: top[name].text(_wrong_digest if name == "kernels" else _wrong_text) for name in _FACTS}
    rows: dict[Key, Row] = {}
    for item in top["rows"].items():
        row = _row(item.mapping(), sm)
        if row.key in rows:
            raise item.error(f"{row}: measured twice, also as {rows[row.key]}")
        rows[row.key] = row
    return Table(sm=sm, **facts, rows=tuple(rows.values()))


def bundled(sm: int) -> Table | None:
    """The table that llmc ships for a chip, if there is one. Raises as `load_table`."""
    path = _FOLDER / f"sm_{sm}.yaml"
    return load_table(path) if path.exists() else None


def _row(given: YamlMapping, sm: int) -> Row:
    from ..kernels.linear.dequantize import PER_WORD
    from ..kernels.linear.native.fits import wrong as wrong_tile
    from ..kernels.linear.tiles import KINDS, ROUTES, Tile

    assert {field.name for field in fields(Tile)} == {*_TILE}
    _need(given, (*_LINEAR, *_TILE, *_TIMES))
    formats = ("dense", *PER_WORD)
    kind = given["kind"].text(lambda name: _wrong_name(name, KINDS))
    format = given["format"].text(lambda name: _wrong_name(name, ("fp8",) if kind == "fp8" else formats))
    number = {
        name: given[name].integer(lambda found: "" if 1 <= found <= _LARGEST else f"expected > 0, found {found}")
        for name in (*_LINEAR, *_SIZES, *_TIMES)
        if name not in ("kind", "format")
    }
    n, k, tokens, ns, heuristic_ns = (number[name] for name in ("n", "k", "tokens", *_TIMES))
    route = given["route"].text(lambda name: _wrong_name(name, ROUTES))
    tile = Tile(**{name: number[name] for name in _SIZES}, route=route)
    row = Row(kind, n, k, format, tokens, tile, ns, heuristic_ns)
    if wrong := wrong_tile(kind, n, k, format, row.key[-1], tile, sm):
        raise given.error(f"{row}: {wrong}")
    return row


def _need(given: YamlMapping, keys: tuple[str, ...]) -> None:
    given.only(keys)
    for name in keys:
        if name not in given:
            raise given.error(f"'{name}' is missing")


def _wrong_name(name: str, known: tuple[str, ...]) -> str:
    return "" if name in known else f"no {name!r}{nearest(name, known)}, known: {', '.join(known)}"


def _wrong_text(text: str) -> str:
    return "" if 0 < len(text) <= 100 and text.isprintable() else "a text of 1 to 100 characters"


def _wrong_digest(text: str) -> str:
    return "" if _DIGEST.fullmatch(text) else "a digest, 64 lower-case hexadecimal digits"
