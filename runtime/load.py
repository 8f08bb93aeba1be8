"""Turns an engine file into a running engine: checks, tokenizer, profile, executor."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from . import environment
from .chips import SM
from .engine import Engine
from .engine_file.file import EngineFile
from .engine_file.info import info_of
from .engine_file.manifest import TOKENIZER_SECTIONS
from .engine_file.ranks import split_of
from .errors import EngineError, RecipeError, Unsupported, demand, path_of, text_of
from .files.strict_json import loads
from .guard.limits import RUN_BYTES, demand_address_space
from .profiles import choose, why
from .progress import debug
from .scheduling.executor import Executor
from .text.chat import chat_template_source, checked_source
from .text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from .cuda.trust import Judge
    from .plan.executor import MakeDevice


def load(
    path: str | Path,
    profile: str | None = None,
    *,
    threads: int | None = None,
    max_batch: int | None = None,
    verify: Literal["header", "full"] = "header",
    chat_template: str | Path | None = None,
    make_device: MakeDevice | None = None,
    judge: Judge | None = None,
) -> Engine:
    """Opens an engine file and makes it ready to run; `profile` None takes the best one that fits this machine, of one
    rank if there is one.

    A profile of several ranks, such as "cpu-tp2", runs in as many processes: this one is rank 0, and starts the others
    on this machine until the engine is closed. If a launcher has started this process (RANK and WORLD_SIZE are set),
    the ranks are its processes, which all call this function: above rank 0 it does not return, and ends the process
    with SystemExit when rank 0 has closed its engine.

    `threads` is the number of CPU threads (default: all that this process may use), `max_batch` the most requests that
    run at once (default: what the engine was built for, which is the most). `verify` "full" checks every byte first.
    `chat_template`, jinja's text or the Path of a file with it, replaces the engine's. `make_device` makes a substitute
    for the GPU of a profile, which then fits any machine. `judge` is asked before a GPU is given the engine's machine
    code (cuda/trust.py).

    Raises:
        EngineError: the file is damaged, no engine, or has no such profile.
        RecipeError: an argument is out of range, or the chat template cannot be read or writes no messages; or the
            profile has no machine code to judge.
        ResourceError: no profile fits this machine, or there is too little memory; or a rank does not come.
        Unsupported: the chat template does not compile, or the engine has no tokenizer.
    """
    path = path_of("engine", path)
    if profile is not None:
        text_of("profile", profile)
    for name, count in {"threads": threads, "max_batch": max_batch}.items():
        if count is not None:
            demand(name, count, "a whole number", int)
    demand("chat_template", chat_template, "jinja's text or a Path", str | Path | None)
    if verify not in ("header", "full"):
        raise RecipeError("expected verify as header or full", found=repr(verify))
    demand_address_space(RUN_BYTES, f"load {path}")
    started = time.perf_counter()
    file = EngineFile.open(path, verify=verify)
    try:
        tokenizer, template = _open_tokenizer(file)
        if chat_template is not None:
            if tokenizer is None:
                raise Unsupported("cannot use a chat template with this engine", found="no tokenizer in the checkpoint")
            template = checked_source(chat_template, **tokenizer.named)
        name, reasons = choose(file, environment.profile(profile), simulated=make_device is not None)
        debug(1, why(file, name, reasons))
        limits: Any = {"threads": threads, "max_batch": max_batch}
        executor = open_executor(file, name, **limits, make_device=make_device, judge=judge)
        file.demand_unchanged()
        on_gpu = file.manifest.profiles[name].target in SM
    except BaseException:
        file.close()
        raise
    model = file.manifest.model
    return Engine(
        executor,
        tokenizer,
        info_of(file, name, sequences=executor.sequences, chat=template is not None),
        eos_ids=model.eos_ids,
        generation=model.generation,
        chat_template=template,
        load_s=time.perf_counter() - started,
        notes=(*(_idle_threads(name, threads) if on_gpu else ()), *_idle_launcher(file, name)),
        demand_unchanged=file.demand_unchanged,
    )


def _idle_threads(profile: str, asked: int | None) -> tuple[str, ...]:
    """What to say of a number of threads that was asked for a profile without threads."""
    if asked is None or environment.is_setting("threads", asked):
        return ()
    return (f"threads {asked} changes nothing: profile {profile} runs on a GPU",)


def _idle_launcher(file: EngineFile, profile: str) -> tuple[str, ...]:
    """What to say of a launcher whose processes all run a profile of one rank."""
    place = None
    with suppress(RecipeError):  # half a launcher concerns profiles of several ranks alone
        place = environment.launched()
    if place is None or place.ranks == 1 or file.manifest.profiles[profile].ranks is not None:
        return ()
    return (
        f"WORLD_SIZE={place.ranks} changes nothing: profile {profile} has one rank, and every process runs it alone",
    )


def _open_tokenizer(file: EngineFile) -> tuple[Tokenizer | None, str | None]:
    """The tokenizer and the chat template's source, from the engine's sections."""
    vocabulary = _tokenizer_file(file, "tokenizer.json")
    if vocabulary is None:
        return None, None
    config, template = template_of(file)
    named = file.manifest.model.named_tokens
    if named is None:  # an engine before format 2.2
        named = {name: _token_text(config.get(name)) for name in ("bos_token", "eos_token")}
    tokenizer = Tokenizer.from_bytes(vocabulary, named, f"tokenizer.json of {file.path}")
    if file.manifest.model.named_tokens is not None:
        tokenizer.begin_with(file.manifest.model.bos)
    return tokenizer, template


def _token_text(value: object) -> str:
    if isinstance(value, Mapping):
        value = value.get("content")
    return value if isinstance(value, str) else ""


def template_of(file: EngineFile) -> tuple[dict[str, Any], str | None]:
    """The engine's tokenizer_config.json, and its chat template's source; None if it has none.

    Raises:
        EngineError: it is no JSON object.
    """
    text = _tokenizer_file(file, "tokenizer_config.json") or b"{}"
    config = loads(text, what="tokenizer_config.json", error=EngineError)
    if not isinstance(config, dict):
        raise EngineError("expected tokenizer_config.json as a JSON object", found=type(config).__name__)
    jinja = _tokenizer_file(file, "chat_template.jinja")
    return config, chat_template_source(config, None if jinja is None else jinja.decode("utf-8", "replace"))


def _tokenizer_file(file: EngineFile, name: str) -> bytes | None:
    section = TOKENIZER_SECTIONS + name
    return file.section(section) if section in file.sections else None


def open_executor(
    engine: EngineFile,
    name: str,
    *,
    threads: int | None = None,
    max_batch: int | None = None,
    make_device: MakeDevice | None = None,
    judge: Judge | None = None,
) -> Executor:
    """Load a profile; the executor then owns `engine`.

    `max_batch` bounds the sequences that run at once (default: the profile's bound). `make_device` makes a substitute
    for the GPU. `judge` sees the machine code before a device does.

    Raises:
        RecipeError: there is none to judge.
        VerifyError: the code is not to be trusted.
    """
    profile = engine.manifest.profiles[name]
    if judge is not None and profile.target not in SM:
        found = f"profile {name}, which has no machine code"
        raise RecipeError(f"expected a profile of a GPU in {engine.path} with --trust", found=found, fix="no --trust")
    if profile.ranks is not None and make_device is None:
        from .ranks.open import open_ranks

        return open_ranks(engine, name, threads=threads, max_batch=max_batch, judge=judge)
    if judge is not None:
        for label in split_of(profile, str(engine.path)).labels(profile.target):
            judge(engine, label)
    if profile.target in SM:
        from .cuda.contents import sources
        from .plan.executor import PagedExecutor

        if profile.ranks is not None and make_device is not None:
            from .plan.together import open_together

            return open_together(engine, name, make_device, max_batch)
        debug(4, lambda: sources(engine, name))

        return PagedExecutor(engine, name, make_device or _real_device(), max_batch=max_batch)
    from .cpu.executor import CpuExecutor

    return CpuExecutor(engine, name, threads=threads, max_batch=max_batch)


def _real_device() -> MakeDevice:
    from .cuda.contents import EngineContents
    from .cuda.device import CudaDevice

    return lambda engine, profile, plan, slots: CudaDevice(EngineContents(engine, profile), plan, slots)
