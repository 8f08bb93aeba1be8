"""Kernels compiled beforehand, for machines that have a GPU and no compiler: a cache that says which tools made it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict
from pathlib import Path

from llmc.compiler.targets.cuda.cubins.cache import TOOLS, KernelCache, Tools, key_of, sources_of
from llmc.compiler.targets.cuda.cubins.compile import Specialization, compile_all
from llmc.runtime.errors import RecipeError
from llmc.runtime.files.strict_json import canonical
from llmc.runtime.progress import NO_PROGRESS, Progress


def write_pack(
    folder: Path, wanted: Mapping[int, Collection[Specialization]], progress: Progress = NO_PROGRESS
) -> KernelCache:
    """Put kernels, by chip, into an empty folder; those in the user's cache are not compiled again.

    A folder without the file that makes it a pack was not finished. As a user's caches, packs have the folder name
    "kernels", so that the cache's variable may name what holds one.

    Raises:
        RecipeError: there is no cache to take them from, or it is a pack itself.
        LlmcError: a kernel cannot be compiled.
    """
    source, target = KernelCache.default(), KernelCache(folder)
    if source.folder is None or source.packed is not None:
        fix = "LLMC_CACHE unset, or a folder that can be written"
        raise RecipeError("expected a cache of compiled kernels", found=f"{source.folder}", fix=fix)
    tools = Tools.installed()
    for sm, specializations in wanted.items():
        compile_all(specializations, sm, progress=progress, cache=source)
        for specialization in specializations:
            key = key_of(specialization.request(sm), sources_of(specialization.file), tools)
            target.save(key, source.load(key))
    (folder / TOOLS).write_bytes(canonical(asdict(tools)))
    return KernelCache(folder)
