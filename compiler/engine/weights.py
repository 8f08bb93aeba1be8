"""Streams canonical weights: reads rows, quantizes and writes them, with only a few chunks in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import torch

from ...passes.graph.graph import Canonical, Computed, Copied, Quantized
from ...quantize import FORMATS
from ...quantize.format import non_finite, require_finite
from ...runtime.dtypes import CONFIG_DTYPES
from ...runtime.errors import CheckpointError, ResourceError
from ...runtime.machine import resident_memory, system_memory
from ..checkpoint.weights.source import Source
from .layout import Groups
from .writer import EngineWriter

CHUNK_BYTES = 16 << 20
"""Source bytes of one read; with read-ahead, two chunks and their codes are in memory."""

_TORCH = {stored: getattr(torch, name) for name, stored in CONFIG_DTYPES.items()}
_HELD = 20
"""Chunks at once. With 16, int8 of the shape below peaked 10 MiB above a limit of 500M (random weights)."""
_LATER_BYTES = 112 << 20
"""What a build takes beside its memory before the first weight and its chunks: threads, the golden probe.
Measured on 3 layers of Llama-3.1-8B's shape in int4 and nvfp4: 96 MiB with chunks of 1 MiB, less with larger ones."""
_POWERS, _LARGEST_POWER = "F8_E8M0", 252
"""Scales that are powers of two; E2M1 ends at 6, and 6 * 2^125 is finite in float32."""
Advance = Callable[[int], None]
"""Receives the number of source bytes just done."""


