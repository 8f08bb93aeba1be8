"""Chat templates with the constructs of published ones, abridged: those that read content of several parts.

Each writes the turns, default system messages, tools and refusals that its namesake does.
"""

# ruff: noqa: E501 - templates stand as they are written in the field
from __future__ import annotations

GEMMA3 = r"""{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- if messages[0]['content'] is string -%}
        {%- set prefix = messages[0]['content'] + '\n\n' -%}
    {%- else -%}
        {%- set prefix = messages[0]['content'][0]['text'] + '\n\n' -%}
    {%- endif -%}
    {%- set rest = messages[1:] -%}
{%- else -%}
    {%- set prefix = "" -%}{%- set rest = messages -%}
{%- endif -%}
{%- for message in rest -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}{{ raise_exception("Roles must alternate") }}{%- endif -%}
    {%- set role = "model" if message['role'] == 'assistant' else message['role'] -%}
    {{ '<start_of_turn>' + role + '\n' + (prefix if loop.first else "") }}
    {%- if message['content'] is string -%}
        {{ message['content'] | trim }}
    {%- elif message['content'] is iterable -%}
        {%- for item in message['content'] -%}
            {%- if item['type'] == 'image' -%}{{ '<start_of_image>' }}{%- elif item['type'] == 'text' -%}{{ item['text'] | trim }}{%- endif -%}
        {%- endfor -%}
    {%- else -%}{{ raise_exception("Invalid content type") }}{%- endif -%}
    {{ '<end_of_turn>\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<start_of_turn>model\n' }}{%- endif -%}"""
GEMMA4 = r"""{%- macro argument(value, quoted=True) -%}
    {%- if value is string -%}{{ '<|"|>' + value + '<|"|>' if quoted else value }}
    {%- elif value is boolean -%}{{ 'true' if value else 'false' }}
    {%- elif value is mapping -%}{{ '{' }}{%- set ns = namespace(first=true) -%}
        {%- for key, one in value | dictsort -%}{%- if not ns.first %},{% endif -%}{%- set ns.first = false -%}{{ key }}:{{ argument(one) }}{%- endfor -%}{{ '}' }}
    {%- elif value is sequence -%}{{ '[' }}{%- for one in value -%}{{ argument(one) }}{%- if not loop.last %},{% endif -%}{%- endfor -%}{{ ']' }}
    {%- else -%}{{ value }}{%- endif -%}
{%- endmacro -%}
{%- macro without_thought(text) -%}
    {%- set ns = namespace(result='') -%}
    {%- for part in text.split('<channel|>') -%}{%- set ns.result = ns.result + (part.split('<|channel>')[0] if '<|channel>' in part else part) -%}{%- endfor -%}
    {{- ns.result | trim -}}
{%- endmacro -%}
{%- set rest = messages -%}
{{ bos_token }}
{%- if (enable_thinking is defined and enable_thinking) or tools or messages[0]['role'] in ['system', 'developer'] -%}
    {{ '<|turn>system\n' }}
    {%- if enable_thinking is defined and enable_thinking -%}{{ '<|think|>' }}{%- endif -%}
    {%- if messages[0]['role'] in ['system', 'developer'] -%}{{ messages[0]['content'] | trim }}{%- set rest = messages[1:] -%}{%- endif -%}
    {%- for tool in tools or [] -%}{{ '<|tool>declaration:' + tool['function']['name'] + argument(tool['function']['parameters']) + '<tool|>' }}{%- endfor -%}
    {{ '<turn|>\n' }}
{%- endif -%}
{%- for message in rest -%}
    {%- set role = 'model' if message['role'] == 'assistant' else message['role'] -%}
    {{ '<|turn>' + role + '\n' }}
    {%- for call in message.get('tool_calls') or [] -%}{{ '<|tool_call>call:' + call['function']['name'] + argument(call['function']['arguments']) + '<tool_call|>' }}{%- endfor -%}
    {%- if message['content'] is string -%}{{ without_thought(message['content']) if role == 'model' else message['content'] | trim }}
    {%- elif message['content'] is sequence -%}{%- for item in message['content'] -%}{%- if item['type'] == 'text' -%}{{ item['text'] | trim }}{%- elif item['type'] == 'image' -%}{{ '\n\n<|image|>\n\n' }}{%- endif -%}{%- endfor -%}{%- endif -%}
    {{ '<turn|>\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|turn>model\n' }}{%- endif -%}"""
