"""What llmc's caches hold, by kind, and how it is removed: only files that llmc names, whatever lies beside them."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ...runtime.costs.facts import FACTS, facts_of_machines
from ...runtime.engine_file.file import EngineFile
from ...runtime.environment import KERNELS, TOOLS
from ...runtime.errors import LlmcError, RecipeError, ResourceError, nearest
from ...runtime.files.sealed import UNFINISHED
from .remembered import FOLDER, Remembered
from .store import Store

MIN_DIGITS = 4
"""Of a key, if it is not given whole."""
_ABANDONED_S = 3600.0
"""Age from which a small file that was being written counts as left by a killed process."""
_KERNEL = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Entry:
    """An engine of the cache. What its file does not tell is None; `damage` says why it cannot be read, or ""."""

    key: str
    path: Path
    bytes: int
    last_used: float
    """Seconds since 1970."""
    sources: tuple[str, ...]
    """The checkpoint folders that it was run from."""
    model: str | None = None
    hub_id: str | None = None
    revision: str | None = None
    licence: str | None = None
    recipe: str | None = None
    """The bundled recipe's name, else the format of most weights."""
    targets: tuple[str, ...] = ()
    damage: str = ""

    @property
    def names(self) -> tuple[str, ...]:
        """Whatever a user may call it, beside its key."""
        return tuple(name for name in (self.hub_id, self.model, *self.sources) if name)


@dataclass(frozen=True)
class Kind:
    """Files of one kind: how many there are, and their bytes."""

    name: str
    holds: str
    files: int
    bytes: int


def engines(store: Store) -> list[Entry]:
    """The engines of the cache, the one used last first."""
    sources: dict[str, list[str]] = {}
    for _, record in Remembered(store.cache).all():
        for key in record.engines:
            sources.setdefault(key, []).append(record.path)
    found = []
    for key in store.engine_keys():
        try:
            facts = store.path(key).stat()
        except OSError:  # removed meanwhile
            continue
        found.append(_entry(store.path(key), key, facts.st_size, facts.st_mtime, tuple(sources.get(key, ()))))
    return sorted(found, key=lambda entry: -entry.last_used)


def _entry(path: Path, key: str, size: int, used: float, sources: tuple[str, ...]) -> Entry:
    try:
        with EngineFile.open(path) as engine:
            manifest = engine.manifest
    except LlmcError as error:
        return Entry(key, path, size, used, sources, damage=error.asked)
    come, quantize = manifest.checkpoint, manifest.recipe.get("quantize")
    recipe = manifest.recipe_name or (quantize.get("default") if isinstance(quantize, dict) else None)
    return Entry(
        *(key, path, size, used, sources),
        model=come.name or manifest.model.architecture,
        hub_id=come.hub_id,
        revision=come.revision,
        licence=come.licence,
        recipe=None if recipe is None else str(recipe),
        targets=tuple(manifest.profiles),
    )


def kinds(store: Store) -> list[Kind]:
    """What the caches hold: engines, kernels, digests of checkpoints, facts of machines, what killed processes left."""
    return [
        _kind("engines", "built by llmc run", [store.path(key) for key in store.engine_keys()]),
        _kind("kernels", "compiled for GPU targets", kernels(store)),
        _kind("checkpoints", "digests of weight files", [file for file, _ in Remembered(store.cache).all()]),
        _kind("machines", "facts of llmc doctor --measure", facts_of_machines(store.cache)),
        _kind("unfinished", "builds that run, or were killed", [*store.unfinished(), *_abandoned(store)]),
    ]


def _kind(name: str, holds: str, files: Sequence[Path]) -> Kind:
    sizes = [size for path in files if (size := _size(path)) is not None]
    return Kind(name, holds, len(sizes), sum(sizes))


def kernels(store: Store) -> list[Path]:
    """The compiled kernels; none of a pack, which is not llmc's to empty."""
    folder = store.cache / KERNELS
    if (folder / TOOLS).exists():
        return []
    return [path for path in sorted(folder.glob("*")) if _KERNEL.fullmatch(path.name)]


def select(entries: Sequence[Entry], names: Iterable[str]) -> list[Entry]:
    """The engines that have these keys, or beginnings of keys, hub ids, model names or folders.

    Raises:
        RecipeError: a name fits none, or is the beginning of several keys.
    """
    chosen: dict[str, Entry] = {}
    for name in names:
        short = re.fullmatch(rf"[0-9a-f]{{{MIN_DIGITS},}}", name) is not None
        by_key = [entry for entry in entries if short and entry.key.startswith(name)]
        if len(by_key) > 1:
            raise RecipeError(f"expected the key of one engine, not {name!r}", found=", ".join(e.key for e in by_key))
        folder = str(Path(os.path.expanduser(name)).resolve()) if name else ""
        fitting = by_key or [entry for entry in entries if name in entry.names or folder in entry.sources]
        if not fitting:
            known = [one for entry in entries for one in (entry.key, *entry.names)]
            raise RecipeError(
                f"cannot find {name!r} in the cache of engines{nearest(name, known)}", fix="a name of llmc cache list"
            )
        chosen |= {entry.key: entry for entry in fitting}
    return list(chosen.values())


def remove(store: Store, entries: Sequence[Entry]) -> int:
    """Delete engines, and what is remembered of checkpoints that have none left; returns the bytes.

    Raises:
        ResourceError: one cannot be deleted; the others are gone.
    """
    freed, gone, failure = 0, [], None
    for entry in entries:
        try:
            freed += store.remove(entry.key)
            gone.append(entry.key)
        except ResourceError as error:
            failure = failure or error
    Remembered(store.cache).forget(gone)
    if failure is not None:
        raise failure
    return freed


def remove_rest(store: Store) -> list[Kind]:
    """Delete all but engines: kernels, digests, facts, and what killed processes have left; returns what is gone."""
    records = [file for file, _ in Remembered(store.cache).all()]
    return [
        _delete("kernels", kernels(store)),
        _delete("checkpoints", records),
        _delete("machines", facts_of_machines(store.cache)),
        _delete("unfinished", _abandoned(store), sweep=store),
    ]


def _abandoned(store: Store) -> list[Path]:
    """Small files that killed processes were writing."""
    old = time.time() - _ABANDONED_S
    folders = [store.cache / name for name in (FOLDER, KERNELS, FACTS)]
    files = [path for folder in folders for path in sorted(folder.glob(f"{UNFINISHED}*"))]
    return [path for path in files if path.is_file() and path.stat().st_mtime < old]


def _delete(name: str, files: Sequence[Path], sweep: Store | None = None) -> Kind:
    sizes = {path: _size(path) for path in (*files, *(sweep.unfinished() if sweep else ()))}
    if sweep is not None:
        sweep.sweep()
    for path in files:
        with suppress(OSError):  # another process was faster, or it is another user's
            path.unlink()
    gone = [size for path, size in sizes.items() if size is not None and not path.exists()]
    return Kind(name, "", len(gone), sum(gone))


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None
