"""Reads the part of a split profile that one rank loads."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from ..errors import EngineError
from ..files.records import read
from ..files.strict_json import loads
from .manifest import LayerCache, ModelFacts, Profile, check_ranks
from .split import Split, parts_of


def rank_profile(name: str, profiles: Mapping[str, Profile], section: Callable[[str], bytes], what: str) -> Profile:
    """The profile of this name, or that of one rank, such as "cpu-tp2.rank-1".

    Raises:
        EngineError: there is none, or its section is none of ours.
    """
    profile, rank = parts_of(name)
    whole = profiles[profile]
    if rank is None:
        return whole
    ranks = whole.ranks or ()
    if rank >= len(ranks):
        raise EngineError(f"cannot find rank {rank} of profile {profile!r} in {what}", found=f"{len(ranks)} ranks")
    where = f"{ranks[rank]} of {what}"
    found: Profile = read(Profile, loads(section(ranks[rank]), what=where, error=EngineError), where)
    if found.caches is None or any(not layer.isdecimal() for layer in found.caches):
        raise EngineError(f"expected caches by number of layer in {where}", found=f"{[*(found.caches or ())]}"[:80])
    check_ranks(found.caches.values(), f"caches of {where}")
    return replace(found, split=whole.split)


def split_of(profile: Profile, what: str) -> Split:
    """The split of a profile.

    Raises:
        EngineError: it is no split.
    """
    try:
        return Split.parse(profile.split or "tp1")
    except ValueError as error:
        raise EngineError(f"expected a split of a profile in {what}", found=str(error)) from None


def caches_of(profile: Profile, model: ModelFacts) -> dict[int, LayerCache]:
    """The caches that a profile, or the profile of a rank, has, by layer."""
    if profile.caches is None:
        shared = model.shared_layers or ()
        return {layer: cache for layer, cache in enumerate(model.caches) if layer not in shared}
    return {int(layer): cache for layer, cache in profile.caches.items()}
