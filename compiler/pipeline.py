"""From a checkpoint to the legal graph of every profile: builds the logical graph, then runs all passes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from importlib.metadata import version
from pathlib import Path

from ..passes import PassReport, Phase, model_passes, profile_passes, run_phase
from ..passes.graph.graph import MODULE, Graph
from ..passes.graph.meet import verify_meeting
from ..passes.graph.saved import restore
from ..passes.graph.verify import LOGICAL, BrokenGraph, verify
from ..passes.partition import partition
from ..passes.placement import Placement
from ..passes.rewrite.dump import Dump
from ..passes.rewrite.manager import PassCrash, crash_of
from ..recipes.recipe import Recipe
from ..runtime.engine_file.manifest import LayerCache
from ..runtime.engine_file.split import target_of
from ..runtime.errors import DISTRIBUTION, LlmcError, RecipeError, nearest
from ..runtime.files.records import plain, read
from .as_stored import formats_of, kept_notes, require_kept
from .checkpoint.checkpoint import Checkpoint
from .checkpoint.weights.stacks import stored_formats
from .decoder.decoder import Decoder, build
from .decoder.placement import caches_of
from .decoder.placement import place as place_ranks
from .divisible import require_storable
from .page import write_page
from .targets import Precision, target_named

DEFAULT_CONTEXT = 4096
_SAME = "the llmc that saved it"


def context_of(recipe: Recipe, checkpoint: Checkpoint) -> int:
    """Positions of the engine: at most as many as the model was trained for, unless its rope type is dynamic.

    Raises:
        RecipeError: the recipe asks for more positions.
    """
    limit, asked = checkpoint.config.decoder.positions, recipe.max_context
    if asked is None:
        return min(limit, DEFAULT_CONTEXT)
    checkpoint.config.require_positions(asked, f"cannot build with max_context {asked}", "--max-context")
    return asked


def idle_settings(recipe: Recipe, checkpoint: Checkpoint) -> tuple[str, ...]:
    """What each setting of a recipe that changes nothing for this checkpoint is, and why, for the user."""
    spec = checkpoint.config.decoder
    linears, stored = spec.linears(), stored_formats(spec.stacks(), checkpoint.source.names)
    said = [f"{key} {getattr(recipe, key)} changes nothing: {why}" for key, (why, _) in recipe.idle().items()]
    for index, rule in enumerate(recipe.rules):
        matched = [name for name in linears if fnmatchcase(name, rule.match)]
        later = recipe.rules[index + 1 :]
        if matched and all(any(fnmatchcase(name, one.match) for one in later) for name in matched):
            said.append(f"rule {rule.match!r} ({rule.format}) changes nothing: later rules match all that it does")
    return (*said, *kept_notes(recipe, stored))


def lower(
    checkpoint: Checkpoint, recipe: Recipe, context: int, dump: Dump | None = None
) -> tuple[Decoder, dict[str, Graph], tuple[PassReport, ...]]:
    """The logical graph after the model passes, the legal graph of every profile or rank, the reports of all passes.

    Reads no weight. `context` is the number of positions (`context_of`). `dump` keeps what each pass did.

    Raises:
        CheckpointError: the tensors do not match the configuration.
        RecipeError: a rule of the recipe matches no linear.
        Unsupported: a format, rope type, target or split of the recipe does not support this model.
        PassCrash: a pass or the partition crashes, or leaves a graph that breaks a rule.
    """
    decoder = build(checkpoint, context)
    _require_matches(recipe, decoder)
    require_kept(recipe, decoder.spec.linears(), decoder.stored)
    require_storable(recipe, decoder.spec, decoder.stored)
    placements = _placements(recipe, decoder)
    if dump is not None:
        dump.placements = plain(placements)
    legal, reports = _run(decoder.graph, recipe, placements, dump, None)
    return decoder, legal, reports


def _placements(recipe: Recipe, decoder: Decoder) -> tuple[Placement, ...]:
    format_of = formats_of(recipe, decoder.stored)
    return tuple(place_ranks(decoder.spec, split, format_of) for split in recipe.splits if split.ranks > 1)


def rank_caches(recipe: Recipe, decoder: Decoder) -> dict[str, dict[int, LayerCache]]:
    """The caches of each rank of the recipe's splits, by label, each by layer."""
    return {
        label: caches_of(decoder.spec, placement, rank)
        for placement in _placements(recipe, decoder)
        for target in recipe.targets
        for rank, label in enumerate(placement.split.labels(target))
    }


@dataclass(frozen=True)
class Place:
    """The place of a saved graph: a phase of a profile ("": model passes), before the pass `next` ("": at its end)."""

    llmc: str
    recipe: Recipe
    profile: str
    phase: str
    next: str
    placements: tuple[Placement, ...] = ()

    def __post_init__(self) -> None:
        names = sorted(placement.split.name for placement in self.placements)
        wanted = sorted(split.name for split in self.recipe.splits if split.ranks > 1)
        if names != wanted:
            raise ValueError(f"placements of {', '.join(names) or 'no split'}, not of {', '.join(wanted) or 'none'}")


def start_dump(folder: Path | None, recipe: Recipe) -> Dump | None:
    """The dump of a pipeline with this recipe; None without a folder."""
    return None if folder is None else Dump(folder, plain(recipe), version(DISTRIBUTION))


