"""What the files of any safetensors checkpoint say, also of one that cannot be built; no weight is read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...runtime.errors import LlmcError
from ...runtime.files.safetensors import TensorInfo
from ..config.fields import load_object
from .checkpoint import TOKENIZER_FILES, locate
from .folder import Folder
from .no_checkpoint import ADAPTER, CONFIG
from .weights.shards import read_header

_MAX_BYTES = 16 << 20
_TOKENIZERS = (*TOKENIZER_FILES, "tokenizer.model", "vocab.json", "merges.txt", "tekken.json")
_SETTINGS = ("quantization_config", "compression_config")
_MODELOPT = "hf_quant_config.json"


@dataclass(frozen=True)
class Described:
    """The files of a checkpoint: what config.json and headers say, unchecked against each other."""

    path: Path
    revision: str | None
    """The commit, if known."""
    config: Mapping[str, Any]
    """The keys of config.json, with those of the text model; empty without a readable file."""
    adapter: Mapping[str, Any]
    """adapter_config.json; empty if this is no adapter."""
    quantization: Mapping[str, str | int | float | bool]
    """How the weights are quantized: the settings that are one value; empty if nothing says so."""
    tensors: tuple[TensorInfo, ...]
    files: Mapping[str, int]
    """Bytes by name, of the files that were read."""
    tokenizer: tuple[str, ...]
    """Files of the tokenizer."""


def describe(where: str | Path) -> Described:
    """Read a folder, a hub id or a single .safetensors file, whatever its architecture and dtypes are.

    Raises:
        LlmcError: it cannot be found, has no safetensors file, or the header of one is damaged.
    """
    path, _ = locate(where, weights=True)
    alone = path.suffix == ".safetensors" and path.is_file()
    folder = Folder(path.parent if alone else path)
    files: dict[str, int] = {}
    config, adapter, modelopt = (_object(folder, name, files) for name in (CONFIG, ADAPTER, _MODELOPT))
    inner = config.get("text_config", config.get("llm_config"))
    values = {**(inner if isinstance(inner, dict) else {}), **{k: v for k, v in config.items() if v is not None}}
    names = [path.name] if alone else [name for name in folder.names() if name.endswith(".safetensors")]
    tokenizer = tuple(name for name in _TOKENIZERS if folder.has(name))
    tensors: list[TensorInfo] = []
    for name in names:
        opened = folder.open(name)
        tensors += read_header(opened, before=len(tensors)).tensors.values()
        files[name] = opened.facts.bytes
    return Described(
        path=path if alone and not config else folder.path,
        revision=folder.commit,
        config=values,
        adapter=adapter,
        quantization=dict(_quantization(values, modelopt)),
        tensors=tuple(tensors),
        files=files,
        tokenizer=tokenizer,
    )


def _object(folder: Folder, name: str, files: dict[str, int]) -> dict[str, Any]:
    """A JSON object of the folder; empty if there is none, or if it cannot be read."""
    if folder.has(name):
        with suppress(LlmcError):
            data, facts = folder.read(name, _MAX_BYTES)
            found = load_object(data, facts.shown)
            files[name] = facts.bytes
            return found
    return {}


def _quantization(
    values: Mapping[str, Any], modelopt: Mapping[str, Any]
) -> Iterator[tuple[str, str | int | float | bool]]:
    for settings in (*(values.get(key) for key in _SETTINGS), modelopt.get("quantization")):
        if isinstance(settings, dict):
            yield from ((key, one) for key, one in settings.items() if isinstance(one, str | int | float | bool))
