"""The whole path as code: checkpoint, graph, front passes, profiles, streamed weights, probe, engine file."""

from __future__ import annotations

import fnmatch
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from ..passes import PassReport, back, front, run_phase
from ..passes.graph.graph import MODULE, Graph
from ..recipes.recipe import Recipe
from ..runtime.engine_file.manifest import (
    MEASURED,
    TOKENIZER_SECTIONS,
)
from ..runtime.errors import CheckpointError, RecipeError, ResourceError, nearest
from ..runtime.files.strict_json import canonical, loads
from ..runtime.machine import memory, peak_memory
from ..runtime.progress import NO_PROGRESS, Progress
from ..runtime.text.chat import chat_template_source
from .checkpoint.checkpoint import Checkpoint, open_checkpoint
from .checkpoint.tokenizer_check import Check, start_check
from .decoder.decoder import Decoder
from .decoder.decoder import build as build_decoder
from .engine import weights
from .engine.manifest import manifest_of
from .engine.writer import EngineWriter
from .oracle import probe
from .oracle.reference import reference
from .targets import Limits, Precision, Table, Target, tables_for, target_named

DEFAULT_CONTEXT = 4096
_BASE_BYTES = 600 << 20
"""Python with torch, onnx and onnxruntime, measured: what a build needs before the first weight."""


@dataclass(frozen=True)
class BuildReport:
    """What a build made, and what it took. Stages are (name, seconds)."""

    path: Path
    bytes: int
    seconds: float
    peak_rss_bytes: int
    stages: tuple[tuple[str, float], ...]
    passes: tuple[PassReport, ...]
    unused: Mapping[str, str]
    warnings: tuple[str, ...]
    content_digest: str


@dataclass
class _Clock:
    """Names and times the stages of a build."""

    progress: Progress
    stages: list[tuple[str, float]] = field(default_factory=list)

    @contextmanager
    def stage(self, name: str, total: int | None = None) -> Iterator[weights.Advance]:
        start = time.perf_counter()
        with self.progress.stage(name, total) as advance:
            yield advance
        self.stages.append((name, time.perf_counter() - start))


def build(
    checkpoint: str | Path | Checkpoint,
    output: str | Path,
    recipe: Recipe,
    *,
    memory_limit: float | None = None,
    accept_config: Collection[str] = (),
    random_weights: int | None = None,
    dump: Path | None = None,
    tactics: Collection[Table] = (),
    progress: Progress = NO_PROGRESS,
) -> BuildReport:
    """Compile a checkpoint into an engine file.

    Args:
        checkpoint: folder, hub id `org/name[@revision]`, or one that is open; the next two are then its own.
        memory_limit: GiB the build may plan for; chunks shrink to meet it.
        accept_config: unknown configuration keys the user vouches for.
        random_weights: a seed; only the checkpoint's configuration is read then.
        tactics: measured tiles, in place of those that come with llmc for a chip.

    Raises:
        LlmcError: see `runtime/errors.py`; the file at `output` is then as it was before.
    """
    began, output, clock = time.perf_counter(), Path(output), _Clock(progress)
    tables = tables_for(recipe.targets, tactics)
    with clock.stage("read headers"):
        source = open_source(checkpoint, accept_config, random_weights)
        source = source if source.hashing is not None else source.start_digest()
        context = _context(recipe, source)
        tokenizer = _check_tokenizer(source)
    with clock.stage("graph and passes"):
        decoder, graph, legal, reports = lower(source, recipe, context, dump)
    with clock.stage("compile profiles"):
        limits = Limits(context, recipe.max_batch, source.config.dtype or "float32", recipe.kv)
        profiles = {
            name: target_named(name).emit(profile, replace(limits, tactics=tables.get(name)), progress)
            for name, profile in legal.items()
        }
    chunk = _chunk_bytes(memory_limit)
    with EngineWriter(output, weights.groups(graph.canonical)) as writer:
        total = weights.source_bytes(graph.canonical, source.source)
        with clock.stage("weights", total) as advance:

            def advanced(nbytes: int) -> None:
                if tokenizer is not None:
                    tokenizer.refuse_early()
                advance(nbytes)

            notes = weights.write(graph.canonical, source.source, writer, chunk_bytes=chunk, advance=advanced)
        with clock.stage("golden probe"):
            golden = _probe(graph, source, writer, context)
        with clock.stage("digest checkpoint"):
            digests = source.digest()
        with clock.stage("finish file"):
            facts = tokenizer.result() if tokenizer is not None else None
            if facts is not None and facts.template_problem:
                notes += (f"chat template: {facts.template_problem}",)
            for name, emitted in profiles.items():
                for section, data in emitted.sections.items():
                    writer.section(f"profiles/{name}/{section}", data)
            for name, data in sorted(source.tokenizer.items()):
                writer.section(f"{TOKENIZER_SECTIONS}{name}", data)
            writer.section(MEASURED, canonical({"probe": golden}))
            manifest = manifest_of(source, recipe, tables, context, decoder, graph, profiles, digests)
            source.unchanged()
            path = writer.commit(manifest)
    return BuildReport(
        path=path,
        bytes=path.stat().st_size,
        seconds=time.perf_counter() - began,
        peak_rss_bytes=peak_memory(),
        stages=tuple(clock.stages),
        passes=reports,
        unused=decoder.unused,
        warnings=(*source.warnings, *notes, *(note for emitted in profiles.values() for note in emitted.notes)),
        content_digest=writer.content_digest,
    )


