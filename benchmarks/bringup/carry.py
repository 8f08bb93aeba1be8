"""What is carried to a machine with a GPU: machine code, cases with numbers, plans without weights; written and read.

A folder. `code.bin` holds every cubin, and every PTX text compressed by zlib, each once; `code.json` says what lies
where. `plans/NAME.json.gz` are launch plans whose modules point into `code.bin`. `cases.json` and `cases.npz` are the
kernel cases: what is launched, with which bytes, and what must come out. `sweep.json` are linears with many tiles.
`engines.zip`, `simulated/` and `dump/` are engines and what the interpreter says of them, `kernels.zip` is a pack for
`llmc build`, and `tactics/` has the tables of tiles that decided the plans.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import shutil
import tempfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any
from zipfile import ZIP_DEFLATED, ZipFile, ZipInfo

import numpy as np

from llmc.runtime.plan.plan import Plan

CODE, INDEX, CASES, ARRAYS, SWEEP = "code.bin", "code.json", "cases.json", "cases.npz", "sweep.json"
_NEVER = (1980, 1, 1, 0, 0, 0)
FP8, BF16, NVFP4, INT4, SMALL_BF16 = "8b-fp8", "8b-bf16", "8b-nvfp4", "8b-int4", "1b-bf16"
"""Plans without weights of Llama-3.1-8B and 3.2-1B for 8 sequences of 4,096 tokens; "8b-fp8" has FP8 activations."""
MANY, MANY_BF16_CACHE, NVFP4_FP8 = "8b-fp8-many", "8b-fp8-many-kvbf16", "8b-nvfp4-many"
"""For 256 sequences, all with FP8 activations: FP8 with a cache in FP8 and in bf16, and NVFP4 with one in FP8."""


@dataclass(frozen=True)
class Code:
    """A compiled kernel in `code.bin`: what its launch needs, and where its bytes are.

    types: of the arguments without the two scratch pointers that follow. cubin, ptx: offset and size.
    """

    kernel: str
    entry: str
    types: tuple[str, ...]
    warps: int
    shared: int
    global_scratch: int
    profile_scratch: int
    pdl: bool
    registers: int
    spills: int
    cubin: tuple[int, int]
    ptx: tuple[int, int]


@dataclass(frozen=True)
class CaseTensor:
    """A tensor of a case: dtype of `runtime/plan`, shape, whether it is written, first bytes, and what must come out.

    initial, expected: names of arrays in `cases.npz`: u8 bytes, and numbers of the same shape in which NaN means that
    any value is right, float64 or, of floating-point tensors, float32, which tells more than any tolerance. Without
    `initial` it starts as bytes 0xFF, which are NaN or -1.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    written: bool
    initial: str | None
    expected: str | None


@dataclass(frozen=True)
class CarriedCase:
    """A launch with numbers. arguments: a tensor's name, or a number. tolerance: max|a-b| / max|b|, on a device."""

    name: str
    code: str
    grid: tuple[int, int, int]
    arguments: tuple[str | int | float, ...]
    tensors: tuple[CaseTensor, ...]
    tolerance: float


@dataclass(frozen=True)
class Candidate:
    """A tile of a swept linear, as `Tile` has it by field, and how it is launched."""

    tile: Mapping[str, int | str]
    code: str
    grid: tuple[int, int, int]
    arguments: tuple[str | int | float, ...]


@dataclass(frozen=True)
class Swept:
    """A linear and the tiles to try, the heuristic's first. tensors: dtype and shape by the names in `arguments`.

    weights: those of the tensors that are weights. kind, n, k, format, tokens: the key of a row of tactics.
    bytes, operations: of one launch, as its plan prices it.
    """

    kind: str
    n: int
    k: int
    format: str
    tokens: int
    bytes: int
    operations: int
    tensors: Mapping[str, tuple[str, tuple[int, ...]]]
    weights: tuple[str, ...]
    candidates: tuple[Candidate, ...]


