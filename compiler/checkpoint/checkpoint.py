"""A Hugging Face checkpoint: all headers are checked when it is opened; weights are read by rows, on demand."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from ...runtime.dtypes import CONFIG_DTYPES
from ...runtime.errors import CheckpointError, ResourceError, Unsupported
from ...runtime.files.mistaken import mistaken_address, near_path, parse_hub_id
from ...runtime.text.chat import chat_template_source, checked_source, named_templates
from ..config.fields import load_object
from ..config.generation import Generation, parse_generation
from ..families.config import Config, parse_config
from ..tokens.names import CONFIG as TOKENIZER_CONFIG
from ..tokens.names import MAP as SPECIAL_MAP
from ..tokens.resolve import Sources
from ..tokens.said import sources_of
from .card import read_card
from .digest import Files
from .folder import Folder
from .no_checkpoint import no_checkpoint, no_checkpoint_file, no_checkpoint_path
from .weights.random_source import RandomSource
from .weights.shards import open_weights
from .weights.source import Source

TOKENIZER_FILES = ("tokenizer.json", TOKENIZER_CONFIG, SPECIAL_MAP, "chat_template.jinja")
_OLD_TEMPLATE = "chat_template.json"
"""Where processors of images and text kept the template in transformers 4; it counts if there is no other."""
_MAX_TOKENIZER_BYTES = 128 << 20
_NO_TEMPLATE = "no chat template: `llmc run --chat` will need --chat-template"


@dataclass(frozen=True)
class Checkpoint:
    """An open checkpoint: headers and small files have been read, weights have not. `source` and `files` are open."""

    path: Path
    config: Config
    generation: Mapping[str, float | int | bool]
    """Sampling defaults (see Generation.defaults)."""
    special: Sources
    """What all files but tokenizer.json say of special tokens; `start_check` resolves it."""
    tokenizer: Mapping[str, bytes] = field(repr=False)
    """Contents by file name; chat_template.jinja only if that file exists."""
    chat_template: str | None = field(repr=False)
    name: str | None
    """What its hub id, else its model card calls the model. Not the folder's name: copies shall give equal engines."""
    hub_id: str | None
    """org/name, if it lies in the Hugging Face cache."""
    revision: str | None
    """The commit, if known."""
    licence: str | None
    """As the model card names it, or where to read it."""
    random_seed: int | None
    """Set if the weights are random numbers."""
    warnings: tuple[str, ...]
    source: Source = field(repr=False)
    files: Files = field(repr=False)


