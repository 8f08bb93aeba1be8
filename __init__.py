"""The public API of llmc: build an engine from a checkpoint, load it, generate. Importing it imports nothing heavy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from pathlib import Path
    from typing import Literal, Unpack

    from .recipes.flags import BuildFlags
    from .recipes.recipe import Recipe
    from .runtime.engine import Engine
    from .runtime.errors import (
        CheckpointError,
        EngineError,
        LlmcError,
        RecipeError,
        ResourceError,
        Unsupported,
        VerifyError,
    )
    from .runtime.scheduling.request import Piece, Result

    __version__: str

__all__ = [
    "CheckpointError",
    "Engine",
    "EngineError",
    "LlmcError",
    "Piece",
    "RecipeError",
    "ResourceError",
    "Result",
    "Unsupported",
    "VerifyError",
    "__version__",
    "build",
    "load",
]
_HOMES = {"Engine": "runtime.engine", "Piece": "runtime.scheduling.request", "Result": "runtime.scheduling.request"}


def build(
    checkpoint: str | Path,
    output: str | Path,
    recipe: str | Path | Recipe | None = None,
    *,
    memory_limit: float | str | None = None,
    accept_config: Collection[str] = (),
    random_weights: int | None = None,
    chat_template: str | Path | None = None,
    tactics: Sequence[str | Path] = (),
    force: bool = False,
    **flags: Unpack[BuildFlags],
) -> Path:
    """Builds the engine file `output` from the Hugging Face folder or hub id `checkpoint`; returns its path.

    `recipe` is a bundled recipe's name, a YAML file, or a Recipe. The flags quantize, activations, kv, targets,
    max_context and max_batch (recipes/flags.py) override it. `memory_limit` bounds the peak of this process: GiB, or a
    text such as "500M". `accept_config` lists unknown config keys to ignore. `random_weights` is a seed, to build
    without weights (for benchmarks). `chat_template`, jinja's text or the Path of a file with it, replaces the
    checkpoint's. `tactics` are tables of tiles written by `llmc tune`. `force` replaces a file at `output` that is not
    an engine; inputs are never replaced. Notes about the engine are UserWarnings.

    Raises:
        LlmcError: the engine cannot be built; its subclasses are in runtime/errors.py.
    """
    import warnings
    from pathlib import Path

    from .compiler.checkpoint.account import open_source
    from .compiler.targets.cuda.tuning.tactics import load_table
    from .recipes.recipe import with_flags
    from .runtime.engine_file.file import ENGINE
    from .runtime.files.outputs import check_output
    from .runtime.machine import memory_bytes

    chosen = with_flags(recipe, **flags)
    limit = None if memory_limit is None else memory_bytes(memory_limit)
    inputs = [checkpoint, *([recipe] if isinstance(recipe, str | Path) else ()), *tactics]
    inputs += [chat_template] if isinstance(chat_template, Path) else []
    check_output(Path(output), ENGINE, inputs, force=force)
    source = open_source(checkpoint, accept_config, random_weights, chat_template)
    from .compiler.build import build as build_engine  # imports torch and onnx: after the checks that need neither

    tables = [load_table(Path(path)) for path in tactics]
    report = build_engine(source, output, chosen, memory_limit=limit, tactics=tables, force=force)
    for warning in report.warnings:
        warnings.warn(warning, stacklevel=2)
    return report.path


def load(
    path: str | Path,
    profile: str | None = None,
    *,
    threads: int | None = None,
    max_batch: int | None = None,
    verify: Literal["header", "full"] = "header",
    chat_template: str | Path | None = None,
) -> Engine:
    """Opens an engine file and makes it ready to run; parameters and errors are those of runtime/load.py."""
    from .runtime.load import load as load_engine

    return load_engine(path, profile, threads=threads, max_batch=max_batch, verify=verify, chat_template=chat_template)


def __getattr__(name: str) -> Any:
    import importlib

    if name == "__version__":
        import importlib.metadata

        from .runtime.errors import DISTRIBUTION

        return importlib.metadata.version(DISTRIBUTION)
    if name not in __all__:
        raise AttributeError(f"module 'llmc' has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOMES.get(name, 'runtime.errors')}", __name__), name)


def __dir__() -> list[str]:
    return __all__
