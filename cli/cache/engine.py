"""The engine that `llmc run` runs: the file it was given, or one from the cache, built first if it is not there."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from ...runtime.errors import RecipeError
from ..common import complete, console, extras, options, progress
from ..common.options import flag

if TYPE_CHECKING:
    from ...compiler.cache.find import Found, Wish
    from ...runtime.progress import Progress

_FLAGS = ("quantize", "targets", "max_context")
_Quantize = Annotated[
    str | None,
    flag(
        "--quantize",
        "Of a CHECKPOINT: weight format int4, int8, fp8, nvfp4, mxfp4 ... or none.",
        default="int8, or what it is quantized to",
        metavar="FORMAT",
        group=options.RECIPE,
        autocompletion=complete.formats,
    ),
]
BUILT: Mapping[str, Any] = {
    "recipe": options.RecipeName,
    "accept_config": options.AcceptConfig,
    **{name: options.BUILD_FLAGS[name] for name in _FLAGS},
    "quantize": _Quantize,
}
"""The options of a build that `llmc run CHECKPOINT` takes."""
_SPELLED = {"targets": "--target"}


def is_checkpoint(where: str) -> bool:
    """True for a folder, a weight file, a hub id or its page; all else is an engine file, which need not be there."""
    path = os.path.expanduser(where)
    if os.path.isdir(path) or (path.endswith(".safetensors") and os.path.isfile(path)):
        return True
    if path.endswith(".llmc") or os.path.lexists(path) or "/" not in where:
        return False
    from ...runtime.files.mistaken import mistaken_address, parse_hub_id

    return parse_hub_id(where) is not None or mistaken_address(where) is not None


def refuse_flags(engine: str, built: Mapping[str, Any]) -> None:
    """Refuse flags of a build beside an engine, which they cannot change.

    Raises:
        RecipeError: one was given.
    """
    given = [_SPELLED.get(name, "--" + name.replace("_", "-")) for name, value in built.items() if value]
    if given:
        raise RecipeError(
            f"cannot apply {', '.join(given)} to {engine}",
            found="an engine file, which is built already",
            fix=f"llmc run CHECKPOINT {given[0]} ..., or llmc build CHECKPOINT -o OUT.llmc {given[0]} ...",
        )


def engine_of(
    checkpoint: str,
    built: Mapping[str, Any],
    *,
    profile: str | None,
    simulated: bool,
    max_batch: int | None,
    verify: Literal["header", "full"],
    chat: bool,
    quiet: bool,
) -> Path:
    """The engine of a checkpoint in the cache; says on stderr which it is, and builds it if it must.

    What the run would be refused for is refused before the build.
    """
    from ...compiler.cache import find

    wish = find.Wish.of(built["recipe"], **{name: built[name] for name in _FLAGS})
    wish.refuse_other(profile, simulated=simulated, max_batch=max_batch)
    if not find.was_built(checkpoint):
        extras.need("build", "llmc run CHECKPOINT")  # before gigabytes are hashed
    shown = cache(lambda: progress.for_terminal(quiet=quiet))
    found = find.find(checkpoint, wish, built["accept_config"] or (), verify=verify, progress=shown)
    if found.ready:
        console.note(f"llmc: {_recipe(found, wish.free)}, from the cache: {found.path}")
    else:
        extras.need("build", "llmc run CHECKPOINT")
        if chat and found.checkpoint.chat_template is None:
            from ...runtime.text.chat import no_template

            raise no_template()
        if found.damage:
            console.note(f"llmc: the engine in the cache is damaged and is built again: {found.damage}")
        _build(found, wish, shown())
    found.used()
    return found.path


def _build(found: Found, wish: Wish, shown: Progress) -> None:
    console.note(f"{found.checkpoint.path}: building {_recipe(found, wish.free)}")
    report = found.build(shown, lambda: console.note("llmc: another process builds this engine: waiting for it"))
    for warning in report.warnings if report else ():
        console.warn(warning)
    how = "built with" if report else "another process has built it with"
    console.note(
        f"llmc: {how} {_recipe(found, wish.free)}: {found.path}; next time it starts from the cache (llmc cache list)"
    )


def _recipe(found: Found, free: bool) -> str:
    recipe = found.recipe
    weights = "the weights as they are" if recipe.default_format == "none" else recipe.default_format
    targets = ", ".join("the cpu" if target == "cpu" else target for target in recipe.targets)
    return f"{weights} for {targets}{' (no --quantize given)' if free else ''}"
