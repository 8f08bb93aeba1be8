"""Says what stands at a path that is no checkpoint, and what to do about it."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from ...runtime.engine_file.file import ENGINE
from ...runtime.errors import CheckpointError, LlmcError, Unsupported
from ...runtime.files.mistaken import FOREIGN, PICKLES, foreign_format, near_path
from ..config.fields import load_object
from .folder import INDEX, SINGLE, Folder

CONFIG = "config.json"
ADAPTER = "adapter_config.json"
_SHOWN = 4
_SAFETENSORS = "the safetensors form of the model, from the repository that they were converted from"
_MAX_BYTES = 1 << 20


def no_checkpoint_file(path: Path) -> LlmcError:
    """The refusal of a path that exists and is neither a folder nor a weight file."""
    asked = f"expected a checkpoint folder at {path}"
    if path.suffix == ENGINE.suffix or (path.is_file() and ENGINE.matches(path)):
        fix = f"llmc run {path}; to build it again, the checkpoint that it was made from"
        return CheckpointError(asked, found="an engine, which is built already", fix=fix)
    if other := foreign_format(path):
        return Unsupported(asked, found=other[0], fix=other[1])
    beside = (path.parent / CONFIG).is_file()
    fix = f"the folder: {path.parent}" if beside else f"the folder that holds {CONFIG}"
    return CheckpointError(asked, found=f"a file named {path.name}", fix=fix)


def no_checkpoint_path(path: Path) -> CheckpointError:
    """The refusal of a path that does not exist and is no hub id."""
    fix = "a checkpoint folder, or a Hugging Face id org/name[@revision]"
    return CheckpointError(f"cannot open checkpoint {path}", found=f"no such folder{near_path(path)}", fix=fix)


def no_checkpoint(folder: Folder) -> LlmcError:
    """The refusal of a folder without config.json, or without weights that llmc reads: by what is there instead."""
    names, path = folder.names(), folder.path
    configured = CONFIG in names
    asked = (
        f"expected weights in {SINGLE}, or in shards listed by {INDEX}, in folder {path}"
        if configured
        else f"expected {CONFIG} and safetensors weights in folder {path}"
    )
    tensors = [name for name in names if name.endswith(".safetensors")]
    engines = [name for name in names if name.endswith(ENGINE.suffix)]
    foreign = [name for name in names if name.endswith(FOREIGN)]
    fetch = f"hf download ORG/NAME --local-dir {path}"
    if not names:
        return CheckpointError(asked, found="an empty folder", fix=fetch)
    if ADAPTER in names:
        return Unsupported(asked, found="an adapter (LoRA), not a model", fix=_merge(folder))
    if "snapshots" in names:
        return CheckpointError(asked, found="a repository of the Hugging Face cache", fix=_snapshot(path))
    if "model_index.json" in names:
        return Unsupported(asked, found="a pipeline of diffusers, not a language model")
    if "params.json" in names or any(name.startswith("consolidated.") for name in names):
        found = "Meta's or Mistral's own form (params.json, consolidated.*)"
        return Unsupported(asked, found=found, fix="the Hugging Face form of the model")
    if tensors and not configured:
        found = f"{_list(tensors)} without {CONFIG}"
        return CheckpointError(asked, found=found, fix=f"{CONFIG} and the tokenizer from the same repository")
    if tensors:
        fix = f"download {INDEX} too, or the Hugging Face form of the model"
        return CheckpointError(asked, found=f"{_list(tensors)} without an index", fix=fix)
    if foreign and all(name.endswith(PICKLES) for name in foreign):
        found = f"only {_list(foreign)}: pickle files run code when read, llmc never opens them"
        fix = "take the safetensors form of the model, or convert it in a sandbox with save_pretrained"
        return Unsupported(asked, found=found, fix=fix)
    if foreign:
        kind = "GGUF files" if all(name.endswith(".gguf") for name in foreign) else "weights of other programs"
        return Unsupported(asked, found=f"only {kind}: {_list(foreign)}", fix=_SAFETENSORS)
    if engines:
        return CheckpointError(asked, found=f"engines: {_list(engines)}", fix=f"llmc run {path / engines[0]}")
    if configured:
        fix = f"the weights too ({fetch}); --random-weights 0 builds without any, to measure speed"
        return CheckpointError(asked, found=f"{CONFIG} and no weights", fix=fix)
    inner = [name for name in names if (path / name / CONFIG).is_file()]
    if inner:
        return CheckpointError(asked, found=f"folders with a checkpoint: {_list(inner)}", fix=str(path / inner[0]))
    return CheckpointError(asked, found=f"{len(names)} other files: {_list(names)}", fix=f"a folder with {CONFIG}")


def _merge(folder: Folder) -> str:
    """How to merge an adapter, with the name of its base model, if it says it."""
    base: object = None
    with suppress(LlmcError):
        data, facts = folder.read(ADAPTER, _MAX_BYTES)
        base = load_object(data, facts.shown).get("base_model_name_or_path")
    model = f"{base!r}" if isinstance(base, str) and base.isprintable() and len(base) < 200 else "BASE_MODEL"
    return (
        "merge it into its base model, and build the result: "
        f"PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained({model}), {str(folder.path)!r})"
        ".merge_and_unload().save_pretrained('merged')"
    )


def _snapshot(path: Path) -> str:
    """The hub id of a folder of the cache, and its newest snapshot."""
    snapshots: list[Path] = []
    with suppress(OSError):
        snapshots = sorted((path / "snapshots").iterdir(), key=lambda one: one.stat().st_mtime)
    kind, *parts = path.name.split("--")
    ids = [f"the id {'/'.join(parts)}"] if kind == "models" and len(parts) == 2 else []
    return ", or ".join([*ids, *(f"the folder {one}" for one in snapshots[-1:])])


def _list(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