@dataclass
class CarryWriter:
    """Collects code by content; `close` writes the folder's index."""

    folder: Path
    sm: int
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What made it: digest of the kernels' sources, tools, date and commit."""
    _code: dict[str, Code] = field(default_factory=dict)
    _at: dict[bytes, tuple[int, int]] = field(default_factory=dict)
    _bytes: bytearray = field(default_factory=bytearray)

    def add(self, code: Mapping[str, Any], cubin: bytes, ptx: str) -> str:
        """Keep a kernel; its id. code: the fields of `Code` but for the two places."""
        made = Code(**code, cubin=self._place(cubin), ptx=self._place(zlib.compress(ptx.encode(), 9)))
        name = hashlib.sha256(json.dumps(asdict(made), sort_keys=True).encode()).hexdigest()[:16]
        self._code[name] = made
        return name

    def place(self, cubin: bytes) -> tuple[int, int]:
        """Offset and size in `code.bin` of a cubin that a plan's module points to."""
        return self._place(cubin)

    def plan(self, name: str, plan: Plan) -> None:
        path = self.folder / "plans" / f"{name}.json.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress(plan.to_json(), mtime=0))

    def cases(self, cases: Sequence[CarriedCase], arrays: Mapping[str, np.ndarray]) -> None:
        (self.folder / CASES).write_text(json.dumps([asdict(case) for case in cases]) + "\n")
        with open(self.folder / ARRAYS, "wb") as file:
            np.savez_compressed(file, **arrays)  # pyright: ignore[reportArgumentType]

    def sweep(self, swept: Sequence[Swept]) -> None:
        (self.folder / SWEEP).write_text(json.dumps([asdict(one) for one in swept]) + "\n")

    def archive(self, part: str) -> None:
        """Make one file of what lies in a folder of that name: machine code and texts become a third."""
        with ZipFile(self.folder / f"{part}.zip", "w") as file:
            for path in sorted((self.folder / part).rglob("*")):
                made = ZipInfo(path.relative_to(self.folder / part).as_posix(), _NEVER)
                file.writestr(made, path.read_bytes(), ZIP_DEFLATED, 9)
        shutil.rmtree(self.folder / part)

    def close(self) -> None:
        (self.folder / CODE).write_bytes(self._bytes)
        index = {"sm": self.sm, "facts": self.facts, "code": {name: asdict(code) for name, code in self._code.items()}}
        (self.folder / INDEX).write_text(json.dumps(index) + "\n")

    def _place(self, data: bytes) -> tuple[int, int]:
        if data not in self._at:
            self._at[data] = len(self._bytes), len(data)
            self._bytes += data
        return self._at[data]


@dataclass(frozen=True)
class Carry:
    """The folder, read."""

    folder: Path

    @cached_property
    def index(self) -> dict[str, Any]:
        return json.loads((self.folder / INDEX).read_text())

    @property
    def sm(self) -> int:
        return self.index["sm"]

    @cached_property
    def code(self) -> dict[str, Code]:
        return {name: _code(one) for name, one in self.index["code"].items()}

    @cached_property
    def data(self) -> bytes:
        return (self.folder / CODE).read_bytes()

    def cubin(self, name: str) -> bytes:
        offset, size = self.code[name].cubin
        return self.data[offset : offset + size]

    def ptx(self, name: str) -> str:
        offset, size = self.code[name].ptx
        return zlib.decompress(self.data[offset : offset + size]).decode()

    @cached_property
    def plans(self) -> tuple[str, ...]:
        return tuple(sorted(path.name.removesuffix(".json.gz") for path in (self.folder / "plans").glob("*.json.gz")))

    def plan(self, name: str) -> Plan:
        text = gzip.decompress((self.folder / "plans" / f"{name}.json.gz").read_bytes())
        return Plan.from_json(text, what=name)

    def unpacked(self, part: str) -> Path:
        """The folder of a part that may be an archive, which is unpacked once; there is none if it is absent."""
        archive = self.folder / f"{part}.zip"
        if not archive.exists():
            return self.folder / part
        digest = hashlib.sha256(archive.read_bytes()).hexdigest()[:16]
        made = Path(tempfile.gettempdir()) / f"llmc-carry-{digest}" / part
        if not made.exists():
            made.parent.mkdir(parents=True, exist_ok=True)
            folder = Path(tempfile.mkdtemp(dir=made.parent))
            with ZipFile(archive) as file:
                file.extractall(folder)
            folder.rename(made)
        return made

    @cached_property
    def cases(self) -> tuple[CarriedCase, ...]:
        return tuple(map(_case, json.loads((self.folder / CASES).read_text())))

    @cached_property
    def arrays(self) -> Mapping[str, np.ndarray]:
        """Of the cases; each is read when it is asked for."""
        return np.load(self.folder / ARRAYS)

    @cached_property
    def swept(self) -> tuple[Swept, ...]:
        return tuple(map(_swept, json.loads((self.folder / SWEEP).read_text())))


def _code(one: Mapping[str, Any]) -> Code:
    tuples = {name: tuple(one[name]) for name in ("types", "cubin", "ptx")}
    return Code(**{**one, **tuples})


def _case(one: Mapping[str, Any]) -> CarriedCase:
    tensors = tuple(CaseTensor(**{**tensor, "shape": tuple(tensor["shape"])}) for tensor in one["tensors"])
    return CarriedCase(**{**one, "grid": tuple(one["grid"]), "arguments": tuple(one["arguments"]), "tensors": tensors})


def _swept(one: Mapping[str, Any]) -> Swept:
    tensors = {name: (dtype, tuple(shape)) for name, (dtype, shape) in one["tensors"].items()}
    candidates = tuple(
        Candidate(c["tile"], c["code"], tuple(c["grid"]), tuple(c["arguments"])) for c in one["candidates"]
    )
    return Swept(**{**one, "tensors": tensors, "weights": tuple(one["weights"]), "candidates": candidates})
