"""Makes the files of a chat model, and has the tokens that several share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from support.samples.spellings import Spelling

IM = ("<|im_start|>", "<|im_end|>")
PHI = ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>")
ROLES = ("<|start_of_role|>", "<|end_of_role|>")
GLM = ("[gMASK]", "<sop>", "<|system|>", "<|assistant|>", "<|observation|>")
QWEN = {"tokenizer_class": "Qwen2Tokenizer"}
BACKEND = {"tokenizer_class": "PreTrainedTokenizerFast"}


def talker(
    family: str,
    template: str,
    tokens: Sequence[str],
    bos: str | None,
    eos: str,
    *,
    ends: Sequence[str] | None,
    front: str = "",
    kind: str = "byte_level",
    named: Mapping[str, Any] = BACKEND,
    more: Mapping[str, Any] = MappingProxyType({}),
) -> Spelling:
    """`ends` are those of generation_config.json, if it has any; `front` is what the post-processor adds; `more` are
    keys without which config.json cannot be read."""
    ids = {"bos_token_id": bos, "eos_token_id": eos}
    return Spelling(
        *(family, kind, [*dict.fromkeys((*tokens, *filter(None, (bos, eos)), *(ends or ())))], front),
        tokenizer={**named, "bos_token": bos, "eos_token": eos},
        config={**ids, **more},
        generation=None if ends is None else {**ids, "eos_token_id": [*ends]},
        template=template,
    )