def chunk_bytes(memory_limit: int | None) -> int:
    """Source bytes per chunk: read-ahead, quantizing and the probe hold at most twenty times that at once.

    `memory_limit` is the bytes of this process at its peak; by default it may take all that is free.

    Raises:
        ResourceError: the limit is too small for chunks of 1 MiB.
    """
    resident = resident_memory()
    limit = resident + system_memory().available if memory_limit is None else memory_limit
    least = resident + _LATER_BYTES + (16 << 20)
    if limit < least:
        raise ResourceError(
            f"cannot build within {limit / (1 << 20):.0f} MiB",
            found=f"{resident / (1 << 20):.0f} MiB in use before the first weight",
            fix=f"--memory-limit {least / (1 << 20) + 5:.0f}MiB or more",
        )
    return min(CHUNK_BYTES, max(1 << 20, (limit - resident - _LATER_BYTES) // _HELD))


def groups(canonical: Mapping[str, Canonical]) -> Groups:
    """The engine's tensors by group, in order of first use."""
    found: dict[str, list[Canonical]] = {}
    for tensor in canonical.values():
        found.setdefault(tensor.group, []).append(tensor)
    return tuple(found.values())


def source_bytes(canonical: Mapping[str, Canonical], source: Source) -> int:
    """Bytes of the checkpoint tensors that `write` reads, for the progress display."""
    return sum(source.info(name).nbytes for name in {t for t in map(_source_of, canonical.values()) if t})


def write(
    canonical: Mapping[str, Canonical],
    source: Source,
    writer: EngineWriter,
    *,
    chunk_bytes: int = CHUNK_BYTES,
    advance: Advance = lambda _: None,
) -> tuple[str, ...]:
    """Write every canonical tensor; returns warnings (constant tensors).

    `advance` receives the number of source bytes after each chunk.

    Raises:
        CheckpointError: a tensor, which the error names, holds NaN or Inf, or a scale that is one.
        ResourceError: the disk is full.
    """
    warnings: list[str] = []
    with ThreadPoolExecutor(1, thread_name_prefix="read-ahead") as reader:
        stream = _Stream(source, writer, reader, chunk_bytes, advance)
        for tensor in canonical.values():
            if isinstance(tensor.origin, Computed):
                writer.write(tensor.name, 0, np.ascontiguousarray(tensor.origin.data))
            elif isinstance(tensor.origin, Copied):
                warnings += stream.copy(tensor, tensor.origin)
        for name, parts in _quantized(canonical).items():
            warnings += stream.quantize(name, parts)
    return tuple(warnings)


def _source_of(tensor: Canonical) -> str:
    return tensor.origin.tensor if isinstance(tensor.origin, Copied | Quantized) else ""


def _quantized(canonical: Mapping[str, Canonical]) -> dict[str, list[tuple[Canonical, Quantized]]]:
    """Checkpoint tensor to its quantized components, which one pass over its rows writes."""
    result: dict[str, list[tuple[Canonical, Quantized]]] = {}
    for tensor in canonical.values():
        if isinstance(tensor.origin, Quantized):
            result.setdefault(tensor.origin.tensor, []).append((tensor, tensor.origin))
    return result


@dataclass(frozen=True)
class _Stream:
    """Moves rows from a source to a writer by chunks, and reads the next chunk meanwhile."""

    source: Source
    writer: EngineWriter
    reader: ThreadPoolExecutor
    chunk_bytes: int
    advance: Advance
    amax: dict[tuple[str, ...], float] = field(default_factory=dict)

    def copy(self, tensor: Canonical, origin: Copied) -> list[str]:
        stored = self.source.info(origin.tensor).name
        done, experts, constant = 0, 0, _Constant(stored)
        for rows in self._chunks(origin.tensor):
            if len(tensor.shape) == 3:
                for at, weight in enumerate(rows, start=experts):
                    _check(weight, tensor.dtype, _of_expert(self.source, origin.tensor, at))
            else:
                _check(rows, tensor.dtype, stored)
            experts += len(rows)
            constant.see(rows)
            self.writer.write(tensor.name, done, rows)
            done += rows.nbytes
            self.advance(rows.nbytes)
        scales = tensor.dtype == _POWERS  # of random blocks all may be equal
        return constant.warnings() if len(tensor.shape) > 1 and not scales else []

    def quantize(self, name: str, parts: Sequence[tuple[Canonical, Quantized]]) -> list[str]:
        origin = parts[0][1]
        fmt = FORMATS[origin.format]
        alone = self.source.info(name).shape[2:] == ()  # one weight, and no stack of all experts' ones
        amax = self._group_amax(origin.shares) if fmt.shares_scale and alone else None
        by_suffix = {part.suffix: tensor for tensor, part in parts}
        done = dict.fromkeys(by_suffix, 0)
        info = self.source.info(name)
        constant, experts = _Constant(info.name), 0
        for rows in self._chunks(name):
            constant.see(rows)
            for at, weight in enumerate((rows,) if alone else rows, start=experts):
                try:
                    stored = fmt.quantize(as_torch(weight, info.dtype), amax)
                except CheckpointError as error:
                    raise non_finite(info.name if alone else _of_expert(self.source, name, at)) from error
                for suffix, data in stored.items():
                    tensor = by_suffix[suffix]
                    if not tensor.shape and done[suffix]:
                        continue
                    self.writer.write(tensor.name, done[suffix], data)
                    done[suffix] += data.nbytes
            experts += len(rows)
            self.advance(rows.nbytes)
        return constant.warnings()

    def _group_amax(self, tensors: tuple[str, ...]) -> float:
        """Largest magnitude over the tensors that share a global scale, computed once per group."""
        if tensors not in self.amax:
            self.amax[tensors] = max(
                require_finite(as_torch(rows, info.dtype), info.name)
                for name in tensors
                for info in (self.source.info(name),)
                for rows in self._chunks(name)
            )
        return self.amax[tensors]

    def _chunks(self, name: str) -> Iterator[np.ndarray]:
        info = self.source.info(name)
        total = info.shape[0] if info.shape else 1
        step = max(1, self.chunk_bytes // max(1, info.nbytes // max(total, 1)))
        spans = [(start, min(start + step, total)) for start in range(0, total, step)]
        ahead = self.reader.submit(self.source.rows, name, *spans[0])
        for following in [*spans[1:], None]:
            rows = ahead.result()
            if following is not None:
                ahead = self.reader.submit(self.source.rows, name, *following)
            yield rows


def _check(rows: np.ndarray, dtype: str, name: str) -> None:
    """Refuse what is no finite number: in weights, or in powers of two; every code of a format is one.

    Raises:
        CheckpointError: a number is NaN or infinite, or a power so large that a weight may be; says `name`.
    """
    if dtype in _TORCH:
        require_finite(as_torch(rows, dtype), name)
    elif dtype == _POWERS and rows.size and rows.max() > _LARGEST_POWER:
        raise CheckpointError(
            f"expected scales of at most {_LARGEST_POWER} (2^{_LARGEST_POWER - 127}) in {name}",
            found="255, which is NaN" if rows.max() == 255 else str(rows.max()),
            fix="a checkpoint whose weights are all finite",
        )


def _of_expert(source: Source, name: str, expert: int) -> str:
    """The files' tensors with an expert's part of a stack, for an error."""
    return " or ".join(one.replace("*", str(expert)) for one in source.files_of(name))


def as_torch(rows: np.ndarray, dtype: str) -> torch.Tensor:
    """Raw rows (bf16 as uint16) as a tensor over the same memory.

    Raises:
        CheckpointError: `dtype` is not BF16, F16 or F32.
    """
    if dtype not in _TORCH:
        raise CheckpointError(f"cannot read weights of dtype {dtype}", fix="BF16, F16 or F32")
    return torch.from_numpy(rows).view(_TORCH[dtype]) if dtype == "BF16" else torch.from_numpy(rows)


class _Constant:
    """Detects a tensor whose elements are all equal: valid, but unlikely to be a trained weight."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._first: object = None
        self._same = True

    def see(self, rows: np.ndarray) -> None:
        flat = rows.reshape(-1)
        if self._first is None:
            self._first = flat[0]
        self._same = self._same and flat[0] == self._first and flat[-1] == self._first and bool((flat == flat[0]).all())

    def warnings(self) -> list[str]:
        return [f"tensor {self._name} is constant"] if self._same else []
