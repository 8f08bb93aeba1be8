"""`llmc eval`: how well engines predict a text, and what was lost against the checkpoint or another engine."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack, closing
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ...runtime.errors import RecipeError
from ..common import console, extras, options, progress
from ..common.options import flag
from ..judge import corpus, rows, subjects, trust
from ..judge.rows import Column
from .inspect import is_engine

if TYPE_CHECKING:
    from ...runtime.cuda.trust import Judge
    from ...runtime.engine_file.manifest import Manifest
    from ...runtime.evaluate import Evaluation, Logits

_WINDOW = 512


def _modules(formats: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in formats.items()) or "none quantized"


_COLUMNS = (
    Column("engine", "engine"),
    Column("bytes", "size", console.size),
    Column("formats", "modules", _modules),
    Column("tokens", "tokens"),
    Column("perplexity", "perplexity", "{:.4f}".format),
    Column("ppl_ratio", "ratio", "{:.4f}".format),
    Column("kl_mean", "KL mean, nats", "{:.6f}".format),
    Column("kl_p99", "KL p99, nats", "{:.6f}".format),
    Column("top1", "same best token", lambda share: f"{100 * share:.2f} %"),
    Column("word_perplexity", "per word", "{:.4f}".format),
    Column("byte_perplexity", "per byte", "{:.4f}".format),
    Column("bits_per_byte", "bits per byte", "{:.4f}".format),
)

Engines = Annotated[
    list[str],
    typer.Argument(metavar="ENGINE", help="Engine files (.llmc); several give one table.", show_default=False),
]


def evaluate(
    engines: Engines,
    text: Annotated[
        list[str] | None, flag("--text", "A UTF-8 text to score; may be repeated.", default="none", metavar="FILE")
    ] = None,
    tokens: Annotated[
        list[str] | None,
        flag("--tokens", "A JSON list of lists of token ids; may be repeated.", default="none", metavar="FILE"),
    ] = None,
    jsonl: Annotated[
        list[str] | None,
        flag(
            "--jsonl",
            'Lines with "text", "tokens" or "messages"; may be repeated.',
            default="none",
            metavar="FILE",
        ),
    ] = None,
    baseline: Annotated[
        str | None, flag("--baseline", "A checkpoint or an engine to compare with.", default="none", metavar="MODEL")
    ] = None,
    window: Annotated[
        int | None, flag("--window", "Tokens that see each other.", default="the context, at most 512", metavar="N")
    ] = None,
    windows: Annotated[
        Literal["separate", "rolling"],
        flag(
            "--windows",
            "separate: each window is BOS and N - 1 tokens of the text. rolling: as lm-eval, BOS (else EOS) once, then "
            "N tokens predict N.",
        ),
    ] = "separate",
    max_tokens: Annotated[
        int | None, flag("--max-tokens", "Score only the first tokens of all texts.", default="all", min=1, metavar="N")
    ] = None,
    gate: Annotated[list[str] | None, rows.gate_option("kl_mean<=0.01")] = None,
    profile: options.Profile = None,
    threads: options.Threads = None,
    trusted: trust.Trust = None,
    form: rows.FormOption = None,
    json: options.Json = False,
) -> None:
    """Measure perplexity, and with a baseline the distance from it."""
    from ...recipes.metrics import gates_for
    from ...runtime.evaluate import score
    from ...runtime.load import load

    how = rows.form_of(form, json)
    judge = trust.judge(trusted, quiet=how == "json")
    given = corpus.read(text or (), tokens or (), jsonl or ())
    size = corpus.whole_texts(given) if windows == "rolling" and max_tokens is None else None
    gates = gates_for("eval", gate or (), baseline=baseline is not None, whole=size is not None)
    judged = [subjects.subject(path, profile) for path in engines]
    subjects.demand_one_tokenizer(judged, messages=any(one.messages for one in given))
    corpus.refuse_unknown_tokens(given, min(one.manifest.model.vocab_size for one in judged))
    found: list[Evaluation] = []
    with ExitStack() as stack:
        other, room = None, min(one.limits.max_context for one in judged)
        if baseline is not None:
            other, others = _baseline(baseline, judged[0].manifest, stack, threads, judge)
            room = room if others is None else min(room, others)
        length = min(_WINDOW, room) if window is None else window
        if length > room:
            raise RecipeError(f"expected --window of at most {room}, the context", found=str(length))
        groups = subjects.groups(
            judged, lambda one: load(one.path, one.profile, threads=threads, max_batch=1, judge=judge)
        )
        model = judged[0].manifest.model
        for group in stack.enter_context(closing(groups)):
            for said in dict.fromkeys(said for engine in group for said in engine.notes):
                console.note(f"llmc: {said}")
            first = model.bos if windows == "separate" else corpus.prefix(model, group[0])
            ids = (one.encode(group[0], model.bos) for one in given)
            cut = list(corpus.cut(ids, length, first, max_tokens, windows))
            total = sum(len(one.wanted) for one in cut)
            with progress.for_terminal(quiet=how == "json").stage("score", total, unit="tokens") as advance:
                found += score(cut, [engine.logits for engine in group], other, advance, size)
    facts = [_facts(one, result) for one, result in zip(judged, found, strict=True)]
    rows.show(facts, gates, how, rows.Shown(_COLUMNS, lambda row: _text(row, baseline), lambda row: row["engine"]))


def _facts(one: subjects.Subject, result: Evaluation) -> dict[str, Any]:
    """A row: what was judged, and each figure that was measured under its metric's name."""
    figures = {name: value for name, value in asdict(result).items() if value is not None}
    return {"engine": one.path, "bytes": one.bytes, "profile": one.profile, "formats": one.formats, **figures}


_ALONE = "{tokens} token{tokens!s}, perplexity {perplexity:.4f}"
_WHOLE = "; {word_perplexity:.4f} per word, {byte_perplexity:.4f} per byte, {bits_per_byte:.4f} bits per byte"
_AGAINST = """
against {baseline}: perplexity {ppl_ratio:.4f} times, KL mean {kl_mean:.6f}, 99th percentile {kl_p99:.6f} nats, \
same best token at {percent:.2f} %"""


def _text(row: rows.Row, baseline: str | None) -> str:
    alone = _ALONE + (_WHOLE if "bits_per_byte" in row else "")
    if baseline is None:
        return console.fill(alone, row)
    return console.fill(alone + _AGAINST, row, baseline=baseline, percent=100 * row["top1"])


def _baseline(
    where: str, manifest: Manifest, stack: ExitStack, threads: int | None, judge: Judge | None
) -> tuple[Logits, int | None]:
    """Logits and context of another engine; of a checkpoint the fp32 oracle's logits and no limit (None).

    Raises:
        RecipeError: its tokenizer differs from this engine's.
    """
    if is_engine(where):
        from ...runtime.chips import SM
        from ...runtime.engine_file.file import EngineFile
        from ...runtime.load import load

        with EngineFile.open(where) as opened:
            _same_tokenizer(manifest, opened.manifest.checkpoint.files, where)
        chosen = subjects.subject(where, None)
        judging = judge if chosen.limits.target in SM else None
        engine = stack.enter_context(load(where, chosen.profile, threads=threads, max_batch=1, judge=judging))
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
