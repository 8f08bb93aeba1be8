"""What somebody may have meant by a path, name or address that a command cannot use: near names, formats, hub pages."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ..errors import closest

_PART = r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}"
_HUB_ID = re.compile(rf"(?:hf://)?({_PART}/{_PART})(?:@([A-Za-z0-9][A-Za-z0-9._/-]*))?")
_ADDRESS = re.compile(r"(?:https?:/{1,2})?(?:www\.)?(?:huggingface\.co|hf\.co)/([^?#]*)", re.IGNORECASE)
_OTHER_ADDRESS = re.compile(r"https?:/", re.IGNORECASE)
"""One slash, as a path of the address has it."""
_PAGES = ("tree", "blob", "resolve", "raw", "commit")
"""In the address of a page the revision follows one of these."""
_NOT_MODELS = {"datasets": "a data set", "spaces": "a space", "docs": "documentation", "papers": "a paper"}
_MAX_NAMES = 10_000
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_SAFETENSORS = "the safetensors form of the model, from the repository that it was converted from"
_PICKLE = "a PyTorch pickle, which runs code when it is read: llmc never opens one"
_SANDBOX = "the safetensors form of the model, or convert it in a sandbox with save_pretrained"
_BY_MARK = ((b"GGUF", "a GGUF file", _SAFETENSORS), (b"PK\x03\x04", _PICKLE, _SANDBOX))
_BY_SUFFIX = {
    ".gguf": ("a GGUF file", _SAFETENSORS),
    **dict.fromkeys(PICKLES, (_PICKLE, _SANDBOX)),
    ".onnx": ("an ONNX model", _SAFETENSORS),
    ".h5": ("weights of TensorFlow", _SAFETENSORS),
    ".msgpack": ("weights of Flax", _SAFETENSORS),
}
FOREIGN = tuple(_BY_SUFFIX)
"""Endings of files with weights that llmc does not read."""


@dataclass(frozen=True)
class HubId:
    """A repository on the hub."""

    name: str
    revision: str | None
    """Branch, tag or commit; None means the main branch."""

    def __str__(self) -> str:
        return f"{self.name}@{self.revision}" if self.revision else self.name


def parse_hub_id(text: str) -> HubId | None:
    """Parse `org/name` or `org/name@revision`, with or without `hf://` before it; None for any other text.

    The name of a weight file is no id: somebody meant a file, which may not be there.
    """
    match = None if text.endswith(".safetensors") else _HUB_ID.fullmatch(text)
    return HubId(match[1], match[2]) if match and ".." not in text and not _ADDRESS.match(text) else None


def mistaken_address(text: str) -> tuple[str, str] | None:
    """Of an address in the web, what it is and what to pass instead; None for any other text."""
    page = _ADDRESS.match(text)
    if page is None:
        download = "the address's model as a folder: download it first"
        return ("an address in the web", download) if _OTHER_ADDRESS.match(text) else None
    first, *rest = [part for part in page[1].split("/") if part] or [""]
    if first in _NOT_MODELS:
        return f"the address of {_NOT_MODELS[first]} on the hub, not of a model", "a model's id, as org/name"
    revision = rest[2] if len(rest) > 2 and rest[1] in _PAGES and rest[2] != "main" else None
    found = parse_hub_id("/".join([first, *rest[:1]]))
    if found is None:
        return "the address of no model on the hub", "a model's id, as org/name"
    return "the address of a page on the hub", f"the id of that model: {HubId(found.name, revision)}"


def foreign_format(path: Path) -> tuple[str, str] | None:
    """Of a file with weights in a form that llmc does not read: which form, and what to take instead; else None."""
    with suppress(OSError):
        if path.is_file():
            with open(path, "rb") as file:
                start = file.read(8)
            for mark, is_a, fix in _BY_MARK:
                if start.startswith(mark):
                    return is_a, fix
            return _BY_SUFFIX.get(path.suffix.lower())
    return None


def near_path(path: Path) -> str:
    """ " (did you mean 'x'?)" for the existing path that is nearest to one that does not exist; "" if none is near."""
    gone, rest = path, Path()
    while not gone.parent.exists() and gone.parent != gone:
        gone, rest = gone.parent, Path(gone.name) / rest
    with suppress(OSError), os.scandir(gone.parent) as entries:
        names = [entry.name for entry, _ in zip(entries, range(_MAX_NAMES), strict=False)]
        if (found := closest(gone.name, sorted(names))) is not None:
            whole = gone.parent / found / rest
            return f" (did you mean {str(whole if whole.exists() else gone.parent / found)!r}?)"
    return ""
