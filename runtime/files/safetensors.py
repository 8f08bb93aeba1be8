"""A strict reader of safetensors headers: the library accepts duplicate tensors, odd names, any number of entries."""

from __future__ import annotations

import math
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from ..dtypes import DTYPES
from ..errors import LlmcError, nearest
from ..guard.shortage import shortage
from ..machine import without_collections
from .mistaken import near_path
from .strict_json import PLACEHOLDERS, loads

DTYPE_BITS: dict[str, int] = {name: 8 * dtype.bytes for name, dtype in DTYPES.items()}
DTYPE_BITS |= {"C64": 64, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8}
"""Bits of every dtype of the format; llmc reads the numbers of those in DTYPES alone."""
MAX_HEADER_BYTES = 100_000_000
"""The limit of the format's specification."""
_BYTES_PER_ENTRY = 128
_VALUES_PER_ENTRY = 16
_MAX_RANK = 32
_FIELDS = ("dtype", "shape", "data_offsets")
_LIMIT = 1 << 63
_NOT_SAFETENSORS = (
    *((mark, f"{is_a}, not the weights", fix) for mark, is_a, fix in PLACEHOLDERS),
    (b"pk\x03\x04", "a zip archive (perhaps a PyTorch pickle)", "convert it to safetensors; pickles are never opened"),
    (b"gguf", "a GGUF file", "the safetensors form of the checkpoint"),
)
_TEXT = frozenset(b"\t\n\r" + bytes(range(32, 127)))
"""Bytes of a plain text; a header's length always has others."""


@dataclass(frozen=True)
class TensorInfo:
    """Where one tensor lies: `offset` counts bytes from the start of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int
    file: int = 0
    """Its place among the files of an engine; tensors of two files are never adjacent."""


@dataclass(frozen=True)
class Header:
    """A checked header: its tensors, in order of offset, cover the file from `data_start` to `file_bytes` exactly."""

    tensors: dict[str, TensorInfo]
    metadata: dict[str, str]
    data_start: int
    file_bytes: int


def read_header(
    path: Path, *, error: type[LlmcError], max_tensors: int = 200_000, max_bytes: int = MAX_HEADER_BYTES
) -> Header:
    """The checked header of a safetensors file; every size is compared with the file's, and no weight is read.

    Raises:
        error: the file cannot be read or its header is malformed; names the file and the tensor.
    """
    with open_regular(path, error=error) as (fd, size):
        raw = read_header_bytes(fd, size, what=str(path), error=error, max_bytes=max_bytes)
    return parse_header(raw, size, what=str(path), error=error, max_tensors=max_tensors)


@contextmanager
def open_regular(path: Path, *, error: type[LlmcError]) -> Iterator[tuple[int, int]]:
    """A read-only descriptor of a regular file and its size in bytes; opening never blocks, not even on a FIFO.

    Raises:
        error: the path cannot be opened, or is not a regular file.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as problem:
        near = near_path(path) if isinstance(problem, FileNotFoundError) else ""
        found = f"{getattr(problem, 'strerror', problem)}{near}"
        raise shortage(problem) or error(f"cannot open {path}", found=found) from None
    try:
        facts = os.fstat(fd)
        if not stat.S_ISREG(facts.st_mode):
            raise error(f"expected a regular file at {path}", found=kind_of_file(facts.st_mode))
        yield fd, facts.st_size
    finally:
        os.close(fd)


def read_at(fd: int, offset: int, nbytes: int, *, what: str, error: type[LlmcError]) -> bytes:
    """Exactly `nbytes` bytes from `offset`.

    Raises:
        error: they cannot be read, or the file ends before (it has shrunk since it was opened).
    """
    parts: list[bytes] = []
    missing = nbytes
    while missing:
        try:
            part = os.pread(fd, missing, offset + nbytes - missing)
        except OSError as problem:
            asked = f"cannot read {nbytes} bytes at {offset} of {what}"
            raise shortage(problem, asked) or error(asked, found=str(problem.strerror)) from None
        if not part:
            found = f"the end of the file {missing} bytes too early"
            raise error(f"expected {nbytes} bytes at {offset} of {what}", found=found)
        parts.append(part)
        missing -= len(part)
    return b"".join(parts)