def explain(
    checkpoint: str | Path,
    recipe: Recipe,
    *,
    accept_config: Collection[str] = (),
    random_weights: int | None = None,
    dump: Path | None = None,
) -> tuple[PassReport, ...]:
    """What every pass would do to a checkpoint; no weight is read."""
    source = open_source(checkpoint, accept_config, random_weights)
    return lower(source, recipe, _context(recipe, source), dump)[3]


def checkpoint_logits(
    checkpoint: str | Path, token_ids: list[int], *, accept_config: Collection[str] = ()
) -> np.ndarray:
    """Logits float32 `[T, V]` of the checkpoint itself (`compiler/oracle/reference.py`)."""
    return reference(open_source(checkpoint, accept_config, None))(token_ids)


def lower(
    source: Checkpoint, recipe: Recipe, context: int, dump: Path | None
) -> tuple[Decoder, Graph, dict[str, Graph], tuple[PassReport, ...]]:
    """The logical graph after the front passes, the legal one of every profile, and what all passes did."""
    decoder = build_decoder(source, context)
    graph = decoder.graph
    _require_matches(recipe, graph)
    reports = run_phase(front(recipe.format_of), graph, dump)
    legal = {name: graph.copy() for name in recipe.targets}
    for name, profile in legal.items():
        reports += _legalize(profile, target_named(name), recipe, dump, len(reports))
    return decoder, graph, legal, reports


def _require_matches(recipe: Recipe, graph: Graph) -> None:
    """A rule that covers no linear is a mistake: its author meant one."""
    linears = [node.metadata_props.get(MODULE, "") for node in graph.nodes if node.op_type == "Linear"]
    for rule in recipe.rules:
        if not any(fnmatch.fnmatchcase(name, rule.match) for name in linears):
            raise RecipeError(
                f"recipe rule {rule.match!r}{nearest(rule.match, linears)}",
                found=f"none of the {len(linears)} linears has such a name",
                fix=f"a glob on names such as {linears[0]!r}",
            )


def _legalize(graph: Graph, target: Target, recipe: Recipe, dump: Path | None, first: int) -> tuple[PassReport, ...]:
    merged = run_phase(back(merge_gated=target.merge_gated), graph, dump, first)
    precision = Precision(recipe.activations, recipe.kv)
    return merged + run_phase(target.legalize(precision), graph, dump, first + len(merged))


def open_source(
    where: str | Path | Checkpoint, accept_config: Collection[str] = (), random_weights: int | None = None
) -> Checkpoint:
    """An open checkpoint, with tensors made on the way if it is to have random weights."""
    source = where
    if not isinstance(source, Checkpoint):
        source = open_checkpoint(source, accept_config=accept_config, random_weights=random_weights)
    if source.random_seed is None:
        return source
    return source.with_source(source.random_source(source.config.decoder.tensors()))


def _context(recipe: Recipe, source: Checkpoint) -> int:
    """Positions of the engine: at most those the model is made for, unless its rope grows with them."""
    limit, asked = source.config.decoder.positions, recipe.max_context
    if asked is None:
        return min(limit, DEFAULT_CONTEXT)
    if asked > limit and not source.config.grows:
        raise RecipeError(
            f"max_context {asked}", found=f"a model of {limit} positions", fix=f"--max-context {limit} or less"
        )
    return asked


def _chunk_bytes(memory_limit: float | None) -> int:
    """Source bytes per chunk: reading ahead, quantizing and the probe hold about sixteen times that at once."""
    limit = memory_limit * (1 << 30) if memory_limit is not None else memory().available
    chunk = min(weights.CHUNK_BYTES, int(limit - _BASE_BYTES) // 16)
    if chunk < 1 << 20:
        raise ResourceError(
            f"a build within {limit / (1 << 30):.2f} GiB",
            found=f"llmc alone needs {_BASE_BYTES / (1 << 30):.2f} GiB",
            fix=f"--memory-limit {(_BASE_BYTES + (16 << 20)) / (1 << 30) + 0.01:.2f} or more",
        )
    return chunk


def _check_tokenizer(source: Checkpoint) -> Check | None:
    if "tokenizer.json" not in source.tokenizer:
        return None
    return start_check(
        source.tokenizer["tokenizer.json"],
        _tokenizer_config(source),
        source.config.decoder.vocab_size,
        source.eos_ids,
        chat_template=chat_template_of(source),
    )


def chat_template_of(source: Checkpoint) -> str | None:
    """The text of a checkpoint's chat template, None if it has none."""
    jinja = source.tokenizer.get("chat_template.jinja")
    return chat_template_source(_tokenizer_config(source), None if jinja is None else jinja.decode("utf-8", "replace"))


def _tokenizer_config(source: Checkpoint) -> Mapping[str, object]:
    data = source.tokenizer.get("tokenizer_config.json")
    what = str(source.path / "tokenizer_config.json")
    config = {} if data is None else loads(data, what=what, error=CheckpointError)
    if not isinstance(config, dict):
        raise CheckpointError(f"{what}: a JSON object", found=type(config).__name__)
    return config


def _probe(graph: Graph, source: Checkpoint, writer: EngineWriter, context: int) -> dict[str, object]:
    return probe.measure(graph, source.config.decoder, writer.read, context=context).to_json()
