"""Small tokenizers of the kinds that checkpoints carry, so that no test needs a download."""

from __future__ import annotations

import json
from typing import Any

from support.paths import PICO
from tokenizers import AddedToken, decoders, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as RawTokenizer
from tokenizers.models import BPE

CHAT_TOKENS = (
    *("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|python_tag|>", "<|im_start|>", "<|im_end|>"),
    *("<s>", "</s>", "[INST]", "[/INST]", "<|system|>", "<|end|>"),
)


def pico() -> tuple[bytes, dict[str, str]]:
    """The bundled byte-level tokenizer: (tokenizer.json, its named tokens)."""
    config: dict[str, Any] = json.loads((PICO / "tokenizer_config.json").read_text())
    return (PICO / "tokenizer.json").read_bytes(), {name: config[name] for name in ("bos_token", "eos_token")}


def byte_level_chat() -> tuple[bytes, dict[str, str]]:
    """The bundled one with the special tokens of public chat templates."""
    data, config = pico()
    raw = RawTokenizer.from_buffer(data)
    raw.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in CHAT_TOKENS])
    return raw.to_str().encode(), config


def sentencepiece(*, metaspace: bool = False) -> tuple[bytes, dict[str, str]]:
    """Llama-2's kind: BPE with byte fallback; `metaspace`: the newer spelling whose first word alone gets a space."""
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"<0x{byte:02X}>": 3 + byte for byte in range(256)}
    letters = "▁abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,!?:<>/|[]_-é"
    merges = [("▁", "t"), ("h", "e"), ("▁t", "he"), ("▁", "a"), ("e", "r"), ("l", "l"), ("o", "r"), ("▁", "▁")]
    for piece in (*letters, *("".join(merge) for merge in merges)):
        vocab[piece] = len(vocab)
    raw = RawTokenizer(BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    if metaspace:
        raw.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
        raw.decoder = decoders.Metaspace()
    else:
        raw.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        raw.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
    raw.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in ("<unk>", "<s>", "</s>")])
    raw.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return raw.to_str().encode(), {"bos_token": "<s>", "eos_token": "</s>"}
