"""Makes the manifest of an engine: model, formats, profiles, lineage, recipe, tools."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping
from importlib.metadata import version

import numpy as np

from ...passes.graph.graph import Canonical, Computed, Quantized
from ...recipes.recipe import Recipe, name_of
from ...runtime.engine_file.manifest import (
    LATENT_LAYERS,
    LENGTH_ROPES,
    RANKS,
    SHARED_LAYERS,
    CheckpointFacts,
    Lineage,
    Manifest,
    ModelFacts,
    Profile,
)
from ...runtime.errors import DISTRIBUTION
from ...runtime.files.strict_json import canonical
from ..checkpoint.checkpoint import Checkpoint
from ..checkpoint.weights.source import Source
from ..decoder.decoder import Decoder
from ..families.spec import Latent, cache_of
from ..targets import Tactics, target_named
from ..tokens.resolve import SpecialTokens


def manifest_of(
    checkpoint: Checkpoint,
    special: SpecialTokens,
    recipe: Recipe,
    tables: Mapping[str, Tactics],
    context: int,
    decoder: Decoder,
    profiles: Mapping[str, Profile],
    digests: Mapping[str, str],
) -> Manifest:
    """The manifest of an engine whose weights are written.

    `tables` holds tactics by target, whose digests become part of the recipe. `decoder` holds the graph after the model
    passes. `digests` holds SHA-256 of the checkpoint's files by name.
    """
    c, spec, tensors = checkpoint.config, decoder.spec, decoder.graph.canonical
    mixers = [layer.mixer for layer in spec.layers]
    shared = tuple(index for index, mixer in enumerate(mixers) if mixer.source is not None)
    measured = {"tactics": {name: table.digest for name, table in tables.items()}} if tables else {}
    recipe_json = recipe.to_json() | measured
    return Manifest(
        model=ModelFacts(
            architecture=c.family.architecture,
            family=c.family.name,
            vocab_size=spec.vocab_size,
            hidden_size=spec.hidden_size,
            heads=mixers[0].heads,
            caches=tuple(cache_of(mixer) for mixer in mixers),
            max_context=context,
            parameters=sum(int(np.prod(shape)) for shape in spec.tensors().values()),
            dtype=c.dtype or "",
            tied=spec.tied,
            bos=special.bos,
            eos_ids=special.eos_ids,
            generation=checkpoint.generation,
            ropes=decoder.ropes or None,
            named_tokens=special.named,
            shared_layers=shared or None,
            active_parameters=spec.active_parameters(),
        ),
        formats={
            **{o.tensor: o.format for t in tensors.values() if isinstance(o := t.origin, Quantized)},
            **{f"{module}.weight": fmt for module, fmt in decoder.stored.items()},
        },
        required_features=tuple(
            name
            for name, used in (
                (LENGTH_ROPES, decoder.ropes),
                (RANKS, any(one.ranks for one in profiles.values())),
                (SHARED_LAYERS, shared),
                (LATENT_LAYERS, any(isinstance(mixer, Latent) for mixer in mixers)),
            )
            if used
        ),
        profiles=profiles,
        lineage={name: _lineage(tensor, checkpoint.source) for name, tensor in tensors.items()},
        unused=decoder.unused,
        recipe=recipe_json,
        recipe_digest=hashlib.sha256(canonical(recipe_json)).hexdigest(),
        recipe_name=name_of(recipe),
        checkpoint=CheckpointFacts(
            digests,
            checkpoint.revision,
            c.accepted,
            checkpoint.random_seed,
            checkpoint.name,
            checkpoint.hub_id,
            checkpoint.licence,
        ),
        tools=_tools(recipe),
    )


def _lineage(tensor: Canonical, source: Source) -> Lineage:
    """Where a tensor came from; the sources are tensors of the files, each once: parts of a fused one share it."""
    origin = tensor.origin
    if isinstance(origin, Computed):
        return Lineage((), origin.how)
    how = "copied"
    names = [origin.tensor]
    if isinstance(origin, Quantized):
        names += origin.shares
        how = f"{origin.format} {origin.suffix}, rounded to nearest"
    return Lineage(tuple(dict.fromkeys(file for name in names for file in source.files_of(name))), how)


def _tools(recipe: Recipe) -> dict[str, str]:
    """Versions of the tools that determine the bytes of the engine."""
    python = ".".join(platform.python_version_tuple()[:2])
    found = {"python": python, "llmc": version(DISTRIBUTION)}
    found |= {name: version(name) for name in ("numpy", "onnx", "onnx-ir", "torch")}
    for name in recipe.targets:
        found.update(target_named(name).tools())
    return found
