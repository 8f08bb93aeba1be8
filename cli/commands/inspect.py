"""`llmc inspect`: what a checkpoint or an engine says of itself, without reading its weights."""

from __future__ import annotations

import json as json_module
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from ...runtime.errors import EngineError, RecipeError
from ..common import console, options
from ..common.options import flag
from ..facts.checkpoint import checkpoint_facts, checkpoint_text


def is_engine(where: str) -> bool:
    """True if the path is an engine, also a damaged one: it exists, and is nothing that a checkpoint could be."""
    from ...runtime.engine_file.file import ENGINE
    from ...runtime.files.mistaken import FOREIGN

    path = Path(where)
    if not path.exists() or path.is_dir():
        return False
    named = path.suffix == ENGINE.suffix or path.suffix not in (".safetensors", ".json", *FOREIGN)
    return named or (path.is_file() and ENGINE.matches(path))


def inspect(
    subject: Annotated[str, typer.Argument(metavar="CHECKPOINT|ENGINE", help="A folder, a hub id, or an engine file.")],
    accept_config: options.AcceptConfig = None,
    launches: Annotated[
        bool, flag("--launches", "What each launch costs at the limits of a GPU, and tokens/s there.")
    ] = False,
    profile: options.Profile = None,
    target: options.For = None,
    program: Annotated[
        int | None, flag("--program", "With --launches: the program of this number.", default="all", min=0, metavar="N")
    ] = None,
    tokens: Annotated[
        int | None,
        flag(
            "--tokens", "With --launches: a step with so many of a prompt.", default="a decode step", min=1, metavar="N"
        ),
    ] = None,
    context: Annotated[
        int | None,
        flag("--context", "With --launches: tokens before it.", default="half of the context", min=0, metavar="N"),
    ] = None,
    verbose: options.Verbose = False,
    json: options.Json = False,
) -> None:
    """Show the facts of a checkpoint, buildable or not, or of an engine."""
    from ...runtime.environment import is_setting

    own = None if is_setting("profile", profile) else profile
    only = {"--program": program, "--tokens": tokens, "--context": context, "--for": target, "--profile": own}
    _refuse_idle(launches, only, accept_config, verbose)
    if launches:
        from . import launches as priced

        asked = {"program": program, "tokens": tokens, "context": context}
        return priced.show(subject, profile=profile, gpu=target, json=json, **asked)
    if not is_engine(subject):
        facts = checkpoint_facts(subject, accept_config or (), tensors=verbose)
        return console.show(facts, checkpoint_text(facts), json)
    if accept_config:
        raise RecipeError("expected a checkpoint with --accept-config", found=f"the engine {subject}")
    if verbose and json:
        console.note("llmc: --verbose changes nothing beside --json, which shows all of an engine")
    from ...runtime.engine_file.file import EngineFile, read_unchecked

    try:
        with EngineFile.open(subject) as engine:
            facts = _engine_facts(engine)
    except EngineError as error:
        # newer or damaged: print what can be read, then fail as any command would
        partial = {**read_unchecked(Path(subject)), **console.error_json(error)}
        console.show(partial, _partial_text(partial), json)
        console.note(f"llmc: {error}")
        raise typer.Exit(error.exit_code) from error
    console.show(facts, _engine_text(facts, verbose), json)


def _refuse_idle(launches: bool, only: dict[str, Any], accept_config: list[str] | None, verbose: bool) -> None:
    """Check that each flag changes something; those of `only` price launches.

    Raises:
        RecipeError: one does not; names it.
    """
    for name, value in only.items():
        if value is not None and not launches:
            raise RecipeError(f"expected --launches with {name}")
    if launches and (accept_config or verbose):
        flag = "--accept-config" if accept_config else "--verbose"
        raise RecipeError(f"cannot use {flag}, which would change nothing", found="--launches", fix=f"no {flag}")


def _engine_facts(engine: Any) -> dict[str, Any]:
    manifest = json_module.loads(engine.manifest.to_json())
    kept = (
        "format",
        "required_features",
        "model",
        "formats",
        "recipe",
        "recipe_digest",
        "checkpoint",
        "tools",
        "unused",
    )
    from ...runtime.ranks.facts import facts_of_ranks

    profiles = {name: _profile_facts(engine, profile) for name, profile in manifest["profiles"].items()}
    for name, profile in profiles.items():
        if ranks := facts_of_ranks(engine, name):
            profile["ranks"] = [asdict(one) for one in ranks]
    return {
        "path": str(engine.path),
        "bytes": engine.file_bytes,
        "files": [
            {"name": part.path.name, "bytes": part.bytes, "tensors": _weights_of(engine, number)}
            for number, part in enumerate(engine.parts)
        ],
        "tensors": len(engine.tensors),
        "tensor_bytes": sum(info.nbytes for info in engine.tensors.values()),
        "sections": {name: len(engine.section(name)) for name in engine.sections},
        "profiles": profiles,
        "content_digest": manifest["content_digest"],
        **{key: manifest[key] for key in kept},
        "recipe_name": engine.manifest.recipe_name,
        "checkpoint": {**_UNKNOWN, **manifest["checkpoint"]},
    }


def _weights_of(engine: Any, file: int) -> int:
    return sum(info.file == file for info in engine.tensors.values())


