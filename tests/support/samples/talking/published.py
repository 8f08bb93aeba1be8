"""Chat templates with the constructs of published ones, abridged: those for which content is text.

Each writes the turns, default system messages, tools and refusals that its namesake does.
"""

# ruff: noqa: E501, RUF001 - templates stand as they are written in the field
from __future__ import annotations

GEMMA = r"""{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Roles must alternate') }}{% endif %}{% if (message['role'] == 'assistant') %}{% set role = 'model' %}{% else %}{% set role = message['role'] %}{% endif %}{{ '<start_of_turn>' + role + '
' + message['content'] | trim + '<end_of_turn>
' }}{% endfor %}{% if add_generation_prompt %}{{'<start_of_turn>model
'}}{% endif %}"""
PHI3 = "{% for message in messages %}{% if message['role'] == 'system' %}{{'<|system|>\n' + message['content'] + '<|end|>\n'}}{% elif message['role'] == 'user' %}{{'<|user|>\n' + message['content'] + '<|end|>\n'}}{% elif message['role'] == 'assistant' %}{{'<|assistant|>\n' + message['content'] + '<|end|>\n'}}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
PHI4 = "{% for message in messages %}{% if (message['role'] == 'system') %}{{'<|im_start|>system<|im_sep|>' + message['content'] + '<|im_end|>'}}{% elif (message['role'] == 'user') %}{{'<|im_start|>user<|im_sep|>' + message['content'] + '<|im_end|>'}}{% elif (message['role'] == 'assistant') %}{{'<|im_start|>assistant<|im_sep|>' + message['content'] + '<|im_end|>'}}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant<|im_sep|>' }}{% endif %}"
SMOLLM3 = r"""{%- if enable_thinking is not defined -%}{%- set enable_thinking = true -%}{%- endif -%}
{%- set mode = "/think" if enable_thinking else "/no_think" -%}
{%- set own = '' -%}
{%- if messages[0].role == "system" -%}
  {%- set system_message = messages[0].content -%}
  {%- if "/no_think" in system_message -%}{%- set mode = "/no_think" -%}{%- elif "/think" in system_message -%}{%- set mode = "/think" -%}{%- endif -%}
  {%- set own = system_message.replace("/no_think", "").replace("/think", "").rstrip() -%}
{%- endif -%}
{{- "<|im_start|>system\n" -}}
{%- if "/system_override" in own -%}{{- own.replace("/system_override", "").rstrip() -}}
{%- else -%}
  {{- "## Metadata\n\nToday Date: " -}}{%- set today = strftime_now("%d %B %Y") -%}{{- today ~ "\nReasoning Mode: " + mode + "\n\n" -}}
  {{- "## Custom Instructions\n\n" + (own if own else "You are a model.") + "\n\n" -}}
  {%- if xml_tools or tools -%}
    {{- "### Tools\n\n<tools>" -}}
    {%- for tool in (xml_tools or tools) -%}{{- "\n" ~ (tool | string) -}}{%- endfor -%}
    {{- "\n</tools>" -}}
  {%- endif -%}
{%- endif -%}
{{- "<|im_end|>\n" -}}
{%- for message in messages -%}
  {%- set content = message.content if message.content is string else "" -%}
  {%- if message.role == "user" -%}{{ "<|im_start|>" + message.role + "\n" + content + "<|im_end|>\n" }}
  {%- elif message.role == "assistant" -%}
    {% generation %}
    {%- if mode == "/think" -%}{{ "<|im_start|>assistant\n" + content.lstrip("\n") + "<|im_end|>\n" }}{%- else -%}{{ "<|im_start|>assistant\n" + "<think>\n\n</think>\n" + content.lstrip("\n") + "<|im_end|>\n" }}{%- endif -%}
    {% endgeneration %}
  {%- elif message.role == "tool" -%}{{ "<|im_start|>" + "user\n" + content + "<|im_end|>\n" }}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ "<|im_start|>assistant\n" + ("" if mode == "/think" else "<think>\n\n</think>\n") }}{%- endif -%}"""
