"""`llmc eval`: how well an engine predicts a text, and what was lost against the checkpoint or another engine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict
from itertools import islice
from typing import TYPE_CHECKING, Annotated

from ...runtime.errors import RecipeError
from ..common import console, extras, options, texts
from ..common.options import flag
from .inspect import is_engine

if TYPE_CHECKING:
    from ...runtime.engine import Engine
    from ...runtime.engine_file.manifest import Manifest
    from ...runtime.evaluate import Logits

_WINDOW = 512


def evaluate(
    engine: options.EngineFile,
    text: Annotated[list[str], flag("--text", "A UTF-8 text to score; may be repeated.", show_default=False)],
    baseline: Annotated[
        str | None, flag("--baseline", "A checkpoint or an engine to compare with.", default="none")
    ] = None,
    window: Annotated[
        int | None, flag("--window", "Tokens that see each other.", default="the context, at most 512")
    ] = None,
    max_tokens: Annotated[
        int | None, flag("--max-tokens", "Score only the first tokens of all texts.", default="all", min=1)
    ] = None,
    profile: options.Profile = None,
    threads: options.Threads = None,
    json: options.Json = False,
) -> None:
    """Measure perplexity, and with a baseline the distance from it."""
    from ...runtime.engine_file.file import EngineFile
    from ...runtime.evaluate import score
    from ...runtime.load import load

    contents = [texts.read_text(path) for path in text]
    with ExitStack() as stack:
        with EngineFile.open(engine) as opened:
            manifest = opened.manifest
        loaded = stack.enter_context(load(engine, profile, threads=threads, max_batch=1))
        other, room = None, loaded.max_context
        if baseline is not None:
            other, others = _baseline(baseline, manifest, stack, threads)
            room = room if others is None else min(room, others)
        size = min(_WINDOW, room) if window is None else window
        if size > room:
            raise RecipeError(f"expected --window of at most {room}, the context", found=str(size))
        cut = _cut(contents, loaded, manifest.model.bos, size, max_tokens)
        result = score(cut, loaded.logits, other)
    facts = {name: value for name, value in asdict(result).items() if value is not None}
    said = f"{result.tokens} tokens, perplexity {result.perplexity:.4f}"
    if baseline is not None:
        said += (
            f"\nagainst {baseline}: KL mean {result.kl_mean:.6f}, 99th percentile {result.kl_p99:.6f} nats, "
            f"same best token at {100 * (result.top1_agreement or 0):.2f} %"
        )
    console.show(facts, said, json)


def _cut(contents: list[str], engine: Engine, bos: int | None, size: int, limit: int | None) -> Iterator[list[int]]:
    """Windows over one text at a time, until `limit` tokens are scored."""
    from ...runtime.evaluate import windows

    left = limit
    for text in contents:
        ids = engine.tokenizer.encode(text, bos=False)
        for one in windows(ids, size, bos):
            if left is not None:
                one = list(islice(one, left + 1))
                left -= len(one) - 1
            yield one
            if left == 0:
                return


def _baseline(where: str, manifest: Manifest, stack: ExitStack, threads: int | None) -> tuple[Logits, int | None]:
    """Logits and context of another engine; of a checkpoint the fp32 oracle's logits and no limit (None).

    Raises:
        RecipeError: its tokenizer differs from this engine's.
    """
    if is_engine(where):
        from ...runtime.engine_file.file import EngineFile
        from ...runtime.load import load

        with EngineFile.open(where) as opened:
            _same_tokenizer(manifest, opened.manifest.checkpoint.files, where)
        engine = stack.enter_context(load(where, threads=threads, max_batch=1))
        return engine.logits, engine.max_context
    extras.need("build", "a checkpoint as --baseline")
    from ...compiler.checkpoint.checkpoint import open_checkpoint
    from ...compiler.oracle.reference import reference_logits

    checkpoint = open_checkpoint(where, accept_config=manifest.checkpoint.accepted_config)
    _same_tokenizer(manifest, checkpoint.files.small_digests, where)
    return reference_logits(checkpoint), None


def _same_tokenizer(manifest: Manifest, digests: Mapping[str, str], where: str) -> None:
    if manifest.checkpoint.files.get("tokenizer.json") != digests.get("tokenizer.json"):
        raise RecipeError(
            f"expected a baseline with the engine's tokenizer, not {where}", found="another tokenizer.json"
        )
