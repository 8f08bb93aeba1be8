"""Chat templates of models with experts, with the constructs of published ones, abridged as in `published.py`."""

# ruff: noqa: E501, RUF001 - templates stand as they are written in the field
from __future__ import annotations

MIXTRAL = r"""{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{- raise_exception('After the optional system message, roles must alternate.') }}{%- endif %}
    {%- if message['role'] == 'user' %}
        {%- if loop.first and system_message is defined %}{{- ' [INST] ' + system_message + '\n\n' + message['content'] + ' [/INST]' }}{%- else %}{{- ' [INST] ' + message['content'] + ' [/INST]' }}{%- endif %}
    {%- elif message['role'] == 'assistant' %}{{- ' ' + message['content'] + eos_token }}
    {%- else %}{{- raise_exception('Only user and assistant roles are supported.') }}{%- endif %}
{%- endfor %}"""
QWEN_MOE = "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou are a model.<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
OLMOE = "{{ bos_token }}{% for message in messages %}\n{% if message['role'] == 'system' %}\n{{ '<|system|>\n' + message['content'] }}\n{% elif message['role'] == 'user' %}\n{{ '<|user|>\n' + message['content'] }}\n{% elif message['role'] == 'assistant' %}\n{{ '<|assistant|>\n'  + message['content'] + eos_token }}\n{% endif %}\n{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}"
PHI_MOE = "{% for message in messages %}{% if message['role'] == 'system' and message['content'] %}{{'<|system|>\n' + message['content'] + '<|end|>\n'}}{% elif message['role'] == 'user' %}{{'<|user|>\n' + message['content'] + '<|end|>\n'}}{% elif message['role'] == 'assistant' %}{{'<|assistant|>\n' + message['content'] + '<|end|>\n'}}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
_VISIBLE = r"""{%- macro visible_text(content) -%}
    {%- if content is string -%}{{- content }}
    {%- elif content is iterable and content is not mapping -%}
        {%- for item in content -%}{%- if item is mapping and item.type == 'text' -%}{{- item.text }}{%- elif item is string -%}{{- item }}{%- endif -%}{%- endfor -%}
    {%- else -%}{{- content }}{%- endif -%}
{%- endmacro -%}
"""
GLM45 = (
    r"""[gMASK]<sop>
{%- if tools -%}
<|system|>
# Tools
<tools>
{% for tool in tools %}
{{ tool | tojson(ensure_ascii=False) }}
{% endfor %}
</tools>{%- endif -%}
"""
    + _VISIBLE
    + r"""{%- set ns = namespace(last_user_index=-1) %}
{%- for m in messages %}
    {%- if m.role == 'user' %}{% set ns.last_user_index = loop.index0 -%}{%- endif %}
{%- endfor %}
{% for m in messages %}
{%- if m.role == 'user' -%}<|user|>
{% set content = visible_text(m.content) %}{{ content }}
{{- '/nothink' if (enable_thinking is defined and not enable_thinking and not content.endswith("/nothink")) else '' -}}
{%- elif m.role == 'assistant' -%}
<|assistant|>
{%- set reasoning_content = '' %}
{%- set content = visible_text(m.content) %}
{%- if m.reasoning_content is string %}{%- set reasoning_content = m.reasoning_content %}
{%- elif '</think>' in content %}
    {%- set reasoning_content = content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}
    {%- set content = content.split('</think>')[-1].lstrip('\n') %}
{%- endif %}
{%- if loop.index0 > ns.last_user_index and reasoning_content -%}
{{ '\n<think>' + reasoning_content.strip() +  '</think>'}}
{%- else -%}
{{ '\n<think></think>' }}
{%- endif -%}
{%- if content.strip() -%}
{{ '\n' + content.strip() }}
{%- endif -%}
{% if m.tool_calls %}
{% for tc in m.tool_calls %}
{%- if tc.function %}{%- set tc = tc.function %}{%- endif %}
{{ '\n<tool_call>' + tc.name }}
{% set _args = tc.arguments %}
{% for k, v in _args.items() %}
<arg_key>{{ k }}</arg_key>
<arg_value>{{ v | tojson(ensure_ascii=False) if v is not string else v }}</arg_value>
{% endfor %}
</tool_call>{% endfor %}
{% endif %}
{%- elif m.role == 'tool' -%}
{%- if loop.first or (messages[loop.index0 - 1].role != "tool") %}{{- '<|observation|>' }}{%- endif %}
{{- '\n<tool_response>\n' }}{{- visible_text(m.content) }}{{- '\n</tool_response>' }}
{%- elif m.role == 'system' -%}
<|system|>
{{ visible_text(m.content) }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
    <|assistant|>{{- '\n<think></think>' if (enable_thinking is defined and not enable_thinking) else '' -}}
{%- endif -%}"""
)
MINIMAX_M2 = (
    r"""{# special token variables #}
{%- set toolcall_begin_token   = '<minimax:tool_call>'         -%}
{%- set toolcall_end_token     = '</minimax:tool_call>'        -%}
{%- macro render_tools(tool_list) -%}
{%- for tool in tool_list -%}
<tool>{{ tool.function | tojson(ensure_ascii=False) }}</tool>
{% endfor -%}
{%- endmacro -%}
"""
    + _VISIBLE
    + r"""{%- set system_message = none -%}
{%- set conversation_messages = messages -%}
{%- if messages and messages[0].role == "system" -%}
    {%- set system_message = messages[0] -%}
    {%- set conversation_messages = messages[1:] -%}
{%- endif -%}
{%- set ns = namespace(last_user_index=-1) %}
{% for m in conversation_messages %}
    {%- if m.role == 'user' %}{% set ns.last_user_index = loop.index0 -%}{%- endif %}
{%- endfor %}
{{- ']~!b[' ~ ']~b]system' ~ '\n' }}
{{- visible_text(system_message.content) if system_message and system_message.content else 'You are a model.' }}
{%- if tools -%}{{- '\n\n# Tools\n' ~ '<tools>' ~ '\n' }}{{- render_tools(tools) }}{{- '</tools>' ~ '\n' }}{%- endif -%}
{{- '[e~[\n' }}
{%- set last_tool_call = namespace(name=none) -%}
{%- for message in conversation_messages -%}
    {%- if message.role == 'assistant' -%}
        {{- ']~b]ai' ~ '\n' }}
        {%- set reasoning_content = '' %}
        {%- set content = visible_text(message.content) %}
        {%- if '</think>' in content %}
            {%- set reasoning_content = content.split('</think>')[0].strip('\n').split('<think>')[-1].strip('\n') %}
            {%- set content = content.split('</think>')[-1].strip('\n') %}
        {%- endif %}
        {%- if reasoning_content and loop.index0 > ns.last_user_index -%}{{- '<think>' ~ '\n' ~ reasoning_content ~ '\n' ~ '</think>' ~ '\n\n' }}{%- endif -%}
        {%- if content -%}{{- content }}{%- endif -%}
        {%- if message.tool_calls -%}
            {{- '\n' ~ toolcall_begin_token ~ '\n' }}
            {%- for tool_call in message.tool_calls -%}
                {%- if tool_call.function %}{%- set tool_call = tool_call.function %}{%- endif %}
                {{- '<invoke name="' + tool_call.name + '">' }}
                {% set _args = tool_call.arguments %}
                {%- for k, v in _args.items() %}{{- '<parameter name="' + k + '">' }}{{- v | tojson(ensure_ascii=False) if v is not string else v }}{{- '</parameter>' }}{% endfor %}
                {{- '</invoke>' ~ '\n' }}
            {%- endfor -%}
            {{- toolcall_end_token }}
            {%- set last_tool_call.name = message.tool_calls[-1].name -%}
        {%- else -%}
            {%- set last_tool_call.name = none -%}
        {%- endif -%}
        {{- '[e~[' ~ '\n' }}
    {%- elif message.role == 'tool' -%}
        {{- ']~b]tool' }}{{- '\n<response>' ~ visible_text(message.content) ~ '</response>' }}{{- '[e~[' ~ '\n' }}
    {%- elif message.role == 'user' -%}
        {{- ']~b]user' ~ '\n' }}{{- visible_text(message.content) }}{{- '[e~[' ~ '\n' }}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- ']~b]ai' ~ '\n' ~ '<think>' ~ '\n' }}{%- endif -%}"""
)
DOTS1 = "{%- if messages[0]['role'] == 'system' -%}<|system|>{{ messages[0]['content'] }}<|endofsystem|>{%- set start_idx = 1 -%}{%- else -%}<|system|>You are a model.<|endofsystem|>{%- set start_idx = 0 -%}{%- endif -%}{%- for idx in range(start_idx, messages|length) -%}{%- if messages[idx]['role'] == 'user' -%}<|userprompt|>{{ messages[idx]['content'] }}<|endofuserprompt|>{%- elif messages[idx]['role'] == 'assistant' -%}<|response|>{{ messages[idx]['content'] }}<|endofresponse|>{%- endif -%}{%- endfor -%}{%- if add_generation_prompt and messages[-1]['role'] == 'user' -%}<|response|>{%- endif -%}"
HUNYUAN3 = r"""{%- set think_begin_token = '<think:opensource>' -%}
{%- set think_end_token = '</think:opensource>' -%}
{%- set user_token = '<｜hy_User:opensource｜>' -%}
{%- set assistant_token = '<｜hy_Assistant:opensource｜>' -%}
{%- if reasoning_effort is not defined -%}{%- set reasoning_effort = 'no_think' -%}{%- endif -%}
{%- set ns = namespace(system_prompt='', last_user_index=-1, is_tool=false) -%}
{%- for message in messages -%}
    {%- if message['role'] == 'system' -%}{%- set ns.system_prompt = ns.system_prompt + message['content'] -%}{%- endif -%}
    {%- if message['role'] == 'user' -%}{%- set ns.last_user_index = loop.index0 -%}{%- endif -%}
{%- endfor -%}
{{- '<｜hy_begin_of_sentence:opensource｜>' -}}{{- ns.system_prompt -}}
{%- if tools -%}{{- '\n\n# Tools\n<tools>\n' -}}{%- for tool in tools -%}{{- tool | tojson -}}{{- '\n' -}}{%- endfor -%}{{- '</tools>' -}}{%- endif -%}
{{- '<｜reasoning_mode:opensource｜>reasoning_effort:' + reasoning_effort -}}
{%- for message in messages -%}
    {%- if message['role'] != 'tool' and ns.is_tool -%}{{- '</tool_responses:opensource>' -}}{%- set ns.is_tool = false -%}{%- endif -%}
    {%- if message['role'] == 'user' -%}{{- user_token + message['content'] -}}
    {%- elif message['role'] == 'assistant' -%}
        {{- assistant_token + think_begin_token -}}
        {%- if message.get('reasoning_content') and loop.index0 > ns.last_user_index -%}{{- message['reasoning_content'] -}}{%- endif -%}
        {{- think_end_token -}}{{- message['content'] if message['content'] is defined and message['content'] is not none else '' -}}
        {%- for call in message['tool_calls'] or [] -%}
            {{- '<tool_call:opensource>' + call['function']['name'] + '<tool_sep:opensource>\n' -}}
            {%- for key, value in call['function']['arguments'].items() -%}{{- key + '=' -}}{{- value if value is string else value | tojson -}}{{- '\n' -}}{%- endfor -%}
        {%- endfor -%}
        {%- if not loop.last or message['tool_calls'] -%}{{- eos_token -}}{%- endif -%}
    {%- elif message['role'] == 'tool' -%}
        {%- if not ns.is_tool -%}{{- '<tool_responses:opensource>\n' -}}{%- set ns.is_tool = true -%}{%- endif -%}
        {{- message['content'] + '\n' -}}
    {%- endif -%}
{%- endfor -%}
{%- if ns.is_tool -%}{{- '</tool_responses:opensource>' -}}{%- endif -%}
{%- if add_generation_prompt -%}{{- assistant_token + think_begin_token -}}{%- if reasoning_effort == 'no_think' -%}{{- think_end_token -}}{%- endif -%}{%- endif -%}"""
