"""Chat models of many families: special tokens, end tokens and a chat template as their published files have them.

A model type that llmc does not compute is written as Llama's, with the class of its own tokenizer: files decide alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from support.samples.spellings import Spelling
from support.samples.talking import published as plain
from support.samples.talking import published_parts as parts
from support.samples.talking import talkers_of_latents, talkers_of_mixtures
from support.samples.talking.talker import BACKEND as _BACKEND
from support.samples.talking.talker import GLM as _GLM
from support.samples.talking.talker import IM as _IM
from support.samples.talking.talker import PHI as _PHI
from support.samples.talking.talker import QWEN as _QWEN
from support.samples.talking.talker import ROLES as _ROLES
from support.samples.talking.talker import talker as _talker
from support.samples.talking.talks import ANSWER, SYSTEM, TALKS, TOOL, USER
from support.samples.talking.templates import ZEPHYR

_TURNS = ("<start_of_turn>", "<end_of_turn>")
_GEMMA: dict[str, Any] = {
    **{"kind": "gemma", "front": "<bos>", "named": {"tokenizer_class": "GemmaTokenizer", "add_bos_token": True}},
}
_INST = ("[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[IMG]")
_VISION = ("<|vision_start|>", "<|image_pad|>", "<|vision_end|>")
_COHERE = (
    *("<|START_OF_TURN_TOKEN|>", "<|SYSTEM_TOKEN|>", "<|USER_TOKEN|>", "<|CHATBOT_TOKEN|>", "<|START_RESPONSE|>"),
    *("<|END_RESPONSE|>", "<|START_ACTION|>", "<|END_ACTION|>", "<|START_TOOL_RESULT|>", "<|END_TOOL_RESULT|>"),
)
_APERTUS = (
    *("<|system_start|>", "<|system_end|>", "<|developer_start|>", "<|developer_end|>", "<|user_start|>"),
    *("<|user_end|>", "<|assistant_start|>", "<|tools_prefix|>", "<|tools_suffix|>"),
)
_EXAONE = ("[|system|]", "[|user|]", "[|assistant|]", "[|tool|]")
_HARMONY = ("<|start|>", "<|message|>", "<|end|>", "<|channel|>", "<|constrain|>")
_LLAMA4 = ("<|header_start|>", "<|header_end|>", "<|python_start|>", "<|python_end|>", "<|image|>")
_HUNYUAN = ("<\uff5chy_User\uff5c>", "<\uff5chy_Assistant\uff5c>", "<\uff5chy_place▁holder▁no▁3\uff5c>")

TALKERS: dict[str, Spelling] = {
    "gemma": _talker("gemma", plain.GEMMA, _TURNS, "<bos>", "<eos>", ends=["<eos>", _TURNS[1]], **_GEMMA),
    "gemma 3": _talker("gemma3_text", parts.GEMMA3, _TURNS, "<bos>", "<eos>", ends=["<eos>", _TURNS[1]], **_GEMMA),
    "gemma 4": _talker(
        *("llama", parts.GEMMA4, ("<|turn>", "<turn|>", "<|channel>", "<channel|>"), "<bos>", "<eos>"),
        **{**_GEMMA, "named": _BACKEND},
        ends=["<eos>", "<turn|>"],
    ),
    "phi 3": _talker("llama", plain.PHI3, _PHI, "<s>", "<|endoftext|>", ends=["<|endoftext|>", *_PHI[2:]]),
    "phi 4": _talker("llama", plain.PHI4, (*_IM, "<|im_sep|>"), "<|endoftext|>", _IM[1], ends=[_IM[1]]),
    "mistral small": _talker("mistral", parts.MISTRAL_SMALL, _INST, "<s>", "</s>", ends=None, front="<s>"),
    "ministral 3": _talker("mistral", parts.MINISTRAL3, _INST, "<s>", "</s>", ends=["</s>"], front="<s>"),
    "smollm 3": _talker("llama", plain.SMOLLM3, _IM, None, _IM[1], ends=[_IM[1]]),
    "olmo 2": _talker("llama", plain.OLMO2, _PHI[:3], "<|endoftext|>", "<|endoftext|>", ends=["<|endoftext|>"]),
    "olmo 3": _talker("llama", plain.OLMO3, _IM, "<|endoftext|>", "<|endoftext|>", ends=[_IM[1], "<|endoftext|>"]),
    "exaone 4": _talker("llama", plain.EXAONE4, _EXAONE, "[BOS]", "[|endofturn|]", ends=["[|endofturn|]"]),
    "gpt-oss": _talker(
        *("gpt_oss", plain.GPT_OSS, _HARMONY, "<|startoftext|>", "<|return|>"),
        ends=["<|return|>", "<|endoftext|>", "<|call|>"],
    ),
    "llama 4": _talker(
        *("llama4_text", parts.LLAMA4, _LLAMA4, "<|begin_of_text|>", "<|eot|>"),
        ends=["<|end_of_text|>", "<|eom|>", "<|eot|>"],
        front="<|begin_of_text|>",
    ),
    "hunyuan": _talker(
        *("llama", plain.HUNYUAN, _HUNYUAN, "<\uff5chy_begin▁of▁sentence\uff5c>", "<\uff5chy_place▁holder▁no▁2\uff5c>"),
        ends=["<\uff5chy_place▁holder▁no▁2\uff5c>"],
    ),
    "seed-oss": _talker("llama", plain.SEED_OSS, ("<seed:think>",), "<seed:bos>", "<seed:eos>", ends=["<seed:eos>"]),
    "ernie 4.5": _talker(
        *("ernie4_5", plain.ERNIE45, ("<|begin_of_sentence|>",), "<s>", "</s>"),
        ends=["</s>"],
        kind="llama_of_transformers",
        named={"tokenizer_class": "Ernie4_5_Tokenizer", "cls_token": "<|begin_of_sentence|>"},
    ),
    "glm 4": _talker(
        *("glm4", plain.GLM4, _GLM, None, "<|endoftext|>"), ends=["<|endoftext|>", "<|user|>", "<|observation|>"]
    ),
    "granite": _talker("llama", plain.GRANITE, _ROLES, "<|end_of_text|>", "<|end_of_text|>", ends=["<|end_of_text|>"]),
    "command r7b": _talker(
        *("cohere2", plain.COHERE2, _COHERE, "<BOS_TOKEN>", "<|END_OF_TURN_TOKEN|>"),
        ends=["<|END_OF_TURN_TOKEN|>"],
        front="<BOS_TOKEN>",
        named={"tokenizer_class": "CohereTokenizer", "add_bos_token": True},
    ),
    "stablelm zephyr": _talker(
        *("stablelm", plain.STABLELM_ZEPHYR, _PHI[:3], "<|endoftext|>", "<|endoftext|>"),
        ends=["<|endoftext|>"],
        named={"tokenizer_class": "GPTNeoXTokenizer"},
    ),
    "stablelm 2 12b": _talker("stablelm", plain.STABLELM2, _IM, "<|endoftext|>", "<|im_end|>", ends=["<|im_end|>"]),
    "starcoder 2": _talker(
        *("starcoder2", plain.STARCODER2, (), "<|endoftext|>", "<|endoftext|>"),
        ends=None,
        named={"tokenizer_class": "GPT2Tokenizer"},
    ),
    "apertus": _talker(
        "apertus", parts.APERTUS, _APERTUS, "<s>", "<|assistant_end|>", ends=["</s>", "<|assistant_end|>"]
    ),
    "qwen 2 vl": _talker(
        *("qwen2", parts.QWEN2_VL, (*_IM, *_VISION), None, "<|im_end|>"), ends=[*_IM[1:], "<|endoftext|>"], named=_QWEN
    ),
    "qwen 3 vl": _talker(
        *("qwen3", parts.QWEN3_VL, (*_IM, *_VISION), None, "<|im_end|>"), ends=[*_IM[1:], "<|endoftext|>"], named=_QWEN
    ),
    "llava": _talker(
        *("llama", parts.LLAVA, ("<image>",), "<s>", "</s>"),
        **{"ends": ["</s>"], "front": "<s>", "kind": "llama_of_transformers"},
        named={"tokenizer_class": "LlamaTokenizer", "add_bos_token": True},
    ),
    "internvl": _talker("qwen2", parts.INTERNVL, ("<IMG_CONTEXT>", *_IM), None, "<|im_end|>", ends=None, named=_QWEN),
    **talkers_of_mixtures.TALKERS,
    **talkers_of_latents.TALKERS,
    "zephyr": _talker("mistral", ZEPHYR, (), "<s>", "</s>", ends=["</s>"], front="<s>", kind="llama2"),
}


WITH_PARTS = {name for name, one in TALKERS.items() if one.template in vars(parts).values()} - {"apertus"}
WITH_PARTS |= talkers_of_mixtures.WITH_PARTS | talkers_of_latents.WITH_PARTS
"""Models whose template reads a list of parts; Apertus reads an object with one."""


def _of_parts(message: Mapping[str, Any], *more: str) -> dict[str, Any]:
    """The message with its content as a list."""
    return {**message, "content": [{"type": "text", "text": text} for text in (message["content"], *more)]}


CONTENT_OF_PARTS = "content of parts"
TALKS_OF_PARTS: dict[str, dict[str, Any]] = {
    CONTENT_OF_PARTS: {"messages": [_of_parts(USER, " And <start_of_turn> or </s>?")]},
    "all of parts": {"messages": [_of_parts(one) for one in (SYSTEM, USER, ANSWER, USER)]},
    "parts and text": {"messages": [SYSTEM, _of_parts(USER, "?"), ANSWER, USER]},
    "an image": {"messages": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]}]},
    "parts and tools": {"messages": [_of_parts(SYSTEM), _of_parts(USER)], "tools": [TOOL]},
}
_VARIABLES = {
    "thinking": {"messages": [SYSTEM, USER], "enable_thinking": True},
    "no thinking": {"messages": [{**SYSTEM, "content": "/no_think Be brief."}, USER, ANSWER, USER]},
    "thinking budget": {"messages": [USER], "thinking_budget": 0},
    "documents": {"messages": [USER], "documents": [{"title": "a", "text": "b"}], "controls": ["citations"]},
    "effort": {"messages": [SYSTEM, USER], "reasoning_effort": "high", "model_identity": "You are another."},
    "safety": {"messages": [USER], "safety_mode": "STRICT"},
}
EVERY_TALK: dict[str, dict[str, Any]] = {**TALKS, **TALKS_OF_PARTS, **_VARIABLES}
