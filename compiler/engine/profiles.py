"""The sections of compiled profiles, of ranks too, and the profiles of the manifest."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace

from ...runtime.engine_file.bind import to_json
from ...runtime.engine_file.manifest import LayerCache, Profile
from ...runtime.engine_file.split import parts_of, split_name, target_of
from ...runtime.files.records import plain
from ...runtime.files.strict_json import canonical
from ..targets import CompiledProfile


def sections_of(
    compiled: Mapping[str, CompiledProfile],
    caches: Mapping[str, Mapping[int, LayerCache]],
    context: int,
    batch: int,
) -> tuple[dict[str, Profile], dict[str, bytes]]:
    """The profiles, and the sections with what each profile or rank, by label, was compiled to.

    Equal files of a profile's ranks are one section. `caches` are those of ranks by label, each by layer.
    """
    profiles: dict[str, Profile] = {}
    sections: dict[str, bytes] = {}
    known: dict[tuple[str, str, str], str] = {}
    for label, emitted in compiled.items():
        name, rank = parts_of(label)
        folder = f"profiles/{name}" if rank is None else f"profiles/{name}/rank-{rank}"
        files = {}
        for file, data in emitted.sections.items():
            key = name, file, hashlib.sha256(data).hexdigest()
            if key not in known:
                known[key] = f"{folder}/{file}"
                sections[known[key]] = data
            files[file] = known[key]
        one = Profile(
            target=target_of(label),
            graph=files[emitted.main],
            needs=dict(emitted.needs),
            weights={weight: to_json(expr) for weight, expr in emitted.weights.items()},
            max_context=context,
            max_batch=batch,
            tolerance=emitted.tolerance,
        )
        if rank is None:
            profiles[name] = one
        else:
            own = {str(layer): cache for layer, cache in caches[label].items()}
            _add_rank(profiles, name, replace(one, caches=own, files=files), f"{folder}/profile.json", sections)
    return profiles, sections


def _add_rank(profiles: dict[str, Profile], name: str, rank: Profile, section: str, sections: dict[str, bytes]) -> None:
    """Add the section of a rank, and list it in its profile."""
    sections[section] = canonical(plain(rank))
    before = profiles[name].ranks if name in profiles else None
    whole = replace(rank, graph="", needs={}, weights={}, caches=None, files=None)
    profiles[name] = replace(whole, split=split_name(name), ranks=(*(before or ()), section))
