"""The whole build as one function: checkpoint, graph, passes, profiles, streamed weights, probe, engine file."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from ..recipes.recipe import Recipe
from ..runtime.engine_file.file import ENGINE
from ..runtime.engine_file.manifest import MEASURED, TOKENIZER_SECTIONS
from ..runtime.files import temporary
from ..runtime.files.outputs import check_output
from ..runtime.files.strict_json import canonical
from ..runtime.machine import peak_memory
from ..runtime.probe import MAX_BYTES
from ..runtime.progress import NO_PROGRESS, Progress
from .checkpoint.checkpoint import Checkpoint
from .checkpoint.tokenizer_check import start_check
from .engine import weights
from .engine.layout import MaxShardSize, reserve_for
from .engine.manifest import manifest_of
from .engine.profiles import sections_of
from .engine.report import BuildReport, Clock
from .engine.writer import EngineWriter
from .oracle import probe
from .oracle.oracle import block_count
from .page import write_page
from .pipeline import context_of, idle_settings, lower, rank_caches, start_dump
from .targets import ProfileConfig, Tactics, compiled, tactics_of


def build(
    checkpoint: Checkpoint,
    output: str | Path,
    recipe: Recipe,
    *,
    memory_limit: int | None = None,
    max_shard_size: int | None = None,
    dump: Path | None = None,
    tactics: Collection[Tactics] = (),
    force: bool = False,
    progress: Progress = NO_PROGRESS,
) -> BuildReport:
    """Compile an open checkpoint (`open_source`) into an engine file.

    `memory_limit` is the bytes of memory that this process may use; chunks shrink to fit. `max_shard_size` is the bytes
    of the largest file: a larger engine gets several, whose names begin as that of `output`. `dump` is a new folder for
    the graph after each pass, a page of the changes, launches and PTX. `tactics` are measured tiles, which replace
    those that llmc ships for a chip. `force` lets `output` be a file that is not an engine.

    Raises:
        LlmcError: any class of `runtime/errors.py`; the file at `output` is unchanged then.
    """
    clock, output = Clock(progress), Path(output)
    check_output(output, ENGINE, [checkpoint.path], force=force)
    temporary.sweep()  # of builds that were killed
    with clock.stage("read headers"):
        shown = start_dump(dump, recipe)
        tables = tactics_of(recipe.targets, tactics)
        context = context_of(recipe, checkpoint)
        idle = idle_settings(recipe, checkpoint)
        tokenizer = start_check(checkpoint)
    with clock.stage("graph and passes"):
        decoder, legal, passes = lower(checkpoint, recipe, context, shown)
        tensors = decoder.graph.canonical
    with clock.stage("compile profiles"):
        dtype = checkpoint.config.dtype or "float32"
        profiles = compiled(legal, ProfileConfig(context, recipe.max_batch, dtype, recipe.kv), tables, progress)
        if shown is not None:
            for name, profile in profiles.items():
                for file, text in profile.listing().items():
                    shown.write(f"{name}.{file}", text)
            write_page(shown)
        listed, sections = sections_of(profiles, rank_caches(recipe, decoder), context, recipe.max_batch)
        sections |= {f"{TOKENIZER_SECTIONS}{name}": data for name, data in sorted(checkpoint.tokenizer.items())}
    chunk = weights.chunk_bytes(memory_limit)
    room = sum(map(len, sections.values())) + MAX_BYTES
    most = None if max_shard_size is None else MaxShardSize(max_shard_size, room)
    groups = weights.groups(tensors)
    reserve = reserve_for(groups, len(sections), (profile.weights for profile in listed.values()))
    with EngineWriter(output, groups, reserve_header=reserve, most=most) as writer:
        with clock.stage("weights", weights.source_bytes(tensors, checkpoint.source)) as advance:

            def advanced(nbytes: int) -> None:
                if tokenizer.done():
                    tokenizer.result()  # a refusal stops the build at once
                advance(nbytes)

            notes = weights.write(tensors, checkpoint.source, writer, chunk_bytes=chunk, advance=advanced)
        with clock.stage("golden probe", block_count(decoder.graph), "blocks") as advance:
            golden = probe.measure_probe(decoder, writer.read, context=context, advance=advance)
        with clock.stage("digest checkpoint", checkpoint.files.shard_bytes) as advance:
            digests = checkpoint.files.digests(advance)
        with clock.stage("finish file", writer.steps, "tensors") as advance:
            text = tokenizer.result()
            notes += text.notes
            notes += tuple(dict.fromkeys(note for profile in profiles.values() for note in profile.notes))
            for name, data in sections.items():
                writer.section(name, data)
            writer.section(MEASURED, canonical({"probe": golden.to_json()}))
            manifest = manifest_of(checkpoint, text.special, recipe, tables, context, decoder, listed, digests)
            checkpoint.files.require_unchanged()
            writer.commit(manifest, advance)
    return BuildReport(
        files=writer.paths,
        bytes=sum(path.stat().st_size for path in writer.paths),
        seconds=clock.seconds,
        peak_rss_bytes=peak_memory(),
        stages=tuple(clock.stages),
        passes=passes,
        unused=decoder.unused,
        warnings=(*checkpoint.warnings, *idle, *notes),
        content_digest=writer.content_digest,
    )
