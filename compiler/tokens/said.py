"""Collects what the configs of a checkpoint say of special tokens."""

from __future__ import annotations

from collections.abc import Mapping

from ..config.fields import Fields
from ..config.generation import Generation
from ..families.config import Config
from .names import CONFIG, MAP, texts_of
from .resolve import Sources


def sources_of(
    config: Config, generation: Generation, tokenizer_config: Mapping[str, object], special_map: Mapping[str, object]
) -> Sources:
    """What config.json, generation_config.json, tokenizer_config.json and special_tokens_map.json say; a file that is
    absent is empty.

    Raises:
        CheckpointError: a key that decides has another type.
    """
    fields, map_is_read = Fields(tokenizer_config, CONFIG), "added_tokens_decoder" not in tokenizer_config
    bos = {"config.json": config.bos_id if config.bos_given else None, "generation_config.json": generation.bos_id}
    eos = {"config.json": config.eos_ids if config.eos_given else (), "generation_config.json": generation.eos_ids}
    declared = tokenizer_config.get("tokenizer_class") or config.raw.get("tokenizer_class")
    model_type = config.raw.get("model_type")  # a checkpoint of images and text has another one than its family
    return Sources(
        model_type=model_type if isinstance(model_type, str) else config.family.name,
        rows=config.decoder.vocab_size,
        bos={file: token for file, token in bos.items() if token is not None},
        eos={file: ids for file, ids in eos.items() if ids},
        default_bos=None if config.bos_given else config.bos_id,
        default_eos=() if config.eos_given else config.eos_ids,
        tokenizer_class=declared if isinstance(declared, str) else None,
        named=texts_of(tokenizer_config, CONFIG),
        special_map=texts_of(special_map if map_is_read else _texts_only(special_map), MAP),
        map_is_read=map_is_read,
        add_bos=fields.flag("add_bos_token", False) if fields.has("add_bos_token") else None,
        add_eos=fields.flag("add_eos_token", False) if fields.has("add_eos_token") else None,
    )


def _texts_only(values: Mapping[str, object]) -> Mapping[str, object]:
    """The values that can be tokens: a file that is not read is not judged."""
    return {name: value for name, value in values.items() if isinstance(value, str)}
