"""How public checkpoints spell their special tokens: the same keys, classes and files, over a small vocabulary."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from support.samples import vocabularies
from tokenizers import AddedToken, processors

from llmc.compiler.families import FAMILIES

CONFIG = {
    **{"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2},
    **{"num_key_value_heads": 1, "max_position_embeddings": 128, "rms_norm_eps": 1e-5, "hidden_act": "silu"},
    **{"tie_word_embeddings": False, "torch_dtype": "float32"},
}
ARCHITECTURES = {family.name: family.architecture for family in FAMILIES.values()}


@dataclass(frozen=True)
class Spelling:
    """A checkpoint's special tokens as its files spell them. Tokens are named by their text: ids differ here."""

    family: str
    kind: str
    """Of `vocabularies`."""
    tokens: Sequence[str]
    """Those of tokenizer.json beside `vocabularies.SPECIAL`."""
    front: str = ""
    """What the post-processor puts in front."""
    tokenizer: Mapping[str, Any] | None = None
    """tokenizer_config.json."""
    special_map: Mapping[str, Any] | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    generation: Mapping[str, Any] | None = None
    template: str | None = None

    def write(self, folder: Path) -> Path:
        """The files of this checkpoint, weights aside."""
        folder.mkdir(parents=True, exist_ok=True)
        raw = getattr(vocabularies, self.kind)()
        raw.add_special_tokens([AddedToken(token, normalized=False) for token in self.tokens])
        steps: list[Any] = [processors.ByteLevel(trim_offsets=False)] if self.kind.startswith("byte_level") else []
        if self.front:
            one = [(self.front, raw.token_to_id(self.front))]
            steps.append(processors.TemplateProcessing(single=f"{self.front} $A", special_tokens=one))
        raw.post_processor = processors.Sequence(steps)
        raw.save(str(folder / "tokenizer.json"))

        def ids(values: Mapping[str, Any]) -> dict[str, Any]:
            def number(token: Any) -> Any:
                return [number(one) for one in token] if isinstance(token, list) else raw.token_to_id(token)

            return {key: number(one) if key.endswith("_token_id") and one else one for key, one in values.items()}

        name = {"architectures": [ARCHITECTURES[self.family]], "model_type": self.family}
        rows = {"vocab_size": raw.get_vocab_size() + 8}
        files = {
            "config.json": {**CONFIG, **name, **rows, **ids(self.config)},
            "generation_config.json": None if self.generation is None else ids(self.generation),
            "tokenizer_config.json": self._tokenizer_config(raw.token_to_id),
            "special_tokens_map.json": self.special_map,
        }
        for file, content in files.items():
            if content is not None:
                (folder / file).write_text(json.dumps(content), encoding="utf-8")
        return folder

    def _tokenizer_config(self, number: Any) -> dict[str, Any] | None:
        if self.tokenizer is None:
            return None
        found = dict(self.tokenizer)
        if "added_tokens_decoder" in found:
            tokens = found["added_tokens_decoder"]
            flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
            found["added_tokens_decoder"] = {str(number(token)): {"content": token, **flags} for token in tokens}
        return {**found, **({"chat_template": self.template} if self.template else {})}


def _added(content: str, **more: Any) -> dict[str, Any]:
    return {"content": content, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False, **more}


def _typed(content: str) -> dict[str, Any]:
    return _added(content, __type="AddedToken")


