"""Texts of bos_token, eos_token and the like, as transformers 5.23.0 gives them to chat templates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ...runtime.errors import CheckpointError
from ..config.fields import shown

NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
CONFIG, MAP = "tokenizer_config.json", "special_tokens_map.json"
Texts = Mapping[str, str | None]
"""Name to text; None is an explicit null, which is not the same as no such key."""

_END_OF_TEXT = {name: "<|endoftext|>" for name in ("bos_token", "eos_token", "unk_token")}
_LLAMA = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
CLASSES: Mapping[str, Mapping[str, str]] = {
    "LlamaTokenizer": _LLAMA,
    "CodeLlamaTokenizer": _LLAMA,
    "GPT2Tokenizer": _END_OF_TEXT,
    "CodeGenTokenizer": _END_OF_TEXT,
    "GPTNeoXTokenizer": {**_END_OF_TEXT, "pad_token": "<|padding|>"},
    "Qwen2Tokenizer": {name: "<|endoftext|>" for name in ("eos_token", "unk_token", "pad_token")},
    "GemmaTokenizer": {
        **{"bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>"},
        **{"pad_token": "<pad>", "mask_token": "<mask>"},
    },
    "CohereTokenizer": {
        **{"bos_token": "<BOS_TOKEN>", "eos_token": "<|END_OF_TURN_TOKEN|>", "unk_token": "<UNK>"},
        **{"pad_token": "<PAD>", "cls_token": "<CLS>", "sep_token": "<SEP>", "mask_token": "<MASK_TOKEN>"},
    },
}
"""What the constructors of transformers' tokenizer classes take for names that no file gives."""
_OF_CLASS = {
    "Qwen2Tokenizer": "qwen2 qwen3 qwen2_moe qwen3_moe qwen2_vl qwen2_5_vl qwen3_vl internvl",
    "GemmaTokenizer": "gemma gemma2 gemma3 gemma3_text",
    "CohereTokenizer": "cohere cohere2",
    "GPT2Tokenizer": "starcoder2 phi",
    "GPTNeoXTokenizer": "olmoe",
}
OF_MODEL_TYPE = {kind: name for name, kinds in _OF_CLASS.items() for kind in kinds.split()}
"""The class of a model type whose files declare none."""
_PLAIN = """mistral ministral ministral3 mistral3 ernie4_5 glm glm4 stablelm phi3 olmo2 olmo3 granite llava ernie4_5_moe
    glm4_moe glm4_moe_lite granitemoe minimax_m2 mixtral phimoe"""
PLAIN = frozenset(_PLAIN.split())
"""Model types whose tokenizer has no class of its own, whatever their files declare."""
UNHEARD = frozenset({"qwen2"})
"""Model types whose files declare a class in vain."""


@dataclass(frozen=True)
class Named:
    """The named tokens of a checkpoint."""

    texts: Mapping[str, str]
    origin: Mapping[str, str]
    """Name to the file, or the class of transformers, that gives the text."""
    notes: tuple[str, ...]
    """Where the files disagree on BOS or EOS."""


def texts_of(values: Mapping[str, object], what: str) -> dict[str, str | None]:
    """The named tokens of tokenizer_config.json or special_tokens_map.json; an AddedToken counts as its content.

    Raises:
        CheckpointError: one of the usual names has another type; names `what`.
    """
    extra = values.get("extra_special_tokens")
    found: dict[str, str | None] = {}
    for name, value in {**values, **(extra if isinstance(extra, Mapping) else {})}.items():
        text = value.get("content") if isinstance(value, Mapping) else value
        if name in NAMES and not isinstance(text, str | None):
            raise CheckpointError(
                f'expected "{name}" as a text, an object with "content" or null in {what}', found=shown(value)
            )
        if name in NAMES or (isinstance(text, str) and (name.endswith("_token") or name not in values)):
            found[name] = text if isinstance(text, str) else None
    return found


def named_tokens(config: Texts, special_map: Texts, map_is_read: bool, kind: str | None) -> Named:
    """Resolve names: the map goes before tokenizer_config.json, but `map_is_read` only if that file has no
    added_tokens_decoder; what neither gives is the default of the tokenizer class `kind`, if it has any."""
    layers = {
        f"transformers' {kind}": CLASSES.get(kind or "", {}),
        CONFIG: config,
        MAP: special_map if map_is_read else {},
    }
    texts: dict[str, str | None] = {}
    origin: dict[str, str] = {}
    for file, given in layers.items():
        texts.update(given)
        origin.update(dict.fromkeys(given, file))
    notes = []
    for name in ("bos_token", "eos_token"):
        theirs, ours = special_map.get(name), config.get(name)
        hidden = name in special_map and map_is_read and ours is not None  # an explicit null, too
        if not hidden and (theirs is None or (ours is None and map_is_read)):
            continue
        if theirs == texts.get(name) == ours:
            continue
        why = "lists no added_tokens_decoder" if map_is_read else "lists added_tokens_decoder"
        notes.append(
            f"{name}: {MAP} says {theirs!r}, {CONFIG} {'nothing' if ours is None else repr(ours)}; taken is "
            f"{texts.get(name)!r}, because {CONFIG} {why} (as in transformers)"
        )
    return Named({name: text for name, text in texts.items() if text is not None}, origin, tuple(notes))


def class_of(model_type: str, declared: str | None, byte_level: bool) -> str | None:
    """The class that transformers' AutoTokenizer takes, by the files' model_type and tokenizer_class; None for one
    without names of its own (`models/auto/tokenization_auto.py`)."""
    declared = None if declared is None else declared.removesuffix("Fast")
    forced = model_type in UNHEARD
    if model_type in PLAIN or (declared == "LlamaTokenizer" and byte_level and not forced):
        return None
    taken = declared if declared is not None and not forced else OF_MODEL_TYPE.get(model_type)
    return taken if taken in CLASSES else None
