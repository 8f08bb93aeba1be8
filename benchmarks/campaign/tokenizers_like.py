"""Small tokenizers of the shapes that checkpoints have, and chat templates: whole input of the campaign."""

from __future__ import annotations

import json
from typing import Any

_LETTERS = "abcdefghijklmnopqrstuvwxyzĠĊ"
_ADDED = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}


def _tokenizer(model: dict[str, Any], **parts: Any) -> bytes:
    added = [{"id": index, "content": content, **_ADDED} for index, content in enumerate(("<s>", "</s>", "<unk>"))]
    kinds = ("truncation", "padding", "normalizer", "pre_tokenizer", "post_processor", "decoder")
    document = {"version": "1.0", **dict.fromkeys(kinds), "added_tokens": added, "model": model, **parts}
    return json.dumps(document).encode()


def _vocabulary(pieces: list[str]) -> dict[str, int]:
    return {piece: index for index, piece in enumerate(["<s>", "</s>", "<unk>", *pieces])}


_MERGES = ["h e", "l l", "he ll", "hell o", "Ġ w"]
_POST = {
    "type": "TemplateProcessing",
    "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
    "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
    "special_tokens": {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}},
}
_BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
_SPLIT = {
    "type": "Split",
    "pattern": {"Regex": "(?i:'s|'t)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}|\\s+(?!\\S)|\\s+"},
    "behavior": "Isolated",
    "invert": False,
}
_BPE = {
    "type": "BPE",
    "dropout": None,
    "unk_token": None,
    "fuse_unk": False,
    "byte_fallback": False,
    "ignore_merges": False,
}
_META = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": True}
_LLAMA_DECODER = [
    {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
    {"type": "ByteFallback"},
    {"type": "Fuse"},
    {"type": "Strip", "content": " ", "start": 1, "stop": 0},
]
_LLAMA_NORMALIZER = [
    {"type": "Prepend", "prepend": "▁"},
    {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
]

SEEDS = (
    _tokenizer(
        {**_BPE, "vocab": _vocabulary([*_LETTERS, "he", "ll", "hell", "hello", "Ġw"]), "merges": _MERGES},
        pre_tokenizer={"type": "Sequence", "pretokenizers": [_SPLIT, _BYTES]},
        post_processor=_POST,
        decoder=_BYTES,
    ),
    _tokenizer(
        {
            **_BPE,
            "unk_token": "<unk>",
            "byte_fallback": True,
            "vocab": _vocabulary(["▁", *_LETTERS, "he", "<0x0A>"]),
            "merges": ["h e"],
        },
        normalizer={"type": "Sequence", "normalizers": _LLAMA_NORMALIZER},
        post_processor=_POST,
        decoder={"type": "Sequence", "decoders": _LLAMA_DECODER},
    ),
    _tokenizer(
        {
            "type": "Unigram",
            "unk_id": 2,
            "byte_fallback": False,
            "vocab": [[piece, -index / 7] for piece, index in _vocabulary(["▁", *_LETTERS, "hello"]).items()],
        },
        normalizer={"type": "NFKC"},
        pre_tokenizer=_META,
        decoder=_META,
    ),
    _tokenizer(
        {
            "type": "WordPiece",
            "unk_token": "<unk>",
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": _vocabulary([*_LETTERS, "##a", "##b"]),
        },
        normalizer={"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True, "lowercase": True},
        pre_tokenizer={"type": "BertPreTokenizer"},
        decoder={"type": "WordPiece", "prefix": "##", "cleanup": True},
    ),
)
TEMPLATES = (
    b"""{% for message in messages %}
{{- '<|' + message['role'] + '|>\\n' + message['content'] | trim + eos_token }}{% endfor %}
{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}""",
    b"""{{- bos_token }}{%- set ns = namespace(system='', seen=false) %}
{%- for m in messages %}
    {%- if m.role == 'system' and loop.first %}
        {%- set ns.system = m.content.strip() %}
    {%- elif m['role'] not in ['user', 'assistant'] %}
        {{- raise_exception('Only ' ~ m.role) }}
    {%- else %}
        {{- '[' ~ m.role[:4] | upper ~ ']' }}
        {%- if m.content is string %}{{- m.content | replace('a', 'b') }}
        {%- else %}{{- m.content | tojson(indent=2) }}{%- endif %}
    {%- endif %}
{%- endfor %}
{%- macro tail(x, n=2) %}{{- x[-n:] | join(', ') }}{%- endmacro %}{{- tail(['a', 'b', 'c']) }}
{%- for k, v in {'a': 1, 'b': [2.5, none]}.items() if v is not none %}{{- k ~ '=' ~ v }}{%- endfor %}""",
)