def read_header_bytes(fd: int, size: int, *, what: str, error: type[LlmcError], max_bytes: int) -> bytes:
    """The JSON of the header; its length is compared with the file's size and `max_bytes` before it is read.

    Raises:
        error: the file is not a safetensors file, or its header is too long.
    """
    start = read_at(fd, 0, min(size, 64), what=what, error=error)
    for mark, found, fix in _NOT_SAFETENSORS:
        if start.lstrip().lower().startswith(mark):
            raise error(f"expected {what} as a safetensors file", found=found, fix=fix)
    if size < 8:
        raise error(f"expected a safetensors file of at least 8 bytes at {what}", found=f"{size} bytes")
    if all(byte in _TEXT for byte in start):
        raise error(f"expected {what} as a safetensors file", found="a text file", fix="another file")
    length = int.from_bytes(start[:8], "little")
    if length > size - 8:
        raise error(
            f"expected a header of {length} bytes in {what}, as its first 8 bytes say",
            found=f"a file of {size} bytes",
            fix="fetch the file again: it is cut off or damaged",
        )
    if length > max_bytes:
        raise error(f"expected a header of at most {max_bytes} bytes in {what}", found=f"{length} bytes")
    if length == 0 or start[8:9] != b"{":
        found = f"{start[8:9]!r}, length {length}"
        raise error(f"expected a safetensors header in {what}, which begins with '{{'", found=found)
    return read_at(fd, 8, length, what=what, error=error)


def parse_header(
    raw: bytes,
    file_bytes: int,
    *,
    what: str,
    error: type[LlmcError],
    max_tensors: int,
    in_order: bool = False,
    before: int = 0,
) -> Header:
    """Checks the JSON `raw` of a header that starts at byte 8 of a file of `file_bytes`.

    With `in_order`, its entries must have the order of their tensors in the file. `before` counts the tensors of other
    files, which are among the `max_tensors`.

    Raises:
        error: the header is malformed, or its tensors do not cover the file exactly; names `what` and the tensor.
    """
    # Each entry has this key, so that too many are refused unread.
    if (entries := before + raw.count(b'"data_offsets"')) > max_tensors:
        others = " and the files before it" if before else ""
        raise error(f"expected at most {max_tensors} tensors in {what}{others}", found=f"about {entries}")
    with without_collections():
        return _parsed(raw, file_bytes, what, error, max_tensors, in_order)


def _parsed(raw: bytes, file_bytes: int, what: str, error: type[LlmcError], max_tensors: int, in_order: bool) -> Header:
    data_start = 8 + len(raw)
    document = loads(
        raw,
        what=f"{what}: header",
        error=error,
        max_bytes=min(MAX_HEADER_BYTES, (max_tensors + 8192) * _BYTES_PER_ENTRY),
        max_depth=4,
        max_values=(max_tensors + 8192) * _VALUES_PER_ENTRY,
    )
    metadata = _metadata(document.pop("__metadata__", {}), what, error)
    if len(document) > max_tensors:
        raise error(f"expected at most {max_tensors} tensors in {what}", found=f"{len(document)}")
    infos = [_entry(name, entry, data_start, what, error) for name, entry in document.items()]
    if in_order:
        _check_order(infos, what, error)
    infos.sort(key=lambda info: (info.offset, info.nbytes))
    _check_tiling(infos, data_start, file_bytes, what, error)
    return Header({info.name: info for info in infos}, metadata, data_start, file_bytes)


def _metadata(value: Any, what: str, error: type[LlmcError]) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise error(f"expected __metadata__ of {what} to map strings to strings", found="other values")
    return value