def resume(path: Path, folder: Path | None = None) -> tuple[Place, dict[str, Graph], tuple[PassReport, ...]]:
    """Run the remaining passes of a graph that a dump saved; returns its place, the legal graphs and the reports.

    With `folder`, these passes are dumped too.

    Raises:
        RecipeError: the file is no saved graph, its graph was changed by hand and a pass crashes, or this llmc has no
            such phase or pass.
        PassCrash: a pass crashes.
    """
    graph, at, unchanged = restore(path)
    try:
        place: Place = read(Place, at, "at")
    except (LlmcError, ValueError) as error:
        said = (error.asked, error.found) if isinstance(error, LlmcError) else (str(error),)
        reason = ": ".join(filter(None, said))
        raise RecipeError(f"expected a saved graph in {path}", found=reason, fix=_SAME) from error
    try:
        shown = start_dump(folder, place.recipe)
        if shown is not None:
            shown.placements = plain(place.placements)
        return place, *_run(graph, place.recipe, place.placements, shown, place)
    except PassCrash as error:
        if unchanged:
            raise
        asked = f"cannot run the passes on {path}, which was changed after llmc saved it"
        raise RecipeError(asked, found=str(error), fix="the file as --dump wrote it") from error


def _run(
    graph: Graph, recipe: Recipe, placements: tuple[Placement, ...], dump: Dump | None, place: Place | None
) -> tuple[dict[str, Graph], tuple[PassReport, ...]]:
    """Run all passes, or those from `place` on; returns the legal graphs by profile, and the reports."""
    reports: tuple[PassReport, ...] = ()

    def run(profile: str, of: Graph) -> None:
        nonlocal reports
        if dump is not None:
            dump.begin(of)
        for phase, first in _phases(recipe, profile, place):
            reports += run_phase(phase, of, dump, first=first, profile=profile)

    try:
        if place is None or not place.profile:
            run("", graph)
            legal = dict(_split(graph, recipe, placements))
        else:
            legal = {place.profile: graph}
        for name, profile in legal.items():
            run(name, profile)
            if dump is not None:
                dump.write(f"{name}.graph.txt", profile.text())
        _require_meeting(legal, recipe)
    finally:
        if dump is not None:  # also of the passes before one that crashed
            write_page(dump)
    return legal, reports


def _split(graph: Graph, recipe: Recipe, placements: tuple[Placement, ...]) -> Iterator[tuple[str, Graph]]:
    """A graph of its own for every profile or rank, by label."""
    known = {placement.split: placement for placement in placements}
    for split in recipe.splits:
        for target in recipe.targets:
            graphs = [graph.copy()] if split.ranks == 1 else _ranks(graph, known[split])
            yield from zip(split.labels(target), graphs, strict=True)


def _ranks(graph: Graph, placement: Placement) -> Iterator[Graph]:
    try:
        for rank in partition(graph, placement):
            verify(rank, LOGICAL)
            yield rank
    except Exception as error:
        raise crash_of(error, f"the partition for {placement.split.name} failed: {error}") from error


def _require_meeting(legal: Mapping[str, Graph], recipe: Recipe) -> None:
    """Check the ranks of each profile against each other; of a saved graph of one rank there are no others."""
    for split in recipe.splits:
        for target in recipe.targets:
            labels = split.labels(target)
            if split.ranks > 1 and {*labels} <= legal.keys():
                try:
                    verify_meeting([legal[label] for label in labels], split)
                except BrokenGraph as error:
                    raise crash_of(error, f"the passes on {split.profile(target)} failed: {error}") from error


def _phases(recipe: Recipe, profile: str, place: Place | None) -> list[tuple[Phase, int]]:
    """The model phases (profile "") or those of a profile, from `place` on, each with the number of its first pass."""
    if profile:
        target = target_named(target_of(profile))
        precision = Precision(recipe.activations, recipe.kv)
        phases = [profile_passes(merge_gated=target.merge_gated), target.legalize(precision)]
    else:
        phases = [model_passes(recipe.format_of)]
    if place is None or place.profile != profile:
        return [(phase, 0) for phase in phases]
    names = [phase.name for phase in phases]
    if place.phase not in names:
        asked = f"expected one of the phases {', '.join(names)} in the saved graph"
        raise RecipeError(asked, found=f"{place.phase!r}", fix=_SAME)
    current, *later = phases[names.index(place.phase) :]
    passes = [*(item.name for item in current.passes), ""]
    if place.next not in passes:
        asked = f"expected a pass of phase {place.phase} in the saved graph"
        raise RecipeError(asked, found=f"{place.next!r}{nearest(place.next, passes)}", fix=_SAME)
    return [(current, passes.index(place.next)), *((phase, 0) for phase in later)]


def _require_matches(recipe: Recipe, decoder: Decoder) -> None:
    """Refuse a rule that matches no linear: it is a mistake of its author."""
    nodes = decoder.graph.nodes
    linears = [node.metadata_props.get(MODULE, "") for node in nodes if node.op_type == "Linear"]
    linears += decoder.spec.stacks()
    for rule in recipe.rules:
        if not any(fnmatchcase(name, rule.match) for name in linears):
            raise RecipeError(
                f"cannot apply recipe rule {rule.match!r}{nearest(rule.match, linears)}",
                found=f"none of the {len(linears)} linears has such a name",
                fix=f"a glob on names such as {linears[0]!r}",
            )