MISTRAL_SMALL = r"""{%- set today = strftime_now("%Y-%m-%d") %}
{%- set default_system_message = "You are a model.\nToday is " + today + ", and yesterday is over." %}
{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}
    {%- if messages[0]['content'] is string %}{%- set system_message = messages[0]['content'] %}{%- else %}{%- set system_message = messages[0]['content'][0]['text'] %}{%- endif %}
    {%- set rest = messages[1:] %}
{%- else %}
    {%- set system_message = default_system_message %}{%- set rest = messages %}
{%- endif %}
{{- '[SYSTEM_PROMPT]' + system_message + '[/SYSTEM_PROMPT]' }}
{%- for message in rest %}
    {%- if message['role'] == 'user' %}
        {%- if message['content'] is string %}{{- '[INST]' + message['content'] + '[/INST]' }}
        {%- else %}{{- '[INST]' }}
            {%- for block in message['content'] %}
                {%- if block['type'] == 'text' %}{{- block['text'] }}{%- elif block['type'] in ['image', 'image_url'] %}{{- '[IMG]' }}{%- else %}{{- raise_exception('Only text and image blocks are supported!') }}{%- endif %}
            {%- endfor %}{{- '[/INST]' }}
        {%- endif %}
    {%- elif message['role'] == 'system' %}{{- '[SYSTEM_PROMPT]' + message['content'] + '[/SYSTEM_PROMPT]' }}
    {%- elif message['role'] == 'assistant' %}{{- message['content'] + eos_token }}
    {%- else %}{{- raise_exception('Only user, system and assistant roles are supported!') }}{%- endif %}
{%- endfor %}"""
MINISTRAL3 = r"""{#- Default system message if none is given. #}
{%- set default_system_message = 'First draft your thinking.' %}
{{- bos_token }}
{%- if messages[0]['role'] != 'system' and default_system_message != '' %}
    {{- '[SYSTEM_PROMPT]' + default_system_message + '[/SYSTEM_PROMPT]' }}
{%- endif %}
{%- if tools is defined and tools is not none and tools|length > 0 %}{{- '[AVAILABLE_TOOLS]' + (tools | tojson) + '[/AVAILABLE_TOOLS]' }}{%- endif %}
{%- set ns = namespace(index=0) %}
{%- for message in messages %}
    {%- if message.role == 'user' or (message.role == 'assistant' and (message.tool_calls is not defined or message.tool_calls is none or message.tool_calls | length == 0)) %}
        {%- if (message['role'] == 'user') != (ns.index % 2 == 0) %}{{- raise_exception('After the optional system message, roles must alternate.') }}{%- endif %}
        {%- set ns.index = ns.index + 1 %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message['role'] in ['user', 'system'] %}
        {%- set open, close = ('[INST]', '[/INST]') if message['role'] == 'user' else ('[SYSTEM_PROMPT]', '[/SYSTEM_PROMPT]') %}
        {{- open }}
        {%- if message['content'] is string %}{{- message['content'] }}
        {%- elif message['content'] | length > 0 %}
            {%- set blocks = message['content'] | sort(attribute='type') if message['content'] | length == 2 else message['content'] %}
            {%- for block in blocks %}{%- if block['type'] == 'text' %}{{- block['text'] }}{%- elif block['type'] == 'image' %}{{- '[IMG]' }}{%- else %}{{- raise_exception('unknown block ' + block['type'] | tojson) }}{%- endif %}{%- endfor %}
        {%- else %}{{- raise_exception('content must be a string or a non-empty list') }}{%- endif %}
        {{- close }}
    {%- elif message['role'] == 'assistant' %}
        {%- if message['content'] is string %}{{- message['content'] }}{%- endif %}
        {%- for tool in message['tool_calls'] or [] %}
            {%- set arguments = tool['function']['arguments'] %}
            {%- if arguments is not string %}{%- set arguments = arguments|tojson|safe %}{%- elif arguments == '' %}{%- set arguments = '{}' %}{%- endif %}
            {{- '[TOOL_CALLS]' + tool['function']['name'] + '[ARGS]' + arguments }}
        {%- endfor %}
        {{- eos_token }}
    {%- elif message['role'] == 'tool' %}{{- '[TOOL_RESULTS]' + message['content']|string + '[/TOOL_RESULTS]' }}
    {%- else %}{{- raise_exception('unknown role ' + message['role'] | tojson) }}{%- endif %}
{%- endfor %}"""
APERTUS = r"""{%- macro typescript(spec, required, nullable=false) -%}
    {%- if spec.type == "array" -%}{{ typescript(spec['items'], required) if spec['items'] else "any" }}{{ "[]" }}
    {%- elif spec.type is defined and spec.type is iterable and spec.type is not string and spec.type is not mapping and spec.type[0] is defined -%}{{ spec.type | join(" | ") if spec.type | length > 1 else spec.type[0] }}
    {%- elif spec.enum -%}{{ '"' + spec.enum|join('" | "') + '"' }}
    {%- elif spec.type in ("number", "integer") -%}{{ "number" }}{%- elif spec.type == "string" -%}{{ "string" }}{%- else -%}{{ "any" }}{%- endif -%}
    {%- if nullable %}{{ " | null" }}{% endif -%}
{%- endmacro -%}
{%- macro listed(tools) -%}
    {%- for tool in tools -%}{%- set tool = tool.function -%}
        {{- "// " + tool.description + "\ntype " + tool.name + " = " -}}
        {%- if tool.parameters and tool.parameters.properties %}{{- "(_: {\n" -}}{%- for name, spec in tool.parameters.properties.items() %}{{- name -}}{%- if name not in (tool.parameters.required or []) -%}{{- "?" -}}{%- endif -%}{{- ": " + typescript(spec, []) -}}{%- if not loop.last %}{{ ",\n" }}{%- else %}{{ "\n" }}{%- endif -%}{%- endfor -%}{{- "}) => any;" -}}{%- else %}{{- "() => any;" -}}{%- endif -%}
        {%- if not loop.last -%}{{- "\n" -}}{%- endif -%}
    {%- endfor -%}
{%- endmacro -%}
{{ bos_token }}
{%- set ns = namespace(in_assistant=false, in_tool=false, open_bracket=false, format=none) -%}
{%- set system_token, end_system_token = '<|system_start|>', '<|system_end|>' -%}
{%- if messages and messages[0].role == 'system' -%}
    {%- if "content" in messages[0] -%}
        {%- if messages[0].content is string -%}{{ system_token + messages[0].content + end_system_token }}
        {%- elif messages[0].content is mapping and "text" in messages[0].content -%}{{ system_token + messages[0].content.text + end_system_token }}
        {%- else -%}{{- raise_exception("Invalid system message") -}}{%- endif -%}
    {%- else -%}{{- raise_exception("Invalid system message") -}}{%- endif -%}
    {%- set loop_messages = messages[1:] -%}
{%- else -%}
    {{ system_token + 'You are a model.\nKnowledge cutoff: 2024-04\nCurrent date: ' + strftime_now('%Y-%m-%d') + end_system_token }}
    {%- set loop_messages = messages -%}
{%- endif -%}
{{ '<|developer_start|>Deliberation: ' }}{{ 'enabled\n' if enable_thinking is defined and enable_thinking else 'disabled\n' }}
{%- if tools is defined and tools -%}{{ 'Tool Capabilities:\n' + listed(tools) }}{%- else -%}{{ 'Tool Capabilities: disabled' }}{%- endif -%}{{ '<|developer_end|>' }}
{%- for message in loop_messages -%}
    {%- if message.role == 'user' -%}
        {%- set ns.in_assistant = false -%}{{ '<|user_start|>' }}
        {%- if message.content is string -%}{{ message.content }}
        {%- elif message.content is mapping and "parts" in message.content -%}{%- for part in message.content.parts -%}{%- if part.type == "text" -%}{{ part.text }}{%- endif -%}{%- endfor -%}
        {%- else -%}{{- raise_exception("Invalid user message") -}}{%- endif -%}{{ '<|user_end|>' }}
    {%- elif message.role == 'assistant' -%}
        {%- if not ns.in_assistant -%}{{ '<|assistant_start|>' }}{%- set ns.in_assistant = true -%}{%- endif -%}
        {%- if message.content is string and message.content -%}{{ message.content }}{%- endif -%}
        {%- if message.tool_calls -%}{{ '<|tools_prefix|>[' }}{%- for call in message.tool_calls -%}{{ '{"' + call.function.name + '": ' + (call.function.arguments if call.function.arguments is string else call.function.arguments|tojson) + '}' }}{%- if not loop.last -%}{{ ", " }}{%- endif -%}{%- endfor -%}{{ ']<|tools_suffix|>' }}{%- set ns.open_bracket = true -%}
        {%- else -%}{{ '<|assistant_end|>' }}{%- set ns.in_assistant = false -%}{%- endif -%}
    {%- elif message.role == 'tool' -%}{%- if not ns.in_assistant -%}{{- raise_exception("Tool message outside of assistant") -}}{%- endif -%}{{ '[' + message.content + ']' }}
    {%- else -%}{{- raise_exception("Invalid message role") -}}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt and not ns.in_assistant -%}{{ '<|assistant_start|>' }}{%- endif -%}"""