OLMO2 = "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'system' %}{{ '<|system|>\n' + message['content'] + '\n' }}{% elif message['role'] == 'user' %}{{ '<|user|>\n' + message['content'] + '\n' }}{% elif message['role'] == 'assistant' %}{% if not loop.last %}{{ '<|assistant|>\n'  + message['content'] + eos_token + '\n' }}{% else %}{{ '<|assistant|>\n'  + message['content'] + eos_token }}{% endif %}{% endif %}{% if loop.last and add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}{% endfor %}"
OLMO3 = r"""{%- set has_system = messages|selectattr('role', 'equalto', 'system')|list|length > 0 -%}
{%- if not has_system -%}{{- '<|im_start|>system\nYou are a model. ' -}}{%- if tools is none -%}{{- 'You have no functions. <functions></functions>' -}}{%- else -%}{{- '<functions>' -}}{{- tools | tojson -}}{{- '</functions>' -}}{%- endif -%}{{- '<|im_end|>\n' -}}{%- endif -%}
{%- for message in messages -%}
  {%- if message['role'] == 'system' -%}{{- '<|im_start|>system\n' + message['content'] -}}{%- if tools is not none -%}{{- '<functions>' -}}{{- tools | tojson -}}{{- '</functions>' -}}{%- elif message.get('functions', none) is not none -%}{{- ' <functions>' + message['functions'] + '</functions>' -}}{%- endif -%}{{- '<|im_end|>\n' -}}
  {%- elif message['role'] == 'user' -%}{{- '<|im_start|>user\n' + message['content'] + '<|im_end|>\n' -}}
  {%- elif message['role'] == 'assistant' -%}
    {{- '<|im_start|>assistant\n' -}}
    {%- if message.get('content', none) is not none -%}{{- message['content'] -}}{%- endif -%}
    {%- if message.get('tool_calls', none) is not none -%}{{- '<function_calls>' -}}{%- for call in message['tool_calls'] -%}{{- call['function']['name'] + '(' -}}{%- for name, value in call['function']['arguments'].items() -%}{{- name + '=' + (value | tojson) + ('' if loop.last else ', ') -}}{%- endfor -%}{{- ')' -}}{%- endfor -%}{{- '</function_calls>' -}}{%- endif -%}
    {{- '<|im_end|>' + ('' if loop.last else '\n') -}}
  {%- elif message['role'] in ['environment', 'tool'] -%}{{- '<|im_start|>environment\n' + message['content'] + '<|im_end|>\n' -}}{%- endif -%}
  {%- if loop.last and add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}
{%- endfor -%}"""
EXAONE4 = r"""{%- if not skip_think is defined %}{%- set skip_think = true %}{%- endif %}
{%- set roles = {'user': '[|user|]\n', 'assistant': '[|assistant|]\n', 'system': '[|system|]\n', 'tool': '[|tool|]\n'} %}
{%- set end = '[|endofturn|]\n' %}
{%- macro available(tools) %}{{- "# Tools" }}{%- for tool in tools %}{{- "\n- " ~ tool.function.name ~ ": " ~ (tool | tojson(ensure_ascii=False)) }}{%- endfor %}{%- endmacro %}
{%- set ns = namespace(last=messages|length - 1) %}
{%- for message in messages %}{%- if message.role == "user" and message.content is string %}{%- set ns.last = loop.index0 -%}{%- endif %}{%- endfor %}
{%- for i in range(messages | length) %}
    {%- set msg = messages[i] %}
    {%- if msg.role not in roles %}{{- raise_exception('Unknown role: ' ~ msg.role) }}{%- endif %}
    {%- if i == 0 %}{%- if msg.role == 'system' %}{{- roles['system'] }}{{- msg.content }}{%- if tools is defined and tools %}{{- "\n\n" }}{{- available(tools) }}{%- endif %}{{- end -}}{%- continue %}{%- elif tools is defined and tools %}{{- roles['system'] }}{{- available(tools) }}{{- end -}}{%- endif %}{%- endif %}
    {%- if msg.role == 'assistant' %}
        {{- roles['assistant'] }}
        {%- if msg.content %}{%- set content = msg.content.split('</think>')[-1].strip() if "</think>" in msg.content else msg.content %}{%- if i < ns.last %}{{- content }}{%- else %}{{- msg.content }}{%- endif %}{%- endif %}
        {%- for call in msg.tool_calls or [] %}{{- '\n<tool_call>' ~ {"name": call.function.name, "arguments": call.function.arguments} | tojson ~ '</tool_call>' }}{%- endfor %}
        {{- end -}}
    {%- elif msg.role == "tool" %}{%- if i == 0 or messages[i - 1].role != "tool" %}{{- roles['tool'] }}{%- endif %}{{- '<tool_result>' ~ (msg.content | tojson if msg.content is not string else msg.content) ~ '</tool_result>' }}{%- if i == messages|length - 1 or messages[i + 1].role != "tool" %}{{- end -}}{%- else %}{{- "\n" }}{%- endif %}
    {%- else %}{{- roles[msg.role] }}{{- msg.content }}{{- end -}}{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- roles['assistant'] }}{%- if enable_thinking is defined and enable_thinking is true %}{{- '<think>\n' }}{%- else %}{{- '<think>\n\n</think>\n\n' }}{%- endif %}{%- endif %}"""
