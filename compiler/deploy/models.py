"""Reads the model to plan: a checkpoint's headers, or a config.json alone; no weight is read."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from math import prod
from pathlib import Path

from ...runtime.dtypes import CONFIG_DTYPES
from ...runtime.engine_file.file import ENGINE
from ...runtime.errors import CheckpointError
from ...runtime.files.safetensors import open_regular, read_at
from ..checkpoint.account import check_tensors
from ..checkpoint.checkpoint import Checkpoint, locate, open_checkpoint
from ..checkpoint.folder import Folder, find_weights
from ..checkpoint.no_checkpoint import CONFIG
from ..families.config import Config, parse_config
from ..planner.all_formats import Subject
from .build_cost import without_weights

_MAX_BYTES = 16 << 20


@dataclass(frozen=True)
class Model:
    """A model to plan."""

    where: str
    """As the user has named it."""
    subject: Subject
    checkpoint: Checkpoint
    """Of a config.json alone, one without weights."""
    has_weights: bool
    """False if only its config.json was read."""
    notes: tuple[str, ...]

    @property
    def parameters(self) -> int:
        return sum(map(prod, self.subject.config.decoder.tensors().values()))


def model_of(where: str | Path, accept_config: Collection[str] = ()) -> Model:
    """A checkpoint (a folder, a .safetensors file in it, a hub id), or a config.json: a file of any name that ends in
    .json, or a folder with config.json and no weights. Of a hub id, weights are not downloaded.

    Raises:
        LlmcError: it is none of these, or cannot be built; see `open_checkpoint`.
    """
    path = Path(where).expanduser()
    if path.suffix == ".json" and not path.is_dir():
        return _of_config(where, _read(path), str(path), accept_config)
    if path.is_file() and (path.suffix == ENGINE.suffix or ENGINE.matches(path)):
        fix = f"llmc inspect {path} --launches --for h100 prices an engine; to plan, what it was made from"
        asked = f"expected a checkpoint or a config.json at {path}"
        raise CheckpointError(asked, found="an engine, which is built already", fix=fix)
    found, notes = locate(where, weights=False)
    folder = Folder(found if found.is_dir() else found.parent)
    if folder.has(CONFIG) and not _has_weights(folder):
        data, facts = folder.read(CONFIG, _MAX_BYTES, one_name=True)
        return _of_config(where, data, facts.shown, accept_config, notes)
    checkpoint = open_checkpoint(found, accept_config=accept_config)
    check_tensors(checkpoint)
    return Model(str(where), subject_of(checkpoint), checkpoint, True, (*notes, *checkpoint.config.notes))


def subject_of(checkpoint: Checkpoint) -> Subject:
    """The planner's view of an open checkpoint; the dtype of most of its stored numbers counts."""
    source = checkpoint.source
    numbers: Counter[str] = Counter()
    for name in checkpoint.config.decoder.tensors():
        info = source.info(name)
        numbers[info.dtype] += prod(info.shape)
    return _subject(checkpoint.config, numbers.most_common(1)[0][0])


def _subject(config: Config, stored: str) -> Subject:
    return Subject(config, config.dtype or "float32", stored)


def _of_config(
    where: str | Path, data: bytes, shown: str, accept: Collection[str], notes: Collection[str] = ()
) -> Model:
    config = parse_config(data, accept=accept, what=shown)
    subject = _subject(config, CONFIG_DTYPES[config.dtype or "bfloat16"])
    checkpoint = without_weights(Path(shown), config, subject.stored)
    return Model(str(where), subject, checkpoint, False, (*notes, *config.notes))


def _has_weights(folder: Folder) -> bool:
    """True if there are weights to read, or files of weights that need an explanation of `open_checkpoint`."""
    if folder.commit is not None:  # a snapshot of the hub has the shards that somebody has downloaded
        weights = find_weights(folder)
        return weights is not None and all(map(folder.has, weights.shards))
    return any(name.endswith((".safetensors", ".safetensors.index.json")) for name in folder.names())


def _read(path: Path) -> bytes:
    with open_regular(path, error=CheckpointError) as (fd, size):
        if size > _MAX_BYTES:
            raise CheckpointError(f"expected a config.json of at most {_MAX_BYTES} bytes at {path}", found=str(size))
        return read_at(fd, 0, size, what=os.fspath(path), error=CheckpointError)
