"""Where every tensor of an engine lies: in which file, and at which byte, before any weight is read."""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...runtime.engine_file.bind import Stored
from ...runtime.engine_file.layout import ALIGNMENT, PADDING, is_tensor_name
from ...runtime.engine_file.manifest import MAX_FILES
from ...runtime.errors import RecipeError
from ...runtime.files.hashing import chunk_count
from ...runtime.files.safetensors import TensorInfo
from ...runtime.files.strict_json import canonical
from ...runtime.numbers import RAW_DTYPE

Groups = Sequence[Sequence[Stored]]
"""All tensors in the order of the engine; the tensors of a group are adjacent, without padding."""
_PER_FILE = 128
"""Bytes of the manifest for each further file, and more."""
_METADATA = 512
"""Bytes of a further file's header without its tensors, and more."""
_PER_TENSOR, _PER_NUMBER = 96, 20
"""Bytes of a header for a tensor without its name, and for each number of its shape, and more."""
_PER_SECTION = 448
"""Bytes of a section of ranks in the header and the manifest: its name twice and its digest, and more."""
_PER_PADDING = _PER_TENSOR + _PER_NUMBER + len(PADDING) + 8


@dataclass(frozen=True)
class MaxShardSize:
    """The most bytes of a file, of which the first one has `sections` bytes of sections at most."""

    bytes: int
    sections: int


@dataclass(frozen=True)
class FileLayout:
    """One file: its header ends at byte `data_start`, its last tensor at byte `end`."""

    infos: dict[str, TensorInfo]
    data_start: int
    end: int


def default_reserve(groups: Groups, sections: int = 0) -> int:
    """Bytes reserved for the header: lineage, bindings of a few profiles, a digest of 64 digits per 16 MiB, sections.

    Without `sections` there is room for a hundred.
    """
    digests = [chunk_count(tensor.nbytes) for group in groups for tensor in group]
    return (128 << 10) + (2 << 10) * len(digests) + 72 * sum(digests) + _PER_SECTION * sections


def reserve_for(groups: Groups, sections: int, weights: Iterable[Mapping[str, Any]]) -> int:
    """`default_reserve`, and what the `weights` of profiles take beyond its room for them.

    A stack of experts is one tensor, of which a profile without QMoE binds each expert by itself.
    """
    bindings = sum(len(json.dumps(canonical(one).decode())) for one in weights)
    return default_reserve(groups, sections) + max(0, bindings - (1 << 10) * sum(map(len, groups)))


def lay_out(groups: Groups, reserve: int, most: MaxShardSize | None) -> list[FileLayout]:
    """The files of an engine: one, unless that would be larger than `most`; `reserve` is for the first one's header.

    Raises:
        RecipeError: no split has files of `most` bytes; names the least.
        ValueError: the groups are none.
    """
    whole = whole_end(groups, reserve) + (most.sections if most else 0)
    if most is None or whole <= most.bytes:
        return _placed(groups, [len(groups)], reserve)
    reserve += _PER_FILE * MAX_FILES
    counts = _counts(groups, reserve, most.bytes, most.sections)
    if counts is None:
        raise _too_small(groups, reserve, most, whole)
    return _placed(groups, counts, reserve)


def whole_end(groups: Groups, reserve: int) -> int:
    """The byte at which the last tensor of an engine of one file ends; `reserve` is for its header."""
    return _end(groups, _start(reserve))


def _start(header: int) -> int:
    """The byte at which the tensors of a file begin whose header has at most so many bytes."""
    return -(-(8 + header) // ALIGNMENT) * ALIGNMENT


def _aligned(at: int) -> int:
    return -(-at // ALIGNMENT) * ALIGNMENT


def _end(groups: Groups, at: int) -> int:
    """The byte at which the last tensor ends if the first begins at byte `at`."""
    for group in groups:
        at = _aligned(at) + sum(tensor.nbytes for tensor in group)
    return at


def _header(group: Sequence[Stored]) -> int:
    """Bytes of a header for the tensors of a group and the padding before them, at most."""
    return _PER_PADDING + sum(len(one.name) + _PER_TENSOR + _PER_NUMBER * len(one.shape) for one in group)


def _counts(groups: Groups, reserve: int, size: int, sections: int) -> list[int] | None:
    """How many groups each file takes, the first one as many as fit, and so on; None if one does not fit at all."""
    counts, header, end = [0], 0, _start(reserve) + sections
    if end > size:
        return None
    for group in groups:
        data, more = sum(tensor.nbytes for tensor in group), _header(group)
        if len(counts) > 1:
            end += _start(header + more) - _start(header)
        if _aligned(end) + data > size:
            counts.append(0)
            header = _METADATA
            end = _start(header + more)
        counts[-1] += 1
        header += more
        end = _aligned(end) + data
        if end > size or len(counts) > MAX_FILES:
            return None
    return counts


def _too_small(groups: Groups, reserve: int, most: MaxShardSize, whole: int) -> RecipeError:
    """Names the least size, at most the `whole`; a search finds it: with more room no file takes fewer groups."""
    largest = max(groups, key=lambda group: sum(tensor.nbytes for tensor in group), default=())
    least = bisect_left(range(whole), True, key=lambda size: bool(_counts(groups, reserve, size, most.sections)))
    unit, name = (1_000_000, "M") if least >= 10_000_000 else (1000, "K")
    adjacent = f"{len(largest)} tensors that lie side by side" if len(largest) > 1 else "one tensor"
    return RecipeError(
        f"cannot split the engine into at most {MAX_FILES} files of {most.bytes} bytes",
        found=f"{_start(reserve) + most.sections} bytes of header and sections in the first, and "
        f"{sum(tensor.nbytes for tensor in largest)} bytes of {adjacent} ({largest[0].name if largest else 'none'})",
        fix=f"--max-shard-size {-(-least // unit)}{name} or more",
    )


def _placed(groups: Groups, counts: Sequence[int], reserve: int) -> list[FileLayout]:
    """The files that take so many groups each; a padding tensor stands before each group that needs one."""
    files: list[FileLayout] = []
    taken: set[str] = set()
    number = 0
    for file, count in enumerate(counts):
        header = reserve if file == 0 else _METADATA + sum(map(_header, groups[number : number + count]))
        at = data_start = _start(header)
        infos: dict[str, TensorInfo] = {}
        for group in groups[number : number + count]:
            number += 1
            if gap := _aligned(at) - at:
                name = f"{PADDING}{number}"
                infos[name] = TensorInfo(name, "U8", (gap,), at, gap, file)
                at += gap
            for tensor in group:
                name, dtype = tensor.name, tensor.dtype
                if not is_tensor_name(name) or name in taken:
                    raise ValueError(f"{name!r}: a plain tensor name that is still free")
                if at % RAW_DTYPE[dtype].itemsize:
                    raise ValueError(f"{name}: {dtype} cannot lie at byte {at}: give it another group")
                taken.add(name)
                infos[name] = TensorInfo(name, dtype, tensor.shape, at, tensor.nbytes, file)
                at += tensor.nbytes
        files.append(FileLayout(infos, data_start, at))
    return files
