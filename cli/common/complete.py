"""Values that a shell offers for a flag: read from the tables that check them."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from ...runtime.errors import LlmcError


def formats(incomplete: str) -> list[str]:
    """Weight formats."""
    from ...runtime.dtypes import WEIGHT_FORMATS

    return _beginning(incomplete, ("none", *WEIGHT_FORMATS))


def activations(incomplete: str) -> list[str]:
    """Formats of activations."""
    from ...runtime.dtypes import ACTIVATION_FORMATS

    return _beginning(incomplete, ACTIVATION_FORMATS)


def precisions(incomplete: str) -> list[str]:
    """Formats of the KV cache."""
    from ...runtime.dtypes import REDUCED_FORMATS

    return _beginning(incomplete, REDUCED_FORMATS)


def recipes(incomplete: str) -> list[str]:
    """Bundled recipes, and YAML files beside what is typed."""
    from ...recipes.recipe import bundled_recipes

    folder = Path(incomplete).parent if "/" in incomplete else Path()
    files = sorted(str(path) for path in folder.glob("*.yaml")) if folder.is_dir() else ()
    return _beginning(incomplete, (*bundled_recipes(), *files))


def targets(incomplete: str) -> list[str]:
    """Targets and GPUs; after a comma, those that the list does not have yet."""
    from ...runtime.chips import GPUS, TARGETS
    from ...runtime.cuda.names import NATIVE

    done, comma, last = incomplete.rpartition(",")
    left = [name for name in (*TARGETS, NATIVE, *GPUS) if name not in done.split(",")]
    return [f"{done}{comma}{name}" for name in _beginning(last, left)]


def gpus(incomplete: str) -> list[str]:
    """GPUs, and the machines without one or with what is here."""
    from ...runtime.chips import GPUS
    from ...runtime.cuda.names import CPU, NATIVE

    return _beginning(incomplete, (*GPUS, CPU, NATIVE))


def chips(incomplete: str) -> list[str]:
    """GPUs, and the one that is here."""
    from ...runtime.chips import GPUS
    from ...runtime.cuda.names import NATIVE

    return _beginning(incomplete, (*GPUS, NATIVE))


def profiles(ctx: Any, incomplete: str) -> list[str]:
    """Profiles of the first engine that the command line names; none if it names no engine."""
    from ...runtime.engine_file.file import EngineFile

    # The parser stops at the flag whose value is missing, and leaves the arguments before it in `args`.
    for named in (*ctx.args, ctx.params.get("engine"), ctx.params.get("subject")):
        with suppress(LlmcError, OSError, TypeError), EngineFile.open(named) as engine:  # TypeError: no engine
            return _beginning(incomplete, engine.manifest.profiles)
    return []


def _beginning(incomplete: str, names: Iterable[str]) -> list[str]:
    return [name for name in names if name.startswith(incomplete) and name.isprintable()]
