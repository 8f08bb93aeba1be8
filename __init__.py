"""The public API of llmc: build an engine from a checkpoint, load it, generate. Importing it imports nothing heavy."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from typing import Literal, Unpack

    from .compiler.deploy.report import PlanReport
    from .recipes.flags import BuildFlags
    from .recipes.recipe import Recipe
    from .runtime.engine import Engine
    from .runtime.engine_file.file import EngineFile
    from .runtime.engine_file.info import EngineInfo
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
    "EngineInfo",
    "LlmcError",
    "Piece",
    "PlanReport",
    "RecipeError",
    "ResourceError",
    "Result",
    "Unsupported",
    "VerifyError",
    "__version__",
    "build",
    "load",
    "plan",
]
_HOMES = {
    "Engine": "runtime.engine",
    "EngineInfo": "runtime.engine_file.info",
    "Piece": "runtime.scheduling.request",
    "PlanReport": "compiler.deploy.report",
    "Result": "runtime.scheduling.request",
}


_Function = TypeVar("_Function", bound=Callable[..., Any])
_CALLER = 4
"""The caller's frame for a warning in a function of this file: the function, `public` and `_public` come before it."""


def _public(function: _Function) -> _Function:
    """`runtime.guard.public`, which is imported with the first call."""

    @wraps(function)
    def call(*given: Any, **keywords: Any) -> Any:
        from .recipes.flags import BuildFlags
        from .runtime.guard.public import public

        return public(BuildFlags)(function)(*given, **keywords)

    return call  # type: ignore[return-value]


@_public
def build(
    checkpoint: str | Path,
    output: str | Path,
    recipe: str | Path | Mapping[str, Any] | Recipe | None = None,
    *,
    memory_limit: float | str | None = None,
    max_shard_size: float | str | None = None,
    accept_config: str | Collection[str] = (),
    random_weights: int | None = None,
    chat_template: str | Path | None = None,
    tactics: str | Path | Collection[str | Path] = (),
    machine: str | None = None,
    goal: str | None = None,
    force: bool = False,
    **flags: Unpack[BuildFlags],
) -> Path:
    """Builds the engine file `output` from the Hugging Face folder or hub id `checkpoint`; returns its path.

    `recipe` is a bundled recipe's name, a YAML file, its content as a mapping, or a Recipe. The flags quantize,
    activations, kv, targets, max_context and max_batch (recipes/flags.py) override it. `memory_limit` bounds the peak
    of this process: GiB, or a text such as "500M"; `max_shard_size` the size of a file: a larger engine is split into
    several, of which `output` is the one to load.
    `accept_config` lists unknown config keys to ignore, or names one. `random_weights` is a seed, to build without
    weights (for benchmarks). `chat_template`, jinja's text or the Path of a file with it, replaces the checkpoint's.
    `tactics` are tables of tiles written by `llmc tune`, or one. With parallel="auto" or quantize="auto" a plan chooses
    for `machine` ("8xh200") by `goal` ("throughput,tpot<=40ms"), as `plan` does. `force` replaces a file at `output`
    that is not an engine; inputs are never replaced. Notes about the engine are UserWarnings.

    Raises:
        LlmcError: the engine cannot be built; its subclasses are in runtime/errors.py.
    """
    import warnings

    from .compiler.checkpoint.account import open_source
    from .compiler.deploy.auto import auto_of
    from .compiler.targets.cuda.tuning.tactics import load_table
    from .recipes.recipe import with_flags
    from .runtime.engine_file.file import ENGINE
    from .runtime.errors import demand, path_of, several, text_of
    from .runtime.files.outputs import check_output
    from .runtime.guard.limits import BUILD_BYTES, demand_address_space
    from .runtime.machine import size_bytes

    where = checkpoint if isinstance(checkpoint, str) else path_of("checkpoint", checkpoint)
    path = path_of("output", output)
    keys = several("accept_config", accept_config, text_of)
    tables = several("tactics", tactics, path_of)
    demand("force", force, "true or false", bool)
    demand("chat_template", chat_template, "jinja's text or a Path", str | Path | None)
    if random_weights is not None:
        demand("random_weights", random_weights, "a whole number", int)
    auto = auto_of(recipe, flags, machine, goal, ("machine", "goal"))
    chosen = with_flags(recipe, **flags) if auto is None else auto.recipes[0]
    limit = None if memory_limit is None else size_bytes(memory_limit)
    largest = None if max_shard_size is None else size_bytes(max_shard_size, "a size of files")
    inputs = [where, *([recipe] if isinstance(recipe, str | Path) else ()), *tables]
    inputs += [chat_template] if isinstance(chat_template, Path) else []
    check_output(path, ENGINE, inputs, force=force)
    demand_address_space(BUILD_BYTES, "build an engine")
    source = open_source(where, keys, random_weights, chat_template)
    from .compiler.build import build as build_engine  # imports torch and onnx: after the checks that need neither

    if auto is not None:
        from .compiler.deploy.choice import decide

        chosen, said = decide(auto, source)
        warnings.warn(f"{path}: {said}", stacklevel=_CALLER)
    tiles = [load_table(table) for table in tables]
    limits: Any = {"memory_limit": limit, "max_shard_size": largest}
    report = build_engine(source, path, chosen, **limits, tactics=tiles, force=force)
    for warning in report.warnings:
        warnings.warn(f"{path}: {warning}", stacklevel=_CALLER)  # with the path: Python shows equal ones of a line once
    return report.path