def _profile_facts(engine: Any, profile: dict[str, Any]) -> dict[str, Any]:
    """A profile without its weights; of a launch plan also which table of tiles it was made with."""
    from ...runtime.chips import SM
    from ...runtime.files.strict_json import loads

    facts = {**{key: value for key, value in profile.items() if key != "weights"}, "weights": len(profile["weights"])}
    if profile["target"] in SM:
        plan = loads(engine.section(profile["graph"]), what=profile["graph"], error=EngineError)
        facts["tactics"] = plan.get("tactics") if isinstance(plan, dict) else None
    return facts


_UNKNOWN = {"name": None, "hub_id": None, "revision": None, "licence": None}
"""Where a checkpoint came from, as far as nothing says it."""
_ENGINE = """\
engine {path}: {bytes!b}, format {format}
  model {name}{hub}, licence {licence}; recipe {recipe}, digest {recipe_digest:.12}
  {model[architecture]}: {model[parameters]:,} parameters{active}, {layers} layers, hidden {model[hidden_size]}, \
{model[heads]} heads and {kv_heads}, vocabulary {model[vocab_size]}
  weights: {tensors} tensors, {tensor_bytes!b}; modules: {counts}"""


def _engine_text(facts: dict[str, Any], verbose: bool) -> str:
    from ...runtime.engine_file.info import drafts_left_out, parts_left_out

    facts = console.on_lines(facts)
    counts = ", ".join(f"{count} {name}" for name, count in sorted(Counter(facts["formats"].values()).items()))
    caches = facts["model"]["caches"]
    more = {"layers": len(caches), "kv_heads": _kv_heads(caches), "counts": counts or "none quantized"}
    active = facts["model"].get("active_parameters")
    more["active"] = f" ({active:,} of them active)" if active is not None else ""
    lines = [console.fill(_ENGINE, {**facts, **more, **_origin(facts)})]
    if len(facts["files"]) > 1:
        text = "  file {name}: {bytes!b}, {tensors} tensors"
        lines += [console.fill(text, one) for one in facts["files"]]
    for name, profile in facts["profiles"].items():
        more = f", tiles {profile['tactics']}" if "tactics" in profile else ""
        more += f", {len(profile['ranks'])} ranks" if "ranks" in profile else ""
        text = "  profile {name}: target {target}, context {max_context}, batch {max_batch}{more}"
        lines.append(console.fill(text, profile, name=name, more=more))
        lines += [_rank_text(rank) for rank in profile.get("ranks", ())]
    lines += [f"  {part}" for part in (*parts_left_out(facts["unused"]), *drafts_left_out(facts["unused"]))]
    lines += [f"  section{name}: {text}" for name, text in _sections(facts, verbose).items()]
    lines.append(f"  made by {', '.join(f'{name} {version}' for name, version in facts['tools'].items())}")
    if verbose:
        lines += [f"  {module}: {name}" for module, name in facts["formats"].items()]
        lines.append(f"  recipe {json_module.dumps(facts['recipe'])}")
    return "\n".join([*lines, f"  content digest {facts['content_digest']}"])


_RANK = "    rank {rank}: stage {stage}, shard {shard}, {held}, weights {weights!b}{cut}"


def _rank_text(rank: dict[str, Any]) -> str:
    layers, cut = rank["layers"], rank["segments"]
    held = f"layers {layers[0]} to {layers[-1]}, {_kv_heads(rank['caches'])}" if layers else "no layer"
    return console.fill(_RANK, rank, held=held, cut=f", {cut} segment{'s' * (cut > 1)}" if cut else "")


def _sections(facts: dict[str, Any], verbose: bool) -> dict[str, str]:
    """Sizes of sections; those of ranks, which are many, in one line for each profile."""
    shown, of_ranks = dict[str, str](), dict[str, list[int]]()
    for name, size in facts["sections"].items():
        folder, _, file = name.partition("/rank-")
        if file and not verbose:
            of_ranks.setdefault(folder, []).append(size)
        else:
            shown[f" {name}"] = console.size(size)
    return shown | {f"s {name}/rank-*": f"{len(sizes)}, {console.size(sum(sizes))}" for name, sizes in of_ranks.items()}


def _origin(facts: dict[str, Any]) -> dict[str, str]:
    """Where an engine came from, in words."""
    found = facts["checkpoint"]
    at = f" at {found['revision']}" if found["revision"] else ""
    return {
        "name": found["name"] or "without a name",
        "hub": f" ({found['hub_id']}{at})" if found["hub_id"] else at,
        "licence": found["licence"] or "unknown",
        "recipe": facts["recipe_name"] or "of its own",
    }


def _kv_heads(caches: list[dict[str, Any]]) -> str:
    """What layers keep of a position, equal ones once."""
    kinds = Counter((one["kv_heads"], one["head_dim"], one.get("window"), one.get("rank")) for one in caches)
    return ", ".join(
        (f"latent rows of {size}" if rank else f"{heads} kv head{'s' * (heads != 1)} of {size}")
        + (f", window {window}" if window else "")
        + (f" ({layers} of {len(caches)} layers)" if len(kinds) > 1 else "")
        for (heads, size, window, rank), layers in kinds.items()
    )


def _partial_text(facts: dict[str, Any]) -> str:
    manifest = facts["manifest"] if isinstance(facts["manifest"], dict) else {}
    lines = [f"{console.size(facts['bytes'])}, {len(facts['tensors'])} tensors"]
    lines += [
        f"  {key}: {json_module.dumps(manifest[key])}"
        for key in ("format", "required_features", "model", "tools", "content_digest")
        if key in manifest
    ]
    return "\n".join(lines)
