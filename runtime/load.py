"""From an engine file to an engine that runs: checks, tokenizer, profile, executor."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from .chips import SM
from .engine import Engine
from .engine_file.file import EngineFile
from .engine_file.manifest import TOKENIZER_SECTIONS
from .errors import EngineError, RecipeError
from .files.strict_json import loads
from .profiles import choose
from .scheduling.executor import Executor
from .text.chat import chat_template_source
from .text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from .plan.executor import MakeDevice


def load(
    path: str | Path,
    profile: str | None = None,
    *,
    threads: int | None = None,
    max_batch: int | None = None,
    verify: Literal["header", "full"] = "header",
    make_device: MakeDevice | None = None,
) -> Engine:
    """Opens an engine file and makes it ready to run; `profile` None takes the best one that fits this machine.

    threads: CPU threads (default: those this process may use). max_batch: most requests that run at once. verify "full"
    checks every byte first. make_device: what stands in for the GPU of a profile, which then fits any machine.
    EngineError: damaged or not ours; ResourceError: no profile fits, or too little memory.
    """
    if verify not in ("header", "full"):
        raise RecipeError(f"verify = {verify!r}", fix="header or full")
    started = time.perf_counter()
    file = EngineFile.open(path, verify=verify)
    try:
        tokenizer, template = _open_tokenizer(file)
        name, _ = choose(file, profile, simulated=make_device is not None)
        executor = open_executor(file, name, threads=threads, max_batch=max_batch, make_device=make_device)
    except BaseException:
        file.close()
        raise
    model = file.manifest.model
    return Engine(
        executor,
        tokenizer,
        eos_ids=model.eos_ids,
        generation=model.generation,
        chat_template=template,
        profile=name,
        load_s=time.perf_counter() - started,
    )


def _open_tokenizer(file: EngineFile) -> tuple[Tokenizer | None, str | None]:
    """The tokenizer and the chat template's source, from the engine's sections."""

    def read(name: str) -> bytes | None:
        section = TOKENIZER_SECTIONS + name
        return file.section(section) if section in file.sections else None

    vocabulary = read("tokenizer.json")
    if vocabulary is None:
        return None, None
    config = loads(read("tokenizer_config.json") or b"{}", what="tokenizer_config.json", error=EngineError)
    if not isinstance(config, dict):
        raise EngineError("tokenizer_config.json", found=type(config).__name__, fix="a JSON object")
    template = read("chat_template.jinja")
    source = chat_template_source(config, None if template is None else template.decode("utf-8", "replace"))
    return Tokenizer.from_bytes(vocabulary, config), source


def open_executor(
    engine: EngineFile,
    name: str,
    *,
    threads: int | None = None,
    max_batch: int | None = None,
    make_device: MakeDevice | None = None,
) -> Executor:
    """Load a profile; the executor owns `engine` from then on.

    `max_batch` bounds the sequences at once (default: the profile's own). `make_device` makes what stands in for a GPU.
    """
    if engine.manifest.profiles[name].target in SM:
        from .plan.executor import PagedExecutor

        return PagedExecutor(engine, name, make_device or _real_device(), max_batch=max_batch)
    from .cpu.executor import CpuExecutor

    return CpuExecutor(engine, name, threads=threads, max_batch=max_batch)


def _real_device() -> MakeDevice:
    from .cuda.contents import EngineContents
    from .cuda.device import CudaDevice

    return lambda engine, profile, plan, slots: CudaDevice(EngineContents(engine, profile), plan, slots)
