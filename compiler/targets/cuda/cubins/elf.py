"""Reads a cubin: its machine code, the layout of its parameters, the threads of a block.

A cubin is a 64-bit ELF file. Attributes have the names that cuobjdump -elf gives them (EIATTR_...); their layout was
determined from cubins of ptxas 13.0 and 13.4.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from .....runtime.errors import EngineError

_MAGIC = b"\x7fELF\x02\x01"
_HEADER, _SECTION = struct.Struct("<40xQ10xHHH"), struct.Struct("<IIQQQQIIQQ")
_NOBITS = 8
"""The type of a section that has a size but no bytes in the file."""
_WITH_BYTES = 4
"""The format of an attribute whose bytes follow it; all others have their value in the header."""
_REQUIRED_THREADS, _PARAMETER = 0x10, 0x17
"""EIATTR_REQNTID: three u32. EIATTR_KPARAM_INFO: index u32, ordinal u16, offset u16, u32 with the size at bit 18."""


@dataclass(frozen=True)
class Parameter:
    """Offset and size in bytes of a kernel's parameter."""

    offset: int
    size: int


@dataclass(frozen=True)
class Image:
    """One kernel of a cubin."""

    osabi: int
    """Byte 7 of the file."""
    abi: int
    """Byte 8 of the file."""
    code: bytes
    parameters: tuple[Parameter, ...]
    threads: tuple[int, int, int] | None
    """Threads of a block, (x, y, z), or None if any number is allowed."""


def image_of(cubin: bytes, entry: str) -> Image:
    """Read the cubin of one kernel.

    Raises:
        EngineError: it is not an ELF file, or has no such kernel.
    """
    if not cubin.startswith(_MAGIC):
        raise EngineError(f"expected kernel {entry!r} in a cubin", found="not a 64-bit ELF file")
    try:
        return _read(cubin, entry)
    except (struct.error, IndexError, KeyError, UnicodeDecodeError) as error:
        raise EngineError(f"expected kernel {entry!r} in a cubin", found=f"{type(error).__name__}: {error}") from error


def _read(cubin: bytes, entry: str) -> Image:
    sections = dict(_sections(cubin))
    parameters: dict[int, Parameter] = {}
    threads = None
    for attribute, payload in _attributes(sections[f".nv.info.{entry}"]):
        if attribute == _PARAMETER:
            _, ordinal, offset, word = struct.unpack("<IHHI", payload)
            parameters[ordinal] = Parameter(offset, word >> 18)
        elif attribute == _REQUIRED_THREADS:
            threads = struct.unpack("<III", payload)
    ordered = tuple(parameters[ordinal] for ordinal in range(len(parameters)))
    return Image(cubin[7], cubin[8], sections[f".text.{entry}"], ordered, threads)


def _sections(cubin: bytes) -> Iterator[tuple[str, bytes]]:
    table, size, count, names_at = _HEADER.unpack_from(cubin)
    headers = [_SECTION.unpack_from(cubin, table + index * size) for index in range(count)]
    names = headers[names_at][4]
    for name, kind, _, _, offset, length, *_ in headers:
        end = cubin.index(b"\0", names + name)
        yield cubin[names + name : end].decode(), b"" if kind == _NOBITS else cubin[offset : offset + length]


def _attributes(section: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at < len(section):
        form, attribute, value = struct.unpack_from("<BBH", section, at)
        at += 4
        if form == _WITH_BYTES:
            yield attribute, section[at : at + value]
            at += value
