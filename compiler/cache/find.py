"""From a checkpoint's name to its engine in the cache: found by what it is made of, or built there once."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Unpack

from ...recipes.flags import BuildFlags
from ...recipes.recipe import Recipe, with_flags
from ...runtime.chips import SM
from ...runtime.dtypes import CONFIG_DTYPES
from ...runtime.engine_file.split import split_name, target_of
from ...runtime.errors import LlmcError, RecipeError, ResourceError
from ...runtime.progress import NO_PROGRESS, Progress
from ...runtime.scheduling.executor import sequence_count
from ..checkpoint.account import check_tensors
from ..checkpoint.checkpoint import Checkpoint, open_checkpoint
from ..checkpoint.hub import cached_snapshot
from .identity import key_of
from .remembered import Remembered, now
from .store import Store

if TYPE_CHECKING:
    from ..engine.report import BuildReport

DEFAULT_FORMAT = "int8"
"""Half the bytes of bf16, and a loss that evaluation hardly sees (recipes/cpu-int8.yaml)."""


@dataclass(frozen=True)
class Wish:
    """What to run: the recipe that was asked for, and whether that leaves the weight format to llmc."""

    recipe: Recipe
    free: bool

    @staticmethod
    def of(recipe: str | None, **flags: Unpack[BuildFlags]) -> Wish:
        """The wish of a recipe's name or file and of flags.

        Raises:
            RecipeError: they are malformed.
        """
        return Wish(with_flags(recipe, **flags), recipe is None and flags.get("quantize") is None)

    def refuse_other(self, profile: str | None, *, simulated: bool, max_batch: int | None = None) -> None:
        """Check that the engine will have the profile that shall run, for so many sequences.

        Raises:
            RecipeError: it will not.
        """
        targets = self.recipe.targets
        found = f"targets {', '.join(targets)}"
        if profile is not None and profile not in self.recipe.profiles:
            asked = "expected --profile to name a target of the engine that is built"
            split = split_name(profile)
            fix = f"llmc build --parallel {split}, and run that engine" if target_of(profile) != profile else ""
            raise RecipeError(asked, found=found, fix=fix or f"--target {profile}")
        if simulated and not any(target in SM for target in targets):
            raise RecipeError("expected the target of a GPU with --simulate", found=found, fix="--target sm_90")
        sequence_count(max_batch, self.recipe.max_batch)

    def for_checkpoint(self, checkpoint: Checkpoint) -> Recipe:
        """The recipe to build with. Unless it was asked for, a quantized checkpoint stays as it is and others get int8.

        Of quantized checkpoints `open_checkpoint` takes those whose experts are stored in a weight format.
        """
        source, plain = checkpoint.source, CONFIG_DTYPES.values()
        read = checkpoint.config.decoder.tensors().keys() & set(source.names)
        if not self.free or any(source.info(name).dtype not in plain for name in read):
            return self.recipe
        return with_flags(self.recipe, quantize=DEFAULT_FORMAT)


@dataclass(frozen=True)
class Found:
    """A checkpoint and the place of its engine in the cache."""

    checkpoint: Checkpoint
    digests: Mapping[str, str]
    """Of the checkpoint's files by name."""
    recipe: Recipe
    key: str
    store: Store
    verify: Literal["header", "full"]

    @property
    def path(self) -> Path:
        return self.store.path(self.key)

    @cached_property
    def damage(self) -> str:
        """Why the engine there cannot be used; "" if it can, or if there is none."""
        return self.store.damage(self.key, self.verify, self.digests) if self.path.exists() else ""

    @property
    def ready(self) -> bool:
        """True if the engine is there and sound."""
        return self.path.exists() and not self.damage

    def used(self) -> None:
        """Keep that the engine was run now, and what it was made of."""
        self.store.touch(self.key)
        Remembered(self.store.cache).made(self.checkpoint.path, self.key)

    def build(self, progress: Progress, waiting: Callable[[], None]) -> BuildReport | None:
        """Build the engine; None if another process did so meanwhile, for which `waiting` is called first.

        Raises:
            LlmcError: whatever `compiler.build.build` raises; ResourceError says how to make room in the cache.
        """
        with self.store.lock(self.key, waiting):
            if replace(self).ready:
                return None
            from ..build import build  # imports torch and onnx

            try:
                return build(self.checkpoint, self.path, self.recipe, force=True, progress=progress)
            except ResourceError as error:
                if not isinstance(error.__cause__, OSError):  # memory, not the disk
                    raise
                fix = "llmc cache rm --older-than 30d to make room, or LLMC_CACHE=FOLDER on another disk"
                raise ResourceError(error.asked, found=error.found, fix=fix) from error


def was_built(where: str) -> bool:
    """True if an engine of this folder or hub id was built before, and may be in the cache; nothing is read."""
    folder = _local(where)
    return folder is not None and bool(Remembered(Store.default().cache).record(folder.resolve()).engines)


def find(
    where: str,
    wish: Wish,
    accept_config: Collection[str] = (),
    *,
    verify: Literal["header", "full"] = "header",
    progress: Callable[[], Progress] = lambda: NO_PROGRESS,
) -> Found:
    """Open a checkpoint and look for its engine. `progress` is called only if files have to be hashed.

    A hub id whose engine is in the cache is not asked for at the hub: the engine of the commit that the hub's own cache
    has is run. Only a build asks, and takes the newest commit.

    Raises:
        LlmcError: the checkpoint cannot be opened, or there is no cache.
    """
    store = Store.default()
    if not os.path.exists(os.path.expanduser(where)) and (snapshot := cached_snapshot(where)) and was_built(where):
        try:
            if (found := _find(str(snapshot), wish, accept_config, store, verify, progress)).ready:
                return found
        except LlmcError:  # not whole: the hub's client makes it so
            pass
    return _find(where, wish, accept_config, store, verify, progress)


def _local(where: str) -> Path | None:
    """The folder that a name means without asking the hub; None if there is none."""
    path = Path(os.path.expanduser(where))
    if path.exists():
        return path if path.is_dir() else path.parent
    return cached_snapshot(where)


def _find(
    where: str,
    wish: Wish,
    accept_config: Collection[str],
    store: Store,
    verify: Literal["header", "full"],
    progress: Callable[[], Progress],
) -> Found:
    checkpoint = open_checkpoint(where, accept_config=accept_config)
    check_tensors(checkpoint)
    recipe = wish.for_checkpoint(checkpoint)
    remembered, began = Remembered(store.cache), now()
    shards = [opened.facts for opened in checkpoint.files.shards]
    known = remembered.record(checkpoint.path).digests(shards)
    unknown = sum(one.bytes for one in shards if one.name not in known)
    with (progress() if unknown else NO_PROGRESS).stage("digest checkpoint", unknown) as advance:
        checkpoint.files.start_digest(known)
        digests = checkpoint.files.digests(advance)
    remembered.remember(checkpoint, digests, began)
    return Found(checkpoint, digests, recipe, key_of(checkpoint, digests, recipe), store, verify)