HUNYUAN = "{% set context = {'has_head': true} %}{% set ns = namespace(system='', first=true) %}{% for message in messages %}{% if message['role'] == 'system' %}{% set ns.system = ns.system + message['content'] %}{% endif %}{% endfor %}<｜hy_begin▁of▁sentence｜>{{ ns.system }}{% if ns.system %}<｜hy_place▁holder▁no▁3｜>{% endif %}{% for message in messages %}{% if message['role'] == 'user' %}<｜hy_User｜>{{ message['content'] }}{% elif message['role'] == 'assistant' %}{% set content = message['content'] %}{% if '</answer>' in content %}{% set content = content.split('<answer>')[-1].split('</answer>')[0] %}{% endif %}<｜hy_Assistant｜>{{ content }}<｜hy_place▁holder▁no▁2｜>{% endif %}{% endfor %}{% if add_generation_prompt %}<｜hy_Assistant｜>{% if enable_thinking is defined and not enable_thinking %}{{ '<think>\n\n</think>\n' }}{% endif %}{% endif %}"
SEED_OSS = (
    r"""{%- set bos_token = "<seed:bos>" %}
{%- set eos_token = "<seed:eos>" %}
{%- set budget_tokens = {0: 0, 512: 128, 1024: 256} %}
{%- if thinking_budget is defined %}{%- for tier in budget_tokens.keys() | sort %}{%- if ns is not defined %}{%- set ns = namespace(interval=none) %}{%- endif %}{%- if ns.interval is none and thinking_budget <= tier %}{%- set ns.interval = budget_tokens[tier] %}{%- endif %}{%- endfor %}{%- endif %}
{%- macro py_type(t) -%}{%- if t == "string" -%}str{%- elif t in ("number", "integer") -%}int{%- elif t == "boolean" -%}bool{%- elif t == "array" -%}list{%- else -%}Any{%- endif -%}{%- endmacro -%}
{%- if messages[0]["role"] == "system" %}{%- set system_message = messages[0]["content"] %}{%- set loop_messages = messages[1:] %}{%- else %}{%- set loop_messages = messages %}{%- endif %}
{%- if system_message is defined %}{{ bos_token + "system\n" + system_message }}{%- elif tools is iterable and tools | length > 0 %}{{ bos_token + "system\nYou have tools." }}{%- endif %}
{%- if tools is iterable and tools | length > 0 %}
    {%- for item in tools %}{%- if item.type == "function" %}{%- set tool = item.function %}
def {{ tool.name }}({{ '' }}{%- for name, p in tool.parameters.properties.items() %}{%- if not loop.first %}, {% endif %}{{ name }}: {{ py_type(p.type) }}{%- if name not in tool.parameters.required %} = None{%- endif %}{%- endfor %}):
    """
    + '"""'
    + r"""{{ tool.description | trim }}"""
    + '"""'
    + r"""
    {%- endif %}{%- endfor %}
{%- endif %}
{%- if system_message is defined or tools is iterable and tools | length > 0 %}{{ eos_token }}{%- endif %}
{%- for message in loop_messages %}
    {%- if message.role == "assistant" and message.tool_calls is defined and message.tool_calls is iterable and message.tool_calls | length > 0 %}
        {{- bos_token + message.role }}
        {%- for call in message.tool_calls %}{{ "\n<seed:tool_call>\n<function=" + call.function.name + ">\n" }}{%- for name, value in call.function.arguments | items %}{{ "<parameter=" + name + ">" }}{{ value if value is string else value | string }}{{ "</parameter>\n" }}{%- endfor %}{{ "</function>\n</seed:tool_call>" }}{%- endfor %}{{ eos_token }}
    {%- elif message.role in ["user", "system"] %}{{ bos_token + message.role + "\n" + message.content + eos_token }}
    {%- elif message.role == "assistant" %}{{ bos_token + message.role + "\n" + (message.content | trim if message.content is string else "") + eos_token }}
    {%- else %}{{ bos_token + message.role + "\n" + message.content + eos_token }}{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ bos_token + "assistant\n" }}{%- if thinking_budget == 0 %}{{ "<seed:think><seed:cot_budget_reflect>none</seed:cot_budget_reflect></seed:think>" }}{%- endif %}{%- endif %}"""
)
ERNIE45 = r"""{%- if not add_generation_prompt is defined -%}{%- set add_generation_prompt = true -%}{%- endif -%}
{%- if not cls_token is defined -%}{%- set cls_token = "<|begin_of_sentence|>" -%}{%- endif -%}
{%- if not eos_token is defined -%}{%- set eos_token = "</s>" -%}{%- endif -%}
{{- cls_token -}}
{%- for message in messages -%}
    {%- if message["role"] == "user" -%}{{- "User: " + message["content"] + "\n" -}}
    {%- elif message["role"] == "assistant" -%}{{- "Assistant: " + message["content"] + eos_token -}}
    {%- elif message["role"] == "system" -%}{{- message["content"] + "\n" -}}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- "Assistant: " -}}{%- endif -%}"""