LLAMA3 = ("<|begin_of_text|>", "<|end_of_text|>", "<|eom_id|>", "<|eot_id|>")
_LLAMA3 = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": LLAMA3[0], "added_tokens_decoder": LLAMA3}
QWEN = ("<|endoftext|>", "<|im_start|>")
_QWEN = {
    **{"tokenizer_class": "Qwen2Tokenizer", "add_bos_token": False, "bos_token": None, "unk_token": None},
    **{"pad_token": "<|endoftext|>", "added_tokens_decoder": (*QWEN, "<|im_end|>")},
}
_QWEN_IDS = {"bos_token_id": "<|endoftext|>", "eos_token_id": "<|im_end|>"}
_QWEN_GENERATION = {**_QWEN_IDS, "eos_token_id": ["<|im_end|>", "<|endoftext|>"], "do_sample": True, "top_k": 20}
DEEPSEEK = ("<\uff5cbegin▁of▁sentence\uff5c>", "<\uff5cend▁of▁sentence\uff5c>", "<\uff5cAssistant\uff5c>")
_DEEPSEEK = {
    **{"tokenizer_class": "LlamaTokenizerFast", "add_bos_token": True, "add_eos_token": False, "legacy": True},
    **{"bos_token": _typed(DEEPSEEK[0]), "eos_token": _typed(DEEPSEEK[1]), "pad_token": _typed(DEEPSEEK[1])},
}
_DEEPSEEK_IDS = {"bos_token_id": DEEPSEEK[0], "eos_token_id": DEEPSEEK[1]}
S = {"bos_token_id": "<s>", "eos_token_id": "</s>"}
_LLAMA = {
    **{"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "add_eos_token": False, "legacy": False},
    **{"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
}
SPM = ("<unk>", "<s>", "</s>")

SPELLINGS: dict[str, Spelling] = {
    "Llama-2-7b-chat": Spelling(
        *("llama", "llama_of_transformers", (), "<s>"),
        tokenizer={**_LLAMA, "bos_token": _typed("<s>"), "eos_token": _typed("</s>"), "unk_token": _typed("<unk>")},
        special_map={"bos_token": _added("<s>"), "eos_token": _added("</s>"), "unk_token": _added("<unk>")},
        config=S,
        generation={**S, "do_sample": True, "temperature": 0.6, "top_p": 0.9},
    ),
    "TinyLlama-1.1B-Chat": Spelling(
        *("llama", "llama_of_transformers", (), "<s>"),
        tokenizer={**_LLAMA, "added_tokens_decoder": SPM, "pad_token": "</s>"},
        special_map={"bos_token": _added("<s>"), "eos_token": _added("</s>"), "pad_token": _added("</s>")},
        config=S,
        generation={**S, "max_length": 2048, "pad_token_id": "<unk>"},
    ),
    "CodeLlama-7b": Spelling(
        *("llama", "llama_of_transformers", (), "<s>"),
        tokenizer={"tokenizer_class": "LlamaTokenizer", "bos_token": _typed("<s>"), "eos_token": _typed("</s>")},
        config=S,
    ),
    "Llama-3-8B": Spelling(
        *("llama", "byte_level", LLAMA3, LLAMA3[0]),
        tokenizer={**_LLAMA3, "eos_token": LLAMA3[1]},
        special_map={"bos_token": LLAMA3[0], "eos_token": LLAMA3[1]},
        config={"bos_token_id": LLAMA3[0], "eos_token_id": LLAMA3[1]},
        generation={"bos_token_id": LLAMA3[0], "eos_token_id": LLAMA3[1], "do_sample": True},
    ),
    "Llama-3-8B-Instruct": Spelling(
        *("llama", "byte_level", LLAMA3, LLAMA3[0]),
        tokenizer={**_LLAMA3, "eos_token": LLAMA3[3]},
        special_map={"bos_token": LLAMA3[0], "eos_token": LLAMA3[3]},
        config={"bos_token_id": LLAMA3[0], "eos_token_id": LLAMA3[1]},
        generation={"bos_token_id": LLAMA3[0], "eos_token_id": [LLAMA3[1], LLAMA3[3]], "do_sample": True},
    ),
    "Llama-3.1-8B-Instruct": Spelling(
        *("llama", "byte_level", LLAMA3, LLAMA3[0]),
        tokenizer={**_LLAMA3, "eos_token": LLAMA3[3]},
        special_map={"bos_token": _added(LLAMA3[0]), "eos_token": _added(LLAMA3[3])},
        config={"bos_token_id": LLAMA3[0], "eos_token_id": [*LLAMA3[1:]]},
        generation={"bos_token_id": LLAMA3[0], "eos_token_id": [*LLAMA3[1:]], "do_sample": True},
    ),
    "Mistral-7B-Instruct-v0.2": Spelling(
        *("mistral", "llama2", (), "<s>"),
        tokenizer={**_LLAMA, "added_tokens_decoder": SPM},
        special_map={"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
        config=S,
        generation={"_from_model_config": True, **S},
    ),
    "Mistral-Nemo-Instruct": Spelling(
        *("mistral", "byte_level", ("[INST]", "[/INST]"), "<s>"),
        tokenizer={
            **{"tokenizer_class": "GPT2Tokenizer", "add_bos_token": True, "bos_token": "<s>", "eos_token": "</s>"},
            **{"added_tokens_decoder": SPM, "unk_token": "<unk>"},
        },
        config=S,
        generation=S,
    ),
    "zephyr-7b-beta": Spelling(
        *("mistral", "llama2", (), "<s>"),
        tokenizer={"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"},
        special_map={"bos_token": _added("<s>"), "eos_token": _added("</s>"), "additional_special_tokens": [*SPM]},
        config=S,
        generation={"_from_model_config": True, **S},
    ),
    "OpenHermes-2.5-Mistral-7B": Spelling(
        *("mistral", "llama2", (), "<s>"),
        tokenizer={**_LLAMA, "eos_token": "<|im_end|>", "added_tokens_decoder": (*SPM, "<|im_end|>")},
        special_map={"bos_token": _added("<s>"), "eos_token": _added("<|im_end|>")},
        config={"bos_token_id": "<s>", "eos_token_id": "<|im_end|>"},
        generation={"_from_model_config": True, **S},
    ),
    "Qwen2.5-7B": Spelling(
        *("qwen2", "byte_level_digits", QWEN),
        tokenizer={**_QWEN, "eos_token": "<|endoftext|>"},
        config={"bos_token_id": "<|endoftext|>", "eos_token_id": "<|endoftext|>"},
        generation={"bos_token_id": "<|endoftext|>", "eos_token_id": "<|endoftext|>", "do_sample": False},
    ),
    "Qwen2.5-7B-Instruct": Spelling(
        *("qwen2", "byte_level_digits", QWEN),
        tokenizer={**_QWEN, "eos_token": "<|im_end|>"},
        config=_QWEN_IDS,
        generation=_QWEN_GENERATION,
    ),
    "Qwen3-8B": Spelling(
        *("qwen3", "byte_level_digits", QWEN),
        tokenizer={**_QWEN, "eos_token": "<|im_end|>"},
        config=_QWEN_IDS,
        generation=_QWEN_GENERATION,
    ),
    "Qwen2 without a tokenizer_config.json": Spelling(*("qwen2", "byte_level_digits", QWEN), config=_QWEN_IDS),
    "Qwen3 without a tokenizer_config.json": Spelling(*("qwen3", "byte_level_digits", QWEN), config=_QWEN_IDS),
    "DeepSeek-R1-Distill-Llama-8B": Spelling(
        *("llama", "byte_level", DEEPSEEK, DEEPSEEK[0]),
        tokenizer=_DEEPSEEK,
        config=_DEEPSEEK_IDS,
        generation={"_from_model_config": True, **_DEEPSEEK_IDS, "do_sample": True, "temperature": 0.6},
    ),
    "DeepSeek-R1-Distill-Qwen-7B": Spelling(
        *("qwen2", "byte_level_digits", (*DEEPSEEK, *QWEN), DEEPSEEK[0]),
        tokenizer=_DEEPSEEK,
        config=_DEEPSEEK_IDS,
        generation={"_from_model_config": True, **_DEEPSEEK_IDS, "do_sample": True, "temperature": 0.6},
    ),
    "SmolLM2-1.7B-Instruct": Spelling(
        *("llama", "byte_level", QWEN),
        tokenizer={
            **{"tokenizer_class": "GPT2Tokenizer", "bos_token": "<|im_start|>", "eos_token": "<|im_end|>"},
            **{"unk_token": "<|endoftext|>", "pad_token": "<|im_end|>", "added_tokens_decoder": (*QWEN, "<|im_end|>")},
        },
        special_map={"bos_token": _added("<|im_start|>"), "eos_token": _added("<|im_end|>")},
        config={"bos_token_id": "<|im_start|>", "eos_token_id": "<|im_end|>"},
    ),
    "Yi-34B-Chat": Spelling(
        *("llama", "llama_of_transformers", ("<|startoftext|>", "<|endoftext|>")),
        tokenizer={
            **{"tokenizer_class": "LlamaTokenizer", "add_bos_token": False, "add_eos_token": False},
            **{"bos_token": "<|startoftext|>", "eos_token": "<|im_end|>", "unk_token": "<unk>"},
        },
        config={"bos_token_id": "<|startoftext|>", "eos_token_id": "<|endoftext|>"},
        generation={"_from_model_config": True, "bos_token_id": "<|startoftext|>", "eos_token_id": "<|im_end|>"},
    ),
    "Phi-3-mini-4k-instruct": Spelling(
        *("llama", "llama_of_transformers", ("<|endoftext|>", "<|assistant|>", "<|end|>")),
        tokenizer={
            **{"tokenizer_class": "LlamaTokenizer", "add_bos_token": False, "add_eos_token": False},
            **{"bos_token": "<s>", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"},
            **{"added_tokens_decoder": (*SPM, "<|endoftext|>", "<|assistant|>", "<|end|>")},
        },
        config={"bos_token_id": "<s>", "eos_token_id": "<|endoftext|>"},
        generation={"bos_token_id": "<s>", "eos_token_id": ["<|endoftext|>", "<|assistant|>", "<|end|>"]},
    ),
    "gemma-2-2b-it": Spelling(
        *("llama", "gemma", ("<bos>", "<eos>", "<pad>", "<mask>", "<end_of_turn>"), "<bos>"),
        tokenizer={"tokenizer_class": "GemmaTokenizer", "add_bos_token": True, "bos_token": "<bos>"},
        config={"bos_token_id": "<bos>", "eos_token_id": "<eos>"},
        generation={"bos_token_id": "<bos>", "eos_token_id": ["<eos>", "<end_of_turn>"]},
    ),
    "only special_tokens_map.json": Spelling(
        *("llama", "byte_level", (), "<s>"),
        special_map={"bos_token": _added("<s>"), "eos_token": "</s>", "pad_token": "<|im_end|>"},
        config=S,
    ),
    "special_tokens_map.json against tokenizer_config.json": Spelling(
        *("llama", "byte_level", (), "<s>"),
        tokenizer={"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"},
        special_map={"bos_token": "<s>", "eos_token": "<|im_end|>"},
        config=S,
    ),
    "special_tokens_map.json beside added_tokens_decoder": Spelling(
        *("llama", "byte_level", (), "<s>"),
        tokenizer={"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>", "added_tokens_decoder": SPM},
        special_map={"bos_token": "<s>", "eos_token": "<|im_end|>"},
        config=S,
    ),
    "ids of the configs only": Spelling(
        *("llama", "byte_level", (), "<s>"),
        tokenizer={"tokenizer_class": "PreTrainedTokenizerFast"},
        config=S,
        generation={"bos_token_id": "<s>", "eos_token_id": "<|im_end|>"},
    ),
    "add_bos_token against the post-processor": Spelling(
        *("llama", "llama_of_transformers", ()),
        tokenizer=_LLAMA,
        config=S,
    ),
    "a post-processor against add_bos_token": Spelling(
        *("llama", "llama_of_transformers", (), "<s>"),
        tokenizer={**_LLAMA, "add_bos_token": False},
        config=S,
    ),
    "tokens of names of their own": Spelling(
        *("llama", "byte_level", ("<image>", "<|eot|>"), "<s>"),
        tokenizer={
            **{"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": None},
            **{"image_token": "<image>", "extra_special_tokens": {"eot_token": "<|eot|>"}},
        },
        config=S,
    ),
}