def _entry(name: str, entry: Any, data_start: int, what: str, error: type[LlmcError]) -> TensorInfo:
    refuse = partial(_refusal, name, what, error)  # called for hundreds of thousands of entries
    if not 0 < len(name) <= 1024 or not name.isprintable():
        raise refuse("a name of 1 to 1024 printable characters", f"{len(name)} characters")
    if not isinstance(entry, dict):
        raise refuse("an entry with dtype, shape and data_offsets", type(entry).__name__)
    if len(entry) != len(_FIELDS) or not all(map(entry.__contains__, _FIELDS)):
        for key in entry:
            if key not in _FIELDS:
                raise refuse("only dtype, shape and data_offsets", f"the key {key!r}{nearest(key, _FIELDS)}")
        raise refuse("dtype, shape and data_offsets", f"only {sorted(entry)}")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        raise refuse("a dtype of the safetensors format", f"{dtype!r}{nearest(str(dtype), DTYPE_BITS)}")
    if not isinstance(shape, list) or len(shape) > _MAX_RANK or not _whole(shape):
        raise refuse(f"a shape of at most {_MAX_RANK} non-negative integers", shape)
    if not isinstance(offsets, list) or len(offsets) != 2 or not _whole(offsets):
        raise refuse("data_offsets of two non-negative integers", offsets)
    # A zero dimension must not hide huge ones: numpy computes strides from all of them.
    bits = DTYPE_BITS[dtype] * (math.prod(shape) or math.prod([dim or 1 for dim in shape]))
    if bits >= _LIMIT or offsets[1] >= _LIMIT:
        raise refuse("fewer than 2^63 bits and bytes", f"shape {shape}, data_offsets {offsets}")
    bits = 0 if 0 in shape else bits
    if bits % 8:
        raise refuse("a whole number of bytes", f"{bits} bits of dtype {dtype} and shape {shape}")
    if offsets[1] - offsets[0] != bits // 8:
        raise refuse(f"{bits // 8} bytes, as dtype {dtype} and shape {shape} say", f"data_offsets {offsets}")
    return TensorInfo(name, dtype, tuple(shape), data_start + offsets[0], bits // 8)


def _refusal(name: str, what: str, error: type[LlmcError], expected: str, found: object) -> LlmcError:
    return error(f"expected {expected} for tensor {name[:256]!r} of {what}", found=f"{found}"[:256])


def _whole(numbers: list[Any]) -> bool:
    """True if these are whole numbers from 0; true and false are none."""
    for number in numbers:  # noqa: SIM110  # a generator takes twice the time on so few
        if type(number) is not int or number < 0:
            return False
    return True


def _check_order(infos: list[TensorInfo], what: str, error: type[LlmcError]) -> None:
    for one, after in pairwise(infos):
        if after.offset < one.offset:
            found = f"{one.name!r} at byte {one.offset} before {after.name!r} at byte {after.offset}"
            raise error(f"expected the tensors of {what} to be listed in the order of the file", found=found)


def _check_tiling(infos: list[TensorInfo], data_start: int, file_bytes: int, what: str, error: type[LlmcError]) -> None:
    end, last = data_start, None
    for info in infos:
        if info.offset != end:
            break
        end, last = end + info.nbytes, info
    else:
        info = None
    before = "the header" if last is None else repr(last.name)
    if info is not None:
        if info.offset < end:
            found = f"{info.name!r} begins at byte {info.offset}, {before} ends at byte {end}"
            raise error(f"expected tensors that do not overlap in {what}", found=found)
        found = f"bytes {end} to {info.offset} between {before} and {info.name!r} belong to no tensor"
        raise error(f"expected tensors without a hole between them in {what}", found=found)
    if end > file_bytes:
        fix = "fetch the file again: it is cut off"
        raise error(f"expected {what} to have {end} bytes, where {before} ends", found=f"{file_bytes} bytes", fix=fix)
    if end < file_bytes:
        found = f"{file_bytes} bytes, {file_bytes - end} more than the tensors cover"
        raise error(f"expected {what} to have {end} bytes, where {before} ends", found=found)


def kind_of_file(mode: int) -> str:
    """The kind of a file that is not regular, by the mode of its `stat`."""
    kinds = ((stat.S_ISDIR, "a folder"), (stat.S_ISFIFO, "a FIFO"), (stat.S_ISSOCK, "a socket"))
    return next((name for test, name in kinds if test(mode)), "a device")