def open_checkpoint(
    where: str | Path, *, accept_config: Collection[str] = (), random_weights: int | None = None
) -> Checkpoint:
    """Open a checkpoint: a folder, a .safetensors file in it, or a hub id `org/name[@revision]` (strings only).

    `accept_config` names unknown config keys to ignore. `random_weights` is a seed: then config.json is enough and
    weights on disk are not read.

    Raises:
        CheckpointError: a file is missing, damaged or contradicts another.
        Unsupported: the checkpoint is sound, but llmc does not support it.
        RecipeError: a key of `accept_config` is misspelt or cannot be ignored.
        ResourceError: a hub id without network, access or the extra.
    """
    path, warnings = locate(where, random_weights is None)
    folder = Folder(path if os.path.isdir(path) else path.parent)
    files = Files(folder)
    if not folder.has("config.json"):
        raise no_checkpoint(folder)
    config = parse_config(files.need("config.json"), accept=accept_config, what=str(folder.path / "config.json"))
    generation = Generation()
    settings = files.get("generation_config.json")
    if settings is not None:
        what = str(folder.path / "generation_config.json")
        generation = parse_generation(settings, what=what)
    tokenizer = {name: data for name in TOKENIZER_FILES if (data := files.get(name, _MAX_TOKENIZER_BYTES)) is not None}
    tokenizer_config, special_map = (
        load_object(tokenizer.get(name, b"{}"), str(folder.path / name)) for name in (TOKENIZER_CONFIG, SPECIAL_MAP)
    )
    jinja = tokenizer.get("chat_template.jinja")
    chat_template = chat_template_source(tokenizer_config, None if jinja is None else jinja.decode("utf-8", "replace"))
    if chat_template is None and (data := files.get(_OLD_TEMPLATE, _MAX_TOKENIZER_BYTES)) is not None:
        chat_template = chat_template_source(load_object(data, str(folder.path / _OLD_TEMPLATE)), None)
        if chat_template is not None:
            tokenizer["chat_template.jinja"] = chat_template.encode()
    if "tokenizer.json" not in tokenizer:
        warnings.append(_no_tokenizer(folder))
    elif chat_template is None:
        warnings.append(_NO_TEMPLATE)
    templates = {} if jinja else named_templates(tokenizer_config)
    if left_out := ", ".join(repr(name) for name, source in templates.items() if source != chat_template):
        warnings.append(f"chat templates that are left out, because a conversation takes 'default': {left_out}")
    if random_weights is not None:
        source: Source = RandomSource(
            config.decoder.tensors(),
            dtype=CONFIG_DTYPES[config.dtype or "bfloat16"],
            seed=random_weights,
            initializer_range=config.initializer_range,
        )
    else:
        source, config, notes = open_weights(files, config)
        warnings += notes
        if path.suffix == ".safetensors" and path.name not in {shard.facts.name for shard in files.shards}:
            raise CheckpointError(
                f"expected a weight file of the checkpoint at {path}",
                found=f"{folder.path} consists of other files",
                fix="pass the folder",
            )
    warnings += config.notes
    warnings += generation.notes
    warnings += [f"generation_config.json: {key} is ignored" for key in generation.ignored]
    card = read_card(folder)
    return Checkpoint(
        path=folder.path,
        config=config,
        generation=generation.defaults,
        special=sources_of(config, generation, tokenizer_config, special_map),
        tokenizer=tokenizer,
        chat_template=chat_template,
        name=folder.hub_id.rpartition("/")[2] if folder.hub_id else card.name,
        hub_id=folder.hub_id,
        revision=folder.commit,
        licence=card.licence,
        random_seed=random_weights,
        warnings=tuple(warnings),
        source=source,
        files=files,
    )


def with_chat_template(checkpoint: Checkpoint, given: str | Path) -> Checkpoint:
    """The checkpoint with another chat template: jinja's text, or the Path of a file with it.

    Raises:
        RecipeError: the file cannot be read, or the template writes no messages.
        Unsupported: the checkpoint has no tokenizer, or the template does not compile.
    """
    if "tokenizer.json" not in checkpoint.tokenizer:
        asked, found = f"cannot give {checkpoint.path} a chat template", "no tokenizer.json in it"
        raise Unsupported(asked, found=found)
    source = checked_source(given, bos_token="", eos_token="")
    return replace(
        checkpoint,
        tokenizer={**checkpoint.tokenizer, "chat_template.jinja": source.encode()},
        chat_template=source,
        warnings=tuple(warning for warning in checkpoint.warnings if warning != _NO_TEMPLATE),
    )


def locate(where: str | Path, weights: bool) -> tuple[Path, list[str]]:
    """The folder or weight file that `where` names (downloaded if it is a hub id), and warnings.

    Raises:
        LlmcError: it is neither; says what it is.
    """
    path = Path(where).expanduser()
    if os.path.isdir(path) or (path.suffix == ".safetensors" and os.path.isfile(path)):
        return path, []
    if os.path.lexists(path):
        raise no_checkpoint_file(path)
    if address := mistaken_address(str(where)):
        raise CheckpointError(f"cannot open checkpoint {where}", found=address[0], fix=address[1])
    # Needed for hub ids only: a plain folder must open without the extra.
    from .hub import download

    hub_id = parse_hub_id(where) if isinstance(where, str) else None
    if hub_id is None:
        raise no_checkpoint_path(path)
    try:
        return download(hub_id, weights=weights)
    except (CheckpointError, ResourceError) as error:
        near = near_path(path) if path.parent.is_dir() else ""  # perhaps a folder was meant
        raise type(error)(error.asked + near, found=error.found, fix=error.fix) from error


def _no_tokenizer(folder: Folder) -> str:
    if folder.has("tokenizer.model"):
        return (
            "no tokenizer.json, only tokenizer.model: the engine will take token ids only "
            "(AutoTokenizer.from_pretrained(folder).save_pretrained(folder) writes tokenizer.json)"
        )
    return "no tokenizer.json: the engine will take token ids only"