QWEN2_VL = "{% set image_count = namespace(value=0) %}{% set video_count = namespace(value=0) %}{% for message in messages %}{% if loop.first and message['role'] != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}<|im_start|>{{ message['role'] }}\n{% if message['content'] is string %}{{ message['content'] }}<|im_end|>\n{% else %}{% for content in message['content'] %}{% if content['type'] == 'image' or 'image' in content or 'image_url' in content %}{% set image_count.value = image_count.value + 1 %}{% if add_vision_id %}Picture {{ image_count.value }}: {% endif %}<|vision_start|><|image_pad|><|vision_end|>{% elif 'text' in content %}{{ content['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
QWEN3_VL = r"""{%- set image_count = namespace(value=0) %}
{%- macro render_content(content, do_vision_count) %}
    {%- if content is string %}{{- content }}
    {%- else %}{%- for item in content %}
        {%- if 'image' in item or 'image_url' in item or item.type == 'image' %}{%- if do_vision_count %}{%- set image_count.value = image_count.value + 1 %}{%- endif %}{%- if add_vision_id %}Picture {{ image_count.value }}: {% endif -%}<|vision_start|><|image_pad|><|vision_end|>
        {%- elif 'text' in item %}{{- item.text }}{%- endif %}
    {%- endfor %}{%- endif %}
{%- endmacro %}
{%- if tools %}{{- '<|im_start|>system\n' }}{%- if messages[0].role == 'system' %}{{- render_content(messages[0].content, false) + '\n\n' }}{%- endif %}{{- "# Tools\n<tools>" }}{%- for tool in tools %}{{- "\n" }}{{- tool | tojson }}{%- endfor %}{{- "\n</tools><|im_end|>\n" }}
{%- elif messages[0].role == 'system' %}{{- '<|im_start|>system\n' + render_content(messages[0].content, false) + '<|im_end|>\n' }}{%- endif %}
{%- for message in messages %}
    {%- set content = render_content(message.content, True) %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}{{- '<|im_start|>' + message.role + '\n' + content + '<|im_end|>' + '\n' }}
    {%- elif message.role == "assistant" %}{{- '<|im_start|>' + message.role + '\n' + content + '<|im_end|>\n' }}
    {%- elif message.role == "tool" %}{{- '<|im_start|>user\n<tool_response>\n' + content + '\n</tool_response><|im_end|>\n' }}{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"""
