"""Chat models with experts, as `talkers.py` has others."""

from __future__ import annotations

from support.samples.spellings import Spelling
from support.samples.talking import published as plain
from support.samples.talking import published_mixtures as mixed
from support.samples.talking.talker import GLM, IM, PHI, QWEN, ROLES, talker

_DOTS = ("<|system|>", "<|endofsystem|>", "<|userprompt|>", "<|endofuserprompt|>", "<|response|>")
_HUNYUAN3 = ("<\uff5chy_User:opensource\uff5c>", "<\uff5chy_Assistant:opensource\uff5c>")
_NEEDED = {"n_routed_experts": 8, "n_shared_experts": 1, "num_experts_per_tok": 2}
_LLAMA = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "unk_token": "<unk>"}
_HY_ENDS = ("<\uff5chy_begin_of_sentence:opensource\uff5c>", "<\uff5chy_eos:opensource\uff5c>")

TALKERS: dict[str, Spelling] = {
    "mixtral": talker(
        *("mixtral", mixed.MIXTRAL, (), "<s>", "</s>"),
        **{"ends": ["</s>"], "front": "<s>", "kind": "llama_of_transformers", "named": _LLAMA},
    ),
    "qwen 1.5 moe": talker(*("qwen2_moe", mixed.QWEN_MOE, IM, None, IM[1]), ends=[IM[1], "<|endoftext|>"], named=QWEN),
    "olmoe": talker(
        *("olmoe", mixed.OLMOE, PHI[:3], "<|endoftext|>", "<|endoftext|>"),
        ends=["<|endoftext|>"],
        named={"tokenizer_class": "GPTNeoXTokenizer"},
    ),
    "phi 3.5 moe": talker("phimoe", mixed.PHI_MOE, PHI, "<s>", "<|endoftext|>", ends=["<|endoftext|>", *PHI[2:]]),
    "granite 3 moe": talker(
        *("granitemoe", plain.GRANITE, ROLES, "<|end_of_text|>", "<|end_of_text|>"), ends=["<|end_of_text|>"]
    ),
    "glm 4.5": talker(
        *("glm4_moe", mixed.GLM45, (*GLM, "<|user|>"), None, "<|endoftext|>"),
        ends=["<|endoftext|>", "<|user|>", "<|observation|>"],
    ),
    "minimax m2": talker("minimax_m2", mixed.MINIMAX_M2, ("]~b]",), "]~!b[", "[e~[", ends=["[e~["]),
    "ernie 4.5 moe": talker(
        *("ernie4_5_moe", plain.ERNIE45, ("<|begin_of_sentence|>",), "<s>", "</s>"),
        ends=["</s>"],
        kind="llama_of_transformers",
        named={"tokenizer_class": "Ernie4_5_Tokenizer", "cls_token": "<|begin_of_sentence|>"},
    ),
    "dots.llm1": talker(
        *("dots1", mixed.DOTS1, _DOTS, None, "<|endofresponse|>"),
        ends=["<|endofresponse|>", "<|endoftext|>"],
        named=QWEN,
        more=_NEEDED,
    ),
    "hunyuan 3": talker("hy_v3", mixed.HUNYUAN3, _HUNYUAN3, *_HY_ENDS, ends=[_HY_ENDS[1]]),
}
WITH_PARTS = {"glm 4.5", "minimax m2"}
"""Models whose template reads a list of parts."""
