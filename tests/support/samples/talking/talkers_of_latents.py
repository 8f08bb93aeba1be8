"""Chat models with latent attention, as `talkers.py` has others; templates are abridged as in `published.py`."""

# ruff: noqa: E501, RUF001 - templates stand as they are written in the field
from __future__ import annotations

from typing import Any

from support.samples.spellings import Spelling
from support.samples.talking import published_mixtures as mixed
from support.samples.talking.talker import GLM, talker

_V2 = "{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}{{ 'User: ' + message['content'] + '\n\n' }}{% elif message['role'] == 'assistant' %}{{ 'Assistant: ' + message['content'] + eos_token }}{% elif message['role'] == 'system' %}{{ message['content'] + '\n\n' }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
_V3 = r"""{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}{% set ns = namespace(is_first=false, is_tool=false, is_output_first=true, system_prompt='', is_first_sp=true) %}
{%- for message in messages %}{%- if message['role'] == 'system' %}{%- if ns.is_first_sp %}{% set ns.system_prompt = ns.system_prompt + message['content'] %}{% set ns.is_first_sp = false %}{%- else %}{% set ns.system_prompt = ns.system_prompt + '\n\n' + message['content'] %}{%- endif %}{%- endif %}{%- endfor %}{{ bos_token }}{{ ns.system_prompt }}
{%- for message in messages %}
{%- if message['role'] == 'user' %}{%- set ns.is_tool = false -%}{{ '<｜User｜>' + message['content'] }}{%- endif %}
{%- if message['role'] == 'assistant' and 'tool_calls' in message %}{%- set ns.is_tool = false -%}
{%- for tool in message['tool_calls'] %}{{ '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>' + tool['type'] + '<｜tool▁sep｜>' + tool['function']['name'] + '\n```json\n' ~ tool['function']['arguments'] ~ '\n```<｜tool▁call▁end｜>' }}{%- endfor %}{{ '<｜tool▁calls▁end｜><｜end▁of▁sentence｜>' }}{%- endif %}
{%- if message['role'] == 'assistant' and 'tool_calls' not in message %}
{%- if ns.is_tool %}{{ '<｜tool▁outputs▁end｜>' + message['content'] + '<｜end▁of▁sentence｜>' }}{%- set ns.is_tool = false -%}
{%- else %}{% set content = message['content'] %}{% if '</think>' in content %}{% set content = content.split('</think>')[-1] %}{% endif %}{{ '<｜Assistant｜>' + content + '<｜end▁of▁sentence｜>' }}{%- endif %}{%- endif %}
{%- if message['role'] == 'tool' %}{%- set ns.is_tool = true -%}{%- if ns.is_output_first %}{{ '<｜tool▁outputs▁begin｜><｜tool▁output▁begin｜>' + message['content'] + '<｜tool▁output▁end｜>' }}{%- set ns.is_output_first = false %}{%- else %}{{ '\n<｜tool▁output▁begin｜>' + message['content'] + '<｜tool▁output▁end｜>' }}{%- endif %}{%- endif %}
{%- endfor -%}{% if ns.is_tool %}{{ '<｜tool▁outputs▁end｜>' }}{% endif %}{% if add_generation_prompt and not ns.is_tool %}{{ '<｜Assistant｜>' }}{% endif %}"""
_KIMI = r"""{%- if tools -%}<|im_system|>tool_declare<|im_middle|>{{ tools | tojson }}<|im_end|>{%- endif -%}
{%- for message in messages -%}
  {%- if loop.first and messages[0]['role'] != 'system' -%}<|im_system|>system<|im_middle|>You are a model.<|im_end|>{%- endif -%}
  {%- if message['role'] == 'system' -%}<|im_system|>system<|im_middle|>
  {%- elif message['role'] == 'user' -%}<|im_user|>user<|im_middle|>
  {%- elif message['role'] == 'assistant' -%}<|im_assistant|>assistant<|im_middle|>
  {%- elif message['role'] == 'tool' -%}<|im_system|>tool<|im_middle|>{{ '## Return of ' + (message.tool_call_id | default('')) + '\n' }}
  {%- endif -%}
  {%- if message['role'] == 'assistant' and message.get('tool_calls') -%}
    {%- if message['content'] -%}{{ message['content'] }}{%- endif -%}
    <|tool_calls_section_begin|>
    {%- for tool_call in message['tool_calls'] -%}<|tool_call_begin|>{{ tool_call['id'] | default('') }}<|tool_call_argument_begin|>{% if tool_call['function']['arguments'] is string %}{{ tool_call['function']['arguments'] }}{% else %}{{ tool_call['function']['arguments'] | tojson }}{% endif %}<|tool_call_end|>{%- endfor -%}
    <|tool_calls_section_end|>
  {%- elif message['content'] is string -%}{{ message['content'] }}
  {%- elif message['content'] is not none -%}
    {% for content in message['content'] -%}{% if content['type'] == 'image' or 'image' in content -%}<|media_start|>image<|media_content|><|media_pad|><|media_end|>{% else -%}{{ content['text'] }}{%- endif -%}{%- endfor -%}
  {%- endif -%}
  <|im_end|>
{%- endfor -%}
{%- if add_generation_prompt -%}<|im_assistant|>assistant<|im_middle|>{%- endif -%}"""
_DEEPSEEK = (
    "<｜User｜>",
    "<｜Assistant｜>",
    "<｜tool▁calls▁begin｜>",
    "<｜tool▁outputs▁begin｜>",
    "<｜tool▁outputs▁end｜>",
)
_ENDS = ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>")
_LLAMA: dict[str, Any] = {"tokenizer_class": "LlamaTokenizerFast", "add_bos_token": True, "add_eos_token": False}
_SIZES: dict[str, Any] = {"num_key_value_heads": 4, "num_experts_per_tok": 2, "n_routed_experts": 8, "n_group": 1}
_SIZES |= {"topk_group": 1}

TALKERS: dict[str, Spelling] = {
    "deepseek v2": talker(*("deepseek_v2", _V2, (), *_ENDS), ends=[_ENDS[1]], front=_ENDS[0], more=_SIZES),
    "deepseek v3": talker(
        *("deepseek_v3", _V3, _DEEPSEEK, *_ENDS), ends=[_ENDS[1]], front=_ENDS[0], named=_LLAMA, more=_SIZES
    ),
    "kimi k2": talker(
        *(
            "deepseek_v3",
            _KIMI,
            ("<|im_user|>", "<|im_assistant|>", "<|im_system|>", "<|im_middle|>"),
            "[BOS]",
            "[EOS]",
        ),
        ends=["<|im_end|>"],
        more=_SIZES,
    ),
    "glm 4.7 flash": talker(
        *("glm4_moe_lite", mixed.GLM45, (*GLM, "<|user|>"), None, "<|endoftext|>"),
        ends=["<|endoftext|>", "<|user|>", "<|observation|>"],
        more=_SIZES,
    ),
}
WITH_PARTS = {"kimi k2", "glm 4.7 flash"}
"""Models whose template reads a list of parts."""