@_public
def plan(
    checkpoint: str | Path,
    machines: str | Sequence[str] | None = None,
    goal: str | None = None,
    *,
    input: int | None = None,
    output: int | None = None,
    context: int | None = None,
    batch: int | None = None,
    quantize: str | Sequence[str] | None = None,
    activations: str | None = None,
    kv: str | None = None,
    accept_config: str | Collection[str] = (),
) -> PlanReport:
    """Prices every split and weight format of a model on machines, and chooses the best by a goal.

    `checkpoint` is a Hugging Face folder, a hub id, or a config.json alone; no weight is read. `machines` are names as
    "8xh200", in a text with commas between them; all that llmc knows by default. `goal` is an objective (latency,
    throughput, bytes) and limits: "throughput,tpot<=40ms". Requests have `input` tokens of prompt and `output` tokens
    of answer (1024 each, at most half of the model's context); `batch` of them run at once on the machine (by default
    any number that fits). `quantize`, `activations` and `kv` restrict formats. `PlanReport`
    (compiler/deploy/report.py) has the fields that `llmc plan --json` prints; its `best` is None if nothing reaches
    the goal.

    Raises:
        LlmcError: the model cannot be read, or something was asked for that does not exist.
    """
    from .compiler.deploy.asked import asked_of
    from .compiler.kernel_imports import late_imports
    from .runtime.errors import path_of, several, text_of
    from .runtime.guard.limits import BUILD_BYTES, demand_address_space

    where = checkpoint if isinstance(checkpoint, str) else path_of("checkpoint", checkpoint)
    keys = several("accept_config", accept_config, text_of)
    load: Any = {"input": input, "output": output, "context": context, "batch": batch}
    asked = asked_of(machines, goal, **load, quantize=quantize, activations=activations, kv=kv)
    demand_address_space(BUILD_BYTES, "plan")
    with late_imports():
        from .compiler.deploy.models import model_of
        from .compiler.deploy.plan_model import plan_model
    return plan_model(model_of(where, keys), asked).report


@_public
def load(
    path: str | Path,
    profile: str | None = None,
    *,
    threads: int | None = None,
    max_batch: int | None = None,
    verify: Literal["header", "full"] = "header",
    chat_template: str | Path | None = None,
    trust: Literal["rebuild", "digest", "any"] | None = None,
) -> Engine:
    """Opens an engine file and makes it ready to run; parameters and errors are those of runtime/load.py.

    `trust` says which machine code of a GPU profile may run: what the installed llmc compiles to the same bytes
    ("rebuild", needs the extra cuda-build), what llmc has compiled on this machine ("digest"), or any (the default).

    A `profile` of several ranks ("cpu-tp2") starts their processes, which end with the engine; under a launcher such as
    torchrun, this function returns on rank 0 alone, and ends the other processes when they have served.

    `Engine.info` says what was loaded. Notes about its loading (`Engine.notes`) are UserWarnings.
    """
    import warnings

    from .runtime.cuda.trust import judge_of
    from .runtime.errors import text_of
    from .runtime.load import load as load_engine

    def rebuild(engine: EngineFile, profile: str) -> None:
        from .compiler.targets.cuda.cubins.rebuild import judge

        judge(engine, profile)

    judge = judge_of(None if trust is None else text_of("trust", trust), rebuild)
    limits: Any = {"threads": threads, "max_batch": max_batch, "verify": verify}
    engine = load_engine(path, profile, **limits, chat_template=chat_template, judge=judge)
    for note in engine.notes:
        warnings.warn(f"{path}: {note}", stacklevel=_CALLER)
    return engine


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