LLAVA = "{% for message in messages %}{% if message['role'] == 'system' %}{{ message['content'][0]['text'] }}{% else %}{{ message['role'].upper() + ': ' }}{% endif %}{# images first #}{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}{# then all text #}{% if message['role'] == 'user' %}{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ content['text'] + ' ' }}{% endfor %}{% elif message['role'] == 'assistant' %}{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{% generation %}{{ content['text'] + eos_token }}{% endgeneration %}{% endfor %}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
INTERNVL = "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n'}}{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for content in message['content'] %}{% if content['type'] == 'image' %}{{ '<IMG_CONTEXT>\n' }}{% elif content['type'] == 'video' %}{{ '<video>\n' }}{% elif content['type'] == 'text' %}{{ content['text'] }}{% endif %}{% endfor %}{% endif %}{{'<|im_end|>\n'}}{% endfor %}{% if add_generation_prompt %}{{'<|im_start|>assistant\n' }}{% endif %}"
LLAMA4 = r"""{{- bos_token }}
{%- if custom_tools is defined %}{%- set tools = custom_tools %}{%- endif %}
{%- if not tools_in_user_message is defined %}{%- set tools_in_user_message = true %}{%- endif %}
{%- if not tools is defined %}{%- set tools = none %}{%- endif %}
{%- macro listed() %}{%- for tool in tools %}{{- tool | tojson(indent=4) }}{{- "\n\n" }}{%- endfor %}{%- endmacro %}
{%- if messages[0]['role'] == 'system' %}
    {%- if messages[0]['content'] is string %}{%- set system_message = messages[0]['content'] | trim %}
    {%- else %}{%- set system_message = messages[0]['content'][0]['text'] | trim %}{%- endif %}
    {%- set messages = messages[1:] %}{%- set given = true %}
{%- else %}{%- set given = false %}{%- endif %}
{%- if given %}
    {{- "<|header_start|>system<|header_end|>\n\n" }}
    {%- if tools is not none %}{{- "Environment: ipython\n" }}{%- endif %}
    {%- if tools is not none and not tools_in_user_message %}{{- "Respond with JSON for a function call.\n\n" + listed() }}{%- endif %}
    {{- system_message }}{{- "<|eot|>" }}
{%- endif %}
{%- if tools_in_user_message and not tools is none %}
    {%- if messages | length != 0 %}{%- set first = messages[0]['content'] | trim %}{%- set messages = messages[1:] %}
    {%- else %}{{- raise_exception("Cannot put tools in the first user message when there is none!") }}{%- endif %}
    {{- '<|header_start|>user<|header_end|>\n\n' -}}{{- "Given these functions, respond with JSON for a function call.\n\n" + listed() }}{{- first + "<|eot|>" }}
{%- endif %}
{%- macro content_of(message) %}
    {%- if message['content'] is string %}{{- message['content'] }}
    {%- else %}{%- for part in message['content'] %}{%- if part['type'] == 'image' %}{{- '<|image|>' }}{%- elif part['type'] == 'text' %}{{- part['text'] }}{%- endif %}{%- endfor %}{%- endif %}
{%- endmacro %}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|header_start|>' + message['role'] + '<|header_end|>\n\n' + content_of(message) + "<|eot|>" }}
    {%- elif 'tool_calls' in message and message.tool_calls | length > 0 %}
        {{- '<|header_start|>assistant<|header_end|>\n\n<|python_start|>' + content_of(message) + '<|python_end|>' }}
        {%- for call in message.tool_calls %}{{- '{"name": "' + call.function.name + '", "parameters": ' }}{{- call.function.arguments | tojson }}{{- "}" }}{%- endfor %}
        {{- "<|eot|>" }}
    {%- elif message.role == "tool" or message.role == "ipython" %}
        {{- "<|header_start|>ipython<|header_end|>\n\n" }}{%- if message.content is mapping or message.content is iterable %}{{- message.content | tojson }}{%- else %}{{- message.content }}{%- endif %}{{- "<|eot|>" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|header_start|>assistant<|header_end|>\n\n' }}{%- endif %}"""
