"""What `llmc doctor --measure` has found out about this machine, and the file in the cache folder that keeps it."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

from .. import environment
from ..errors import DISTRIBUTION, EngineError
from ..files.records import plain, read
from ..files.sealed import read_sealed, write_sealed
from ..machine import cpu_count, cpu_name

FACTS = "machine"
"""The folder of these files in llmc's cache folder."""
TOKENS = (1, 2, 4, 16, 128)
"""Rows of x for which products are measured: a step of one token waits for memory, one of 128 for arithmetic."""
_FILE = re.compile(r"[0-9a-f]{16}\.json")
MEASURE = "llmc doctor --measure"
_Say = Callable[[str], None]


@dataclass(frozen=True)
class ProductFacts:
    """Speed of a product of x [M, K] with weights [N, K] that lie in memory, by all threads."""

    bits: int
    """Of a weight's code; 32: float32 weights."""
    block: int
    """Weights that share a scale; 0 for float32 weights."""
    weight_s: tuple[float, ...]
    """Seconds for each of the N K weights, with M of TOKENS."""


@dataclass(frozen=True)
class FormatFacts:
    """A build in one weight format, of a model that is small and yet larger than the build's chunks."""

    format: str
    source_byte_s: float
    """Seconds for each byte of the checkpoint that is read, quantized, written and hashed."""
    probe_weight_s: float
    """Seconds for each weight that the golden probe decodes and multiplies."""


@dataclass(frozen=True)
class BuildFacts:
    """Speeds of a build's stages."""

    start_s: float
    """From the start of the process to the first stage: libraries, headers, the tokenizer's check."""
    layer_s: float
    """Passes over one layer of one profile."""
    graph_s: float
    """Passes over a graph without layers, and the compilation of a cpu profile."""
    probe_s: float
    """The golden probe of a model with nearly no weights."""
    finish_s: float
    """The end of an engine with nearly no weights."""
    disk_read_byte_s: float
    disk_write_byte_s: float
    """With fsync."""
    hash_byte_s: float
    """SHA-256 on one core."""
    peak_bytes: int
    """Peak memory of the process, which hardly depends on model and format."""
    formats: tuple[FormatFacts, ...]

    def named(self, name: str) -> FormatFacts:
        """The facts of a weight format.

        Raises:
            KeyError: it was not measured.
        """
        return {one.format: one for one in self.formats}[name]


@dataclass(frozen=True)
class CpuFacts:
    """Measured speeds of one CPU with one number of threads; seconds unless it says otherwise."""

    llmc: str
    """The version that measured."""
    cpu: str
    threads: int
    date: str
    """Year, month and day."""
    read_bytes_per_s: float
    """Bytes/s that all threads read from memory."""
    products: tuple[ProductFacts, ...]
    product_s: float
    """A product with nearly no weights: what starting it costs."""
    attention_head_s: float
    """For each query head of the attention of one new token with an empty cache."""
    attention_byte_s: float
    """For each byte of the cache that one new token reads."""
    attention_operation_s: float
    """For each operation of the attention of many new tokens."""
    element_s: Mapping[str, float]
    """For each number that a node without weights makes, by kind of node (`nodes.Elements`)."""
    node_s: float
    """A node with nearly nothing to do."""
    step_s: float
    """The scheduler and the executor around a step, and a sampled token of a small vocabulary."""
    logit_s: float
    """For each logit of a sampled row."""
    build: BuildFacts | None = None
    """None where the extra `build` is not installed."""

    def product(self, bits: int, block: int) -> ProductFacts:
        """The facts of a layout of weights; of the nearest block where this one was not measured.

        Raises:
            KeyError: no layout of so many bits was measured.
        """
        known = [one for one in self.products if one.bits == bits]
        if not known:
            raise KeyError(bits)
        return min(known, key=lambda one: abs(math.log2(max(one.block, 1)) - math.log2(max(block, 1))))


def facts_path(cpu: str, threads: int) -> Path | None:
    """Where the facts of a CPU lie; None without a cache folder."""
    folder = environment.cache_folder()
    digest = hashlib.sha256(f"{cpu}\n{threads}".encode()).hexdigest()[:16]
    return None if folder is None else folder / FACTS / f"{digest}.json"


def facts_of_machines(cache: Path) -> list[Path]:
    """All files of facts in a cache folder."""
    return [path for path in sorted((cache / FACTS).glob("*")) if _FILE.fullmatch(path.name)]


def load_facts(threads: int | None = None, say: _Say = lambda _: None) -> CpuFacts | None:
    """The facts of this CPU with so many threads (default: as commands take them), or None.

    Facts that are damaged, or of another CPU, number of threads or llmc, are as absent; `say` is told.
    """
    cpu, count = cpu_name(), threads or environment.threads(None) or cpu_count()
    path = facts_path(cpu, count)
    if path is None or not path.is_file():
        return None
    try:
        found: CpuFacts = read(CpuFacts, read_sealed(path), str(path))
    except EngineError:
        say(f"facts of this machine in {path} are damaged: {MEASURE} makes new ones")
        return None
    from importlib.metadata import version  # 20 ms, which a machine without facts need not wait for

    wanted = {"llmc": version(DISTRIBUTION), "cpu": cpu, "threads": count}
    for key, value in wanted.items():
        if getattr(found, key) != value:
            say(f"facts of this machine in {path} are of {key} {getattr(found, key)}, not {value}: {MEASURE}")
            return None
    if any(not 0 <= number < math.inf for number in _numbers(found)) or any(
        len(one.weight_s) != len(TOKENS) for one in found.products
    ):
        say(f"facts of this machine in {path} are damaged: {MEASURE} makes new ones")
        return None
    return found


def keep_facts(found: CpuFacts) -> Path | None:
    """Write the facts to their file, and return it; None if there is no cache folder that can be written."""
    path = facts_path(found.cpu, found.threads)
    return path if path is not None and write_sealed(path, plain(found)) else None


def _numbers(value: Any) -> Iterator[float]:
    """Every number in a record."""
    if is_dataclass(value):
        value = [getattr(value, one.name) for one in fields(value)]
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, tuple | list):
        for one in value:
            yield from _numbers(one)
    elif isinstance(value, int | float):
        yield value
