"""What an engine's header may list, and where: weights, sections, padding, and what the manifest says of each."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping

from ..errors import EngineError, nearest
from ..files.hashing import chunks
from ..files.safetensors import TensorInfo
from ..numbers import RAW_DTYPE
from .manifest import Manifest, content_of

ALIGNMENT = 256
RESERVED = "__llmc__/"
PADDING = f"{RESERVED}pad/"
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,256}")


def is_tensor_name(name: str) -> bool:
    """True if `name` is a legal name of a weight in an engine."""
    return bool(_NAME.fullmatch(name)) and ".." not in name


def content_digest(manifest: str | bytes, tensors: Mapping[str, TensorInfo]) -> str:
    """SHA-256 of an engine's content without measured values: builds of equal input are equal on any two machines."""
    layout = {name: (info.dtype, info.shape) for name, info in tensors.items()}
    return hashlib.sha256(content_of(manifest, layout)).hexdigest()


def check_layout(files: Mapping[str, Mapping[str, TensorInfo]], manifest: Manifest) -> None:
    """Checks that every tensor is a weight, a section or padding of the manifest, and that every view is aligned.

    `files` holds the tensors of each file by the file's name in errors, the first one first: it has all sections.
    """
    known: set[str] = set()
    for what, tensors in files.items():
        _check_file(tensors, manifest, what)
        if twice := known.intersection(tensors):
            raise EngineError(f"expected {min(twice)!r} in one file of an engine", found=f"a second one in {what}")
        known.update(tensors)
    first, tensors = next(iter(files.items()))
    sections = [RESERVED + section for section in manifest.sections]
    for listed, there in (*((name, known) for name in manifest.tensors), *((name, tensors) for name in sections)):
        if listed not in there or listed.startswith(PADDING):
            found = f"no such tensor{nearest(listed, there)}"
            raise EngineError(f"expected {listed!r}, which the manifest lists, in {first}", found=found)


def _check_file(tensors: Mapping[str, TensorInfo], manifest: Manifest, what: str) -> None:
    for name, info in tensors.items():
        plain = info.dtype == "U8" and len(info.shape) == 1
        if name.startswith(PADDING):
            if not plain or info.nbytes >= ALIGNMENT:
                found = f"{info.dtype} {list(info.shape)}"
                raise EngineError(
                    f"expected {name!r} of {what} as U8 padding of fewer than {ALIGNMENT} bytes", found=found
                )
        elif name.startswith(RESERVED):
            section = name.removeprefix(RESERVED)
            if not plain or section not in manifest.sections:
                found = f"{info.dtype} {list(info.shape)}{nearest(section, manifest.sections)}"
                raise EngineError(f"expected {name!r} of {what} as a U8 section that the manifest lists", found=found)
        else:
            _check_weight(info, manifest, what)


def _check_weight(info: TensorInfo, manifest: Manifest, what: str) -> None:
    if not is_tensor_name(info.name):
        raise EngineError(f"expected tensor names of A-Z a-z 0-9 _ . - in {what}", found=repr(info.name[:256]))
    if info.dtype not in RAW_DTYPE:
        found = f"{info.dtype}{nearest(info.dtype, RAW_DTYPE)}"
        raise EngineError(f"expected a dtype of engines for tensor {info.name!r} of {what}", found=found)
    if info.offset % RAW_DTYPE[info.dtype].itemsize:
        raise EngineError(
            f"expected aligned {info.dtype} for tensor {info.name!r} of {what}", found=f"byte {info.offset}"
        )
    digests, parts = manifest.tensors.get(info.name, ()), chunks(info.offset, info.nbytes)
    if len(digests) != len(parts):
        raise EngineError(
            f"expected {len(parts)} chunk digests for tensor {info.name!r} of {what}", found=f"{len(digests)}"
        )
