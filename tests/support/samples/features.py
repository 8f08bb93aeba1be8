"""Features of Jinja2 that chat templates use, one template each, and longer ones in the manner of public models.

`talks` are the conversations that each of them is rendered with.
"""

# ruff: noqa: E501 - templates stand as they are written in the field
from __future__ import annotations

from typing import Any

from .talking.talks import ANSWER, SYSTEM, TOOL, TOOL_TALK, USER
from .talking.templates import ALL as WHOLE

SMALL = {
    "white space": "a  \n  {% if true %}\n    b\n  {%- endif +%}\n  {%+ if true %} c\n{% endif -%}\n\n  d {#- gone -#} e\n{{- 1 }}\n {{ 2 -}}\n\n3\n",
    "trailing line ends": "{% for m in messages %}\n{{ m.role }}\n\n{% endfor %}\n\n",
    "comments": "{# {{ x }} {% if %}\n#}\n  {# a #}b{#- c -#}  d",
    "raw": "{% raw %}{{ x }}{% if %}\n{% endraw %}\n{%- raw -%}  {# y #}  {%- endraw -%} z",
    "no line statements": "# for m in messages\n## not a comment\n{{ 1 }} # x\n",
    "loop variables": "{% for m in messages %}{{ loop.index }}{{ loop.index0 }}{{ loop.revindex }}{{ loop.revindex0 }}{{ loop.first }}{{ loop.last }}"
    "{{ loop.length }}{{ loop.depth }}{{ loop.depth0 }}{{ loop.cycle('a', 'b') }}{{ loop.changed(m.role) }}{{ loop }};{% endfor %}",
    "neighbours": "{% for m in messages %}{{ loop.previtem.role if loop.previtem is defined }}<{{ m.role }}>{{ loop.nextitem.role if not loop.last }}"
    "{% if loop.nextitem is undefined %}end{% endif %}{% endfor %}{{ loop is defined }}",
    "loop if": "{% for m in messages if m.role != 'system' %}{{ loop.index }}/{{ loop.length }}{{ m.role }}{% else %}none{% endfor %}"
    "{% for m in messages if m.role == 'nobody' %}x{% else %}nobody{% endfor %}",
    "loop over pairs": "{% for k, v in messages[0].items() %}{{ k }}={{ v }},{% endfor %}{% for k, (a, b) in [[1, [2, 3]]] %}{{ k }}{{ a }}{{ b }}{% endfor %}",
    "break and continue": "{% for m in messages %}{% if m.role == 'system' %}{% continue %}{% endif %}{{ m.role }}{% if loop.index > 2 %}{% break %}{% endif %}"
    "{% else %}nothing{% endfor %}{% for x in [1, 2] %}{% continue %}{% else %}all went on{% endfor %}{% for x in [1] %}{% break %}{% else %}broke{% endfor %}",
    "scopes": "{% set x = 1 %}{% for m in messages %}{{ x }}{% set x = x + 1 %}{{ x }}{% endfor %}{{ x }}{% if true %}{% set x = 9 %}{% set y = 8 %}{% endif %}{{ x }}{{ y }}",
    "set after a loop": "{% for m in messages %}{{ late }}{% if loop.first %}{% set late = 5 %}{% endif %}{{ late }}{% endfor %}{% set late = 3 %}{{ late }}",
    "set of a given name": "{% if not tools %}{% set tools = [] %}{% endif %}{{ tools|length }}{% for m in messages %}{% set messages = [] %}{{ messages|length }}{% endfor %}{{ messages|length }}",
    "namespace": "{% set ns = namespace(n=0, last=none) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}"
    "{% endfor %}{{ ns.n }}{{ ns.last }}{{ ns.nothing is defined }}{{ ns }}",
    "no namespace": "{% set ns = {'a': 1} %}{% set ns.a = 2 %}",
    "tuple of targets": "{% set a, b = 1, 2 %}{{ a }}{{ b }}{% set ns = namespace() %}{% set ns.x, c = 'xy' %}{{ ns.x }}{{ c }}{% set (d, (e, f)) = [1, [2, 3]] %}{{ f }}",
    "too few for the targets": "{% set d, e = [1] %}",
    "set block": "{% set text %}a{% for m in messages %}{{ m.role }}{% endfor %}{% endset %}{{ text|length }}{{ text }}{% set up | upper | replace('A', '4') %}abc{{ 1 }}{% endset %}{{ up }}",
    "filter block": "{% filter upper %}a{{ messages[0].role }}{% filter replace('A', 'x') %}aA{% endfilter %}{% endfilter %}{% filter indent(2) %}a\nb{% endfilter %}",
    "with": "{% set a = 1 %}{% with a = 2, b = a %}{{ a }}{{ b }}{% set c = 3 %}{% endwith %}{{ a }}{{ b }}{{ c }}{% with %}{% set a = 4 %}{{ a }}{% endwith %}{{ a }}",
    "macros": "{% macro f(x, y='d', z=y ~ x) %}[{{ x }}{{ y }}{{ z }}{{ varargs }}{{ kwargs }}]{% endmacro %}{{ f(1) }}{{ f(1, 2, 3, 4, k=5) }}{{ f(y=2) }}{{ f }}{{ f.name }}{{ f.arguments }}",
    "macros are strict": "{% macro f(x) %}{{ x }}{% endmacro %}{{ f(1, 2) }}",
    "macros see their place": "{% set x = 1 %}{% macro f() %}{{ x }}{{ m }}{% endmacro %}{% for m in messages %}{% set x = 2 %}{{ f() }}{% endfor %}{% set x = 3 %}{{ f() }}",
    "macros in loops": "{% set ns = namespace(f=none) %}{% for m in messages %}{% macro g() %}{{ m.role }}{{ loop.index }}{% endmacro %}{{ g() }}{% set ns.f = g %}{% endfor %}{{ ns.f() }}",
    "macros call macros": "{% macro a(n) %}{{ n }}{% if n > 0 %}{{ b(n - 1) }}{% endif %}{% endmacro %}{% macro b(n) %}b{{ a(n) }}{% endmacro %}{{ a(3) }}",
    "call blocks": "{% macro box(t) %}<{{ t }}>{{ caller('x', 1) }}{{ caller() if 0 }}</{{ t }}>{% endmacro %}{% call(a, b=2, c=3) box('p') %}{{ a }}{{ b }}{{ c }}{{ messages[0].role }}{% endcall %}",
    "no caller": "{% macro f() %}{{ caller is defined }}{{ caller() }}{% endmacro %}{{ f() }}",
    "recursive loops": "{% set tree = [{'n': 1, 'c': [{'n': 2, 'c': [{'n': 3}]}, {'n': 4}]}, {'n': 5}] %}{% for t in tree recursive %}{{ loop.depth }}:{{ t.n }}{{ loop.index }}"
    "{% if t.c %}({{ loop(t.c) }}){% endif %}{% else %}-{% endfor %}",
    "nested loops": "{% for a in [1, 2] %}{% set outer = loop %}{% for b in 'xy' %}{{ outer.index }}{{ loop.index }}{{ a }}{{ b }}{% endfor %}{{ loop.last }}{% endfor %}",
    "blocks": "{% set x = 1 %}{% block head %}[{{ x }}{{ messages[0].role }}]{% set x = 2 %}{{ x }}{% endblock %}{{ x }}{% for m in messages %}{% block part scoped %}{{ m.role }}{{ loop.index }}{% endblock %}{% endfor %}",
    "if": "{% if tools and messages|length > 2 %}a{% elif messages[0].role == 'system' %}b{% elif not tools %}c{% else %}d{% endif %}{{ 'y' if tools else 'n' }}{{ 'only' if tools }}",
    "unknown in a dead branch": "{% if false %}{{ 1|nope }}{{ 1 is nope }}{% endif %}ok",
    "unknown in a living branch": "{% if true %}{{ 1|nope }}{% endif %}ok",
    "generation": "{% for m in messages %}{% if m.role == 'assistant' %}{%- generation -%}  {{ m.content }}{% set inner = 1 %}  {%- endgeneration -%}{{ inner }}{% else %}{{ m.role }}{% endif %}{% endfor %}",
    "cycler and joiner": "{% set c, j = cycler('a', 'b', 'c'), joiner(', ') %}{% for m in messages %}{{ j() }}{{ c.next() }}{% endfor %}{{ c.current }}{{ c.reset() }}{{ c.current }}",
    "groups": "{% for g in messages|groupby('role') %}{{ g.grouper }}{{ g.list|length }}{% endfor %}{% for r, ms in messages|groupby('role') %}{{ r }}{{ ms|map(attribute='role')|join('+') }}{% endfor %}",
    "messages are not changed": "{{ messages.append({'role': 'x'}) }}",
    "keys named as methods": "{% set d = {'items': 1, 'get': 2, 'x y': 3} %}{{ d['items'] }}{{ d.items()|list }}{{ d['x y'] }}{{ d.get('get') }}",
    "literals": "{{ 'a\\tb\\u00e9\\x41\\'' }}{{ \"q\\\"\" }}{{ 'line\nbreak'|length }}{{ 1_000 }}{{ 0x1f }}{{ 1e3 }}{{ [1, 2,] }}{{ {'a': 1,} }}{{ (1,) }}{{ 'a' 'b' }}",
    "mixed line ends": "a\r\nb\rc\n{{ 'x\r\ny'|length }}\r\n{% if true %}\r\nd\r\n{% endif %}\r\n",
    "dates": "{{ strftime_now('%Y')|length }}{% if strftime_now is defined %}y{% endif %}",
}
LARGE = {
    "qwen-3": """{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}{{- messages[0].content + '\\n\\n' }}{%- endif %}
    {{- "# Functions\\n\\n<tools>" }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\\n</tools><|im_end|>\\n" }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(multi_step=true, last=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step and message.role == "user" and message.content is string and not(message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}
        {%- set ns.multi_step = false %}
        {%- set ns.last = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content if message.content is string else '' %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {%- set thought = '' %}
        {%- if message.reasoning_content is string %}
            {%- set thought = message.reasoning_content %}
        {%- elif '</think>' in content %}
            {%- set thought = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last and (loop.last or thought) %}
            {{- '<|im_start|>assistant\\n<think>\\n' + thought.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}
        {%- else %}
            {{- '<|im_start|>' + message.role + '\\n' + content }}
        {%- endif %}
        {%- for call in message.tool_calls or [] %}
            {%- if (loop.first and content) or (not loop.first) %}{{- '\\n' }}{%- endif %}
            {%- if call.function %}{%- set call = call.function %}{%- endif %}
            {{- '<tool_call>\\n{"name": "' ~ call.name ~ '", "arguments": ' }}
            {%- if call.arguments is string %}{{- call.arguments }}{%- else %}{{- call.arguments | tojson }}{%- endif %}
            {{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "tool" %}
        {%- if loop.first or (messages[loop.index0 - 1].role != "tool") %}{{- '<|im_start|>user' }}{%- endif %}
        {{- '\\n<tool_response>\\n' + content + '\\n</tool_response>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}{{- '<|im_end|>\\n' }}{%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}
{%- endif %}
""",
    "mistral tools": """{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set rest = messages[1:] %}
{%- else %}
    {%- set rest = messages %}
{%- endif %}
{%- set user_messages = rest | selectattr("role", "equalto", "user") | list %}
{%- set ns = namespace(index=0) %}
{%- for message in rest if not (message.role == "tool" or (message.tool_calls is defined and message.tool_calls is not none)) %}
    {%- if (message["role"] == "user") != (ns.index % 2 == 0) %}
        {{- raise_exception("roles must alternate") }}
    {%- endif %}
    {%- set ns.index = ns.index + 1 %}
{%- endfor %}
{{- bos_token }}
{%- for message in rest %}
    {%- if message["role"] == "user" %}
        {%- if tools is not none and (message == user_messages[-1]) %}
            {{- "[AVAILABLE_TOOLS][" }}
            {%- for tool in tools %}
                {%- set tool = tool.function %}
                {{- '{"type": "function", "function": {' }}
                {%- for key, val in tool.items() if key != "return" %}
                    {%- if val is string %}{{- '"' + key + '": "' + val + '"' }}{%- else %}{{- '"' + key + '": ' + val|tojson }}{%- endif %}
                    {%- if not loop.last %}{{- ", " }}{%- endif %}
                {%- endfor %}
                {{- "}}" }}{%- if not loop.last %}{{- ", " }}{%- else %}{{- "]" }}{%- endif %}
            {%- endfor %}
            {{- "[/AVAILABLE_TOOLS]" }}
        {%- endif %}
        {{- "[INST]" + (system_message + "\\n\\n" if loop.last and system_message is defined else "") + message["content"] + "[/INST]" }}
    {%- elif message.tool_calls is defined and message.tool_calls is not none %}
        {{- "[TOOL_CALLS]" ~ (message.tool_calls|map(attribute='function')|list|tojson) ~ eos_token }}
    {%- elif message["role"] == "assistant" %}
        {{- " " + message["content"]|trim + eos_token }}
    {%- elif message["role"] in ["tool_results", "tool"] %}
        {%- set content = message.content.content if message.content is mapping and message.content.content is defined else message.content %}
        {{- '[TOOL_RESULTS]{"content": ' + content|string + "}[/TOOL_RESULTS]" }}
    {%- else %}
        {{- raise_exception("unknown role " ~ message.role) }}
    {%- endif %}
{%- endfor %}
""",
    "gemma": """{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set prefix = messages[0]['content'] + '\\n\\n' %}{% set loop_messages = messages[1:] %}
{%- else %}{% set prefix = '' %}{% set loop_messages = messages %}{% endif %}
{%- for message in loop_messages -%}
    {%- if (message['role'] == 'assistant') -%}{%- set role = 'model' -%}{%- else -%}{%- set role = message['role'] -%}{%- endif -%}
    {{ '<start_of_turn>' + role + '\\n' + (prefix if loop.first else '') }}
    {%- if message['content'] is string -%}
        {{ message['content'] | trim }}
    {%- elif message['content'] is iterable and message['content'] is not none -%}
        {%- for item in message['content'] -%}
            {%- if item['type'] == 'image' -%}{{ '<image>' }}{%- elif item['type'] == 'text' -%}{{ item['text'] | trim }}{%- endif -%}
        {%- endfor -%}
    {%- else -%}{{ message.tool_calls | tojson }}{%- endif -%}
    {{ '<end_of_turn>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<start_of_turn>model\\n' }}{%- endif -%}
""",
    "deepseek": """{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}
{%- set ns = namespace(is_first=false, is_tool=false, is_output_first=true, system_prompt='', first=true) -%}
{%- for message in messages -%}{%- if message['role'] == 'system' -%}
{%- if ns.first -%}{%- set ns.system_prompt = ns.system_prompt + message['content'] -%}{%- set ns.first = false -%}{%- else -%}{%- set ns.system_prompt = ns.system_prompt + '\\n\\n' + message['content'] -%}{%- endif -%}
{%- endif -%}{%- endfor -%}{{ bos_token }}{{ ns.system_prompt }}
{%- for message in messages -%}
{%- if message['role'] == 'user' -%}{%- set ns.is_tool = false -%}{{ '<|User|>' + message['content'] }}{%- endif -%}
{%- if message['role'] == 'assistant' and message['tool_calls'] is defined and message['tool_calls'] is not none -%}
{%- set ns.is_tool = false -%}{%- for tool in message['tool_calls'] -%}
{%- if not ns.is_first -%}{{ '<|Assistant|><|calls|>' + tool['type'] + '<|sep|>' + tool['function']['name'] + '\\n```json\\n' ~ tool['function']['arguments'] ~ '\\n```' }}{%- set ns.is_first = true -%}
{%- else -%}{{ '\\n' + tool['function']['name'] }}{%- endif -%}{%- endfor -%}{{ '<|end|>' }}{%- endif -%}
{%- if message['role'] == 'assistant' and not message['tool_calls'] -%}
{%- if ns.is_tool -%}{{ '<|outputs end|>' + message['content'] + eos_token }}{%- set ns.is_tool = false -%}
{%- else -%}{%- set content = message['content'] -%}{%- if '</think>' in content -%}{%- set content = content.split('</think>')[-1] -%}{%- endif -%}{{ '<|Assistant|>' + content + eos_token }}{%- endif -%}{%- endif -%}
{%- if message['role'] == 'tool' -%}{%- set ns.is_tool = true -%}{%- if ns.is_output_first -%}{{ '<|outputs|>' + message['content'] }}{%- set ns.is_output_first = false -%}{%- else -%}{{ '\\n' + message['content'] }}{%- endif -%}{%- endif -%}
{%- endfor -%}{%- if ns.is_tool -%}{{ '<|outputs end|>' }}{%- endif -%}{%- if add_generation_prompt and not ns.is_tool -%}{{ '<|Assistant|><think>\\n' }}{%- endif -%}
""",
    "glm": """[gMASK]<sop>
{%- if tools -%}
<|system|>
# Tools
{% for tool in tools %}
{% set tool = tool['function'] if tool['type'] == 'function' else tool -%}
## {{ tool['name'] }}

{{ tool | tojson(indent=4) }}
Use it as JSON.
{%- endfor %}
{%- endif -%}
{%- macro visible(content) -%}
    {%- if content is string -%}{{- content }}
    {%- elif content is iterable and content is not mapping -%}
        {%- for item in content -%}{%- if item is mapping and item.type == 'text' -%}{{- item.text }}{%- elif item is string -%}{{- item }}{%- endif -%}{%- endfor -%}
    {%- else -%}{{- content }}{%- endif -%}
{%- endmacro -%}
{%- for item in messages -%}
{%- if item['tools'] is defined -%}<|system|>{{ item['tools']|length }}{%- endif -%}
{%- if item['role'] == 'tool' -%}
<|observation|>
{{ visible(item.content) }}
{%- elif item.tool_calls -%}
<|assistant|>{% for call in item.tool_calls %}{{ call.function.name }}
{{ call.function.arguments | tojson(ensure_ascii=False) }}
{% endfor %}
{%- else -%}
<|{{ item['role'] }}|>{{ item.get('metadata', '') }}
{{ visible(item['content']) }}
{%- endif -%}
{%- endfor -%}
{% if add_generation_prompt %}<|assistant|>{% endif %}
""",
    "command-r": """{%- macro json_to_python_type(spec) %}
{%- set basic = {"string": "str", "number": "float", "integer": "int", "boolean": "bool"} %}
{%- if spec.type is string and basic[spec.type] is defined %}{{- basic[spec.type] }}
{%- elif spec.type == "array" %}{{- "List[" + json_to_python_type(spec["items"]) + "]" }}
{%- elif spec.type == "object" %}{%- if spec.additionalProperties is defined %}{{- "Dict[str, " + json_to_python_type(spec.additionalProperties) + ']' }}{%- else %}{{- "Dict" }}{%- endif %}
{%- elif spec.type is iterable and spec.type is not string %}{{- "Union[" }}{%- for t in spec.type %}{{- json_to_python_type({"type": t}) }}{%- if not loop.last %}{{- "," }}{%- endif %}{%- endfor %}{{- "]" }}
{%- else %}{{- "Any" }}{%- endif %}{%- endmacro %}
{%- macro old_tool_parser(tools) %}
{%- for tool in tools %}
    {%- if loop.index0 != 0 %}{{- '\\n\\n' }}{%- endif %}
    {{- '```python\\ndef ' + tool.function.name + '(' }}
    {%- for name, fields in tool.function.parameters.properties.items() %}
        {%- if loop.index0 != 0 %}{{- ', ' }}{%- endif %}{{- name + ': ' }}
        {%- if not name in tool.function.parameters.required %}{{- 'Optional[' + json_to_python_type(fields) + '] = None' }}{%- else %}{{- json_to_python_type(fields) }}{%- endif %}
    {%- endfor %}
    {{- ') -> List[Dict]:\\n    \\"\\"\\"' }}{{- tool.function.description }}{{- '\\n    \\"\\"\\"\\n    pass\\n```' }}
{%- endfor %}{%- endmacro %}
{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}{%- set loop_messages = messages[1:] %}{%- set system_message = messages[0]['content'] %}
{%- else %}{%- set loop_messages = messages %}{%- set system_message = '## Task\\nAnswer.' %}{%- endif %}
{{- '<|SYS|># ' + system_message + '\\n' + (old_tool_parser(tools) if tools else '') + '<|END|>' }}
{%- for message in loop_messages %}
    {%- set content = message['content'] %}
    {%- if message.role == 'user' %}{{- '<|USER|>' + content.strip() + '<|END|>' }}
    {%- elif message.role == 'system' %}{{- '<|SYS|>' + content.strip() + '<|END|>' }}
    {%- elif message.role == 'assistant' and message.tool_calls is defined %}
        {{- '<|BOT|>' }}{%- if message.content is defined %}{{- message.content|trim }}{%- endif %}{{- '\\nAction:\\n```json\\n[\\n' }}
        {%- for call in message.tool_calls %}{{- '{\\n'|indent(4, first=True) }}{{- ('"tool_name": "' + call.function.name + '",\\n')|indent(8, first=True) }}
            {{- '"parameters": '|indent(8, first=True) }}{%- if call.function.arguments is defined %}{{- call.function.arguments|tojson(indent=4)|indent(8) }}{{- '\\n' }}{%- else %}{{- '{}' }}{%- endif %}{{- '}'|indent(4, first=True) }}{%- endfor %}{{- '\\n]```' }}
    {%- elif message.role == 'assistant' %}{{- '<|BOT|>' + content.strip() + '<|END|>' }}
    {%- elif message.role == 'tool' %}{%- if not loop.first and loop.previtem.role != 'tool' %}{{- '<|SYS|><results>\\n' }}{%- endif %}
        {%- for line in content.splitlines() %}{{- loop.index ~ ': ' ~ line ~ '\\n' }}{%- endfor %}
        {%- if loop.last or loop.nextitem.role != 'tool' %}{{- '</results><|END|>' }}{%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|BOT|>' }}{%- endif %}
""",
    "phi-4": """{% for message in messages %}{% if message['role'] == 'system' and 'tools' in message and message['tools'] is not none %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|tool|>' + message['tools'] + '<|/tool|>' + '<|end|>' }}{% else %}{{ '<|' + message['role'] + '|>' + (message['content'] or '') + '<|end|>' }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% else %}{{ eos_token }}{% endif %}
""",
    "typescript tools": """{%- macro kind(spec, depth) -%}
    {%- if depth > 4 -%}any{%- elif spec.type == 'object' -%}
        {{- '{' }}{%- for name, one in (spec.properties or {})|dictsort %}{{ name }}{{ '?' if name not in (spec.required or []) }}: {{ kind(one, depth + 1) }}{{ '; ' if not loop.last }}{%- endfor -%}{{- '}' -}}
    {%- elif spec.type is sequence and spec.type is not string -%}{{ spec.type|map('replace', 'integer', 'number')|join(' | ') }}
    {%- elif spec.type == 'integer' -%}number{%- else -%}{{ spec.type|default('any') }}{%- endif -%}
{%- endmacro -%}
{%- if tools %}namespace functions {
{% for tool in tools|map(attribute='function') %}
  // {{ tool.description|wordwrap(12)|indent(5) }}
  type {{ tool.name|title|replace('_', '') }} = (_: {{ kind(tool.parameters, 0) }}) => any;
{% endfor %}
}
{% endif %}
{%- for m in messages %}
<|{{ m.role }}|>{{ ('%-10s' % m.role)|upper }}{{ m.content if m.content is string else (m.tool_calls|map(attribute='function')|map(attribute='arguments')|list) }}
{%- endfor %}
{%- if add_generation_prompt %}
<|assistant|>
{%- endif %}""",
}
ALL = {**SMALL, **LARGE, **{f"whole {name}": source for name, source in WHOLE.items()}}
TALKS: dict[str, dict[str, Any]] = {
    "one turn": {"messages": [USER]},
    "system and two turns": {"messages": [SYSTEM, USER, ANSWER, USER]},
    "tools": {"messages": [SYSTEM, *TOOL_TALK, ANSWER, USER], "tools": [TOOL]},
}