GLM4 = r"""[gMASK]<sop>
{%- if tools -%}
<|system|>
# 可用工具
{% for tool in tools %}{%- set function = tool.function if tool.get("function") else tool %}
## {{ function.name }}

{{ function | tojson(indent=4, ensure_ascii=False) }}
在调用上述函数时，请使用 Json 格式表示调用的参数。
{%- endfor %}
{%- endif -%}
{%- for msg in messages %}
    {%- if msg.role == 'system' %}
<|system|>
{{ msg.content }}
    {%- endif %}
{%- endfor %}
{%- for message in messages if message.role != 'system' %}
    {%- set role, content, meta = message['role'], message['content'], message.get("metadata", "") %}
    {%- if role == 'user' %}
<|user|>
{{ content }}
    {%- elif role == 'assistant' and not meta %}
<|assistant|>
{{ content }}
    {%- elif role == 'assistant' and meta %}
<|assistant|>{{ meta }}
{{ content }}
    {%- elif role in ['observation', 'tool'] %}
<|observation|>
{{ content }}
    {%- endif %}
{%- endfor %}
{% if add_generation_prompt %}<|assistant|>{% endif %}"""
GRANITE = r"""{%- if messages[0]['role'] == 'system' %}{%- set system_message = messages[0]['content'] %}{%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set system_message = "Cutoff: April 2024.\nToday's Date: " + strftime_now('%B %d, %Y') + ".\nYou are a model." %}
    {%- if tools and documents %}{%- set system_message = system_message + " Tools and documents." %}{%- elif tools %}{%- set system_message = system_message + " Tools." %}{%- elif documents %}{%- set system_message = system_message + " Documents." %}{%- endif %}
    {%- if 'citations' in controls and documents %}{%- set system_message = system_message + ' Cite.' %}{%- endif %}
    {%- set loop_messages = messages %}
{%- endif %}
{{- '<|start_of_role|>system<|end_of_role|>' + system_message + '<|end_of_text|>\n' }}
{%- if tools %}{{- '<|start_of_role|>tools<|end_of_role|>' }}{{- tools | tojson(indent=4) }}{{- '<|end_of_text|>\n' }}{%- endif %}
{%- if documents %}{{- '<|start_of_role|>documents<|end_of_role|>' }}{%- for document in documents %}{{- 'Document ' + loop.index0 | string + '\n' }}{{- document['text'] }}{%- if not loop.last %}{{- '\n\n'}}{%- endif%}{%- endfor %}{{- '<|end_of_text|>\n' }}{%- endif %}
{%- for message in loop_messages %}
    {{- '<|start_of_role|>' + message['role'] + '<|end_of_role|>' + message['content'] + '<|end_of_text|>\n' }}
    {%- if loop.last and add_generation_prompt %}{{- '<|start_of_role|>assistant' }}{%- if controls %}{{- ' ' + controls | tojson()}}{%- endif %}{{- '<|end_of_role|>' }}{%- endif %}
{%- endfor %}"""
COHERE2 = r"""{%- macro document_turn(documents) -%}
<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|><|START_ACTION|>[{"tool_call_id": "0", "tool_name": "direct-injected-document", "parameters": {}}]<|END_ACTION|><|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|><|START_TOOL_RESULT|>[{"tool_call_id": "0", "results": {
{% for doc in documents %}    "{{ loop.index0 }}": {{ doc | tojson }}{% if not loop.last %},
    {% endif %}{% endfor %}
}}]<|END_TOOL_RESULT|><|END_OF_TURN_TOKEN|>{%- endmacro %}
{%- macro tool_call_id_to_int(messages, tool_call_id) %}
{%- set counter = namespace(value=0) %}{%- set seen = namespace(value=false) %}
{%- for msg in messages %}{%- if msg.tool_calls %}{%- for call in msg.tool_calls %}{%- if call.id == tool_call_id and not seen.value %}{{ counter.value }}{%- set seen.value = true %}{%- endif %}{%- set counter.value = counter.value + 1 %}{%- endfor %}{%- endif %}{%- endfor %}
{%- endmacro %}
{{ bos_token }}
{%- if messages[0]['role'] | lower == 'system' %}{% set developer_preamble = messages[0]['content'] %}{%- endif %}
{%- set tool_idx = namespace(value=0) %}{%- set sent_documents = namespace(value=false) -%}
<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|># System Preamble
{% if safety_mode is undefined or safety_mode == 'CONTEXTUAL' -%}
You are in contextual safety mode.
{% elif safety_mode == 'STRICT' -%}
You are in strict safety mode.
{% endif -%}
{% if tools or documents -%}
{%- if tools %}You have tools: {{ tools | map(attribute='function') | list | tojson }}{% endif %}
{% endif -%}
{%- if developer_preamble %}# Developer Preamble
{{ developer_preamble }}
{%- endif -%}<|END_OF_TURN_TOKEN|>
{%- for message in messages %}
    {%- if message.role|lower == 'system' and not (loop.first and developer_preamble) -%}<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>{{ message.content }}<|END_OF_TURN_TOKEN|>
    {%- elif message.role|lower == 'user' -%}<|START_OF_TURN_TOKEN|><|USER_TOKEN|>{{ message.content }}<|END_OF_TURN_TOKEN|>{%- if documents and not sent_documents.value %}{%- set sent_documents.value = true %}{{ document_turn(documents) }}{%- endif -%}
    {%- elif message.role|lower in ['assistant', 'chatbot'] -%}<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>{%- if message.tool_calls %}<|START_ACTION|>[{% for call in message.tool_calls %}{"tool_call_id": "{{ tool_idx.value }}", "tool_name": "{{ call['function']['name'] }}", "parameters": {{ call['function']['arguments'] | tojson }}}{% if not loop.last %}, {% endif %}{% set tool_idx.value = tool_idx.value + 1 %}{% endfor %}]<|END_ACTION|><|END_OF_TURN_TOKEN|>{%- else -%}<|START_RESPONSE|>{{ message.content }}<|END_RESPONSE|><|END_OF_TURN_TOKEN|>{%- endif %}
    {%- elif message.role|lower == 'tool' -%}<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|><|START_TOOL_RESULT|>[{"tool_call_id": "{{ tool_call_id_to_int(messages, message.tool_call_id) }}", "results": {"0": {{ message.content | tojson }}}}]<|END_TOOL_RESULT|><|END_OF_TURN_TOKEN|>
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt -%}<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|><|START_RESPONSE|>{%- endif %}"""
STABLELM_ZEPHYR = "{% for message in messages %}\n{% if message['role'] == 'user' %}\n{{ '<|user|>\n' + message['content'] + eos_token }}\n{% elif message['role'] == 'system' %}\n{{ '<|system|>\n' + message['content'] + eos_token }}\n{% elif message['role'] == 'assistant' %}\n{{ '<|assistant|>\n'  + message['content'] + eos_token }}\n{% endif %}\n{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}"
STABLELM2 = "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content']}}{% if (loop.last and add_generation_prompt) or not loop.last %}{{ '<|im_end|>' + '\n'}}{% endif %}{% endfor %}{% if add_generation_prompt and messages[-1]['role'] != 'assistant' %}{{ '<|im_start|>assistant\n' }}{% endif %}"
STARCODER2 = "{{bos_token}}{{'You are a coding assistant.\n\n'}}\n{%- for message in messages %}\n    {%- if message['role'] == 'system' %}\n{{ raise_exception('System messages are not allowed in this template.') }}\n    {%- else %}\n        {%- if message['role'] == 'user' %}\n{{'### Instruction\n' + message['content'] + '\n\n'}}\n        {%- else %}\n{{'### Response\n' + message['content'] + eos_token + '\n\n'}}\n        {%- endif %}\n    {%- endif %}\n{%- endfor %}\n{{'### Response\n'}}"
GPT_OSS = r"""{%- macro type_of(one) -%}
    {%- if one.type is defined and one.type is iterable and one.type is not string and one.type is not mapping and one.type[0] is defined -%}{{- one.type | join(" | ") }}
    {%- elif one.type == "string" -%}{{- '"' + one.enum | join('" | "') + '"' if one.enum else "string" }}
    {%- elif one.type in ("number", "integer") -%}{{- "number" }}
    {%- else -%}{{- "any" }}{%- endif -%}
{%- endmacro -%}
{%- macro namespace_of(name, tools) -%}
    {{- "## " + name + "\n\nnamespace " + name + " {\n\n" }}
    {%- for tool in tools %}{%- set tool = tool.function %}
        {{- "// " + tool.description + "\ntype " + tool.name + " = (" }}
        {%- if tool.parameters and tool.parameters.properties -%}
            {{- "_: {\n" }}
            {%- for key, one in tool.parameters.properties.items() %}
                {{- key + ("" if key in (tool.parameters.required or []) else "?") + ": " + type_of(one) }}
                {%- if one.default is defined -%}{{- ", // default: " + one.default | tojson }}{%- endif -%}
                {%- if not loop.last %}{{- ",\n" }}{%- endif -%}
            {%- endfor %}
            {{- ",\n}) => any;\n" }}
        {%- else -%}{{- "\n}) => any;\n" }}{%- endif -%}
    {%- endfor %}
    {{- "\n} // namespace " + name }}
{%- endmacro -%}
{{- "<|start|>system<|message|>" }}
{%- if model_identity is not defined %}{%- set model_identity = "You are a model." %}{%- endif %}
{{- model_identity + "\nCurrent date: " + strftime_now("%Y-%m-%d") + "\n\n" }}
{%- if reasoning_effort is not defined %}{%- set reasoning_effort = "medium" %}{%- endif %}
{{- "Reasoning: " + reasoning_effort + "\n\n# Valid channels: analysis, commentary, final.<|end|>" }}
{%- if messages[0].role == "developer" or messages[0].role == "system" %}
    {%- set developer = messages[0].content %}{%- set rest = messages[1:] %}
{%- else %}{%- set developer = "" %}{%- set rest = messages %}{%- endif %}
{%- if developer or tools %}
    {{- "<|start|>developer<|message|>" }}
    {%- if developer %}{{- "# Instructions\n\n" }}{{- developer }}{%- endif %}
    {%- if tools -%}{{- "\n\n# Tools\n\n" }}{{- namespace_of("functions", tools) }}{%- endif -%}
    {{- "<|end|>" }}
{%- endif %}
{%- set last = namespace(name=none) %}
{%- for message in rest -%}
    {%- if message.role == 'assistant' -%}
        {%- if "content" in message and "<|channel|>final<|message|>" in message.content %}{{- raise_exception("Give the thinking in the 'thinking' field.") }}{%- endif %}
        {%- if "tool_calls" in message %}
            {%- set call = message.tool_calls[0] %}{%- if call.function %}{%- set call = call.function %}{%- endif %}
            {%- if message.content and message.thinking %}{{- raise_exception("Cannot pass both content and thinking with tool calls!") }}
            {%- elif message.content %}{{- "<|start|>assistant<|channel|>analysis<|message|>" + message.content + "<|end|>" }}{%- endif %}
            {{- "<|start|>assistant to=functions." + call.name + "<|channel|>commentary json<|message|>" }}{{- call.arguments | tojson }}{{- "<|end|>" }}
            {%- set last.name = call.name %}
        {%- elif loop.last and not add_generation_prompt %}
            {%- if "thinking" in message %}{{- "<|start|>assistant<|channel|>analysis<|message|>" + message.thinking + "<|end|>" }}{%- endif %}
            {{- "<|start|>assistant<|channel|>final<|message|>" + message.content + "<|return|>" }}
        {%- else %}
            {{- "<|start|>assistant<|channel|>final<|message|>" + message.content + "<|end|>" }}{%- set last.name = none %}
        {%- endif %}
    {%- elif message.role == 'tool' -%}
        {%- if last.name is none %}{{- raise_exception("Message has tool role, but there was no tool call before it!") }}{%- endif %}
        {{- "<|start|>functions." + last.name + " to=assistant<|channel|>commentary<|message|>" + message.content | tojson + "<|end|>" }}
    {%- elif message.role == 'user' -%}{{- "<|start|>user<|message|>" + message.content + "<|end|>" }}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
<|start|>assistant
{%- endif -%}"""
