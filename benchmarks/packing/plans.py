"""Launch plans of models whose weights are never made: what times kernels at their real sizes within seconds."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from gpu_engines import EngineSpec

from llmc.compiler.checkpoint.account import open_source
from llmc.compiler.pipeline import lower
from llmc.compiler.targets import ProfileConfig, Tactics, tactics_of
from llmc.compiler.targets.cuda.cubins.compile import Specialization
from llmc.compiler.targets.cuda.emit import draft
from llmc.recipes.recipe import Recipe
from llmc.runtime.plan.plan import Plan


@dataclass(frozen=True)
class Drafted:
    """A plan whose modules have no machine code yet, and what each is compiled from."""

    plan: Plan
    specializations: tuple[Specialization, ...]


def drafted(spec: EngineSpec, work: Path, sm: int, tactics: Collection[Tactics] = ()) -> Drafted:
    """What an engine's plan launches; no weight is made, and no kernel compiled. tactics: as those of a build."""
    target = f"sm_{sm}"
    recipe = Recipe(
        default_format=spec.quantize,
        targets=(target,),
        max_context=spec.max_context,
        max_batch=spec.max_batch,
        activations=spec.activations,
        kv=spec.kv,
    )
    checkpoint = open_source(spec.prepare(work), random_weights=None if spec.shape == "pico" else 1)
    graph = lower(checkpoint, recipe, spec.max_context)[1][target]
    table = tactics_of((target,), tactics).get(target)
    dtype = checkpoint.config.dtype or "float32"
    plan, specializations = draft(graph, ProfileConfig(spec.max_context, spec.max_batch, dtype, spec.kv, table), sm)
    return Drafted(plan, tuple(specializations))


def all_drafted(
    specs: Mapping[str, EngineSpec], work: Path, sm: int, tactics: Collection[Tactics] = ()
) -> dict[str, Drafted]:
    """`drafted` of every spec, by its name."""
    return {name: drafted(spec, work, sm, tactics) for name, spec in specs.items()}
