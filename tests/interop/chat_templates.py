"""Templates of the shapes that well-known models have, and conversations to put into them."""

CHATML = """\
{%- for message in messages -%}
    {{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{ '<|im_start|>assistant\\n' }}
{%- endif -%}
"""

SMOLLM = """\
{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system
You are a helpful assistant<|im_end|>
' }}{% endif %}{{'<|im_start|>' + message['role'] + '
' + message['content'] + '<|im_end|>' + '
'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant
' }}{% endif %}"""

LLAMA_2 = """\
{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}\
{% set system_message = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}\
{% set system_message = false %}{% endif %}{% for message in loop_messages %}\
{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}\
{{ raise_exception('Roles must alternate: user, assistant, user') }}{% endif %}\
{% if loop.index0 == 0 and system_message != false %}\
{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}\
{% else %}{% set content = message['content'] %}{% endif %}\
{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}\
{% elif message['role'] == 'assistant' %}{{ ' '  + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"""

LLAMA_3 = """\
{{- bos_token }}
{%- if not date is defined %}
    {%- set date = "1 Jan 2024" %}
{%- endif %}
{%- set functions = tools if tools is defined and tools is not none else [] %}

{#- What the system says comes first, with or without a message of its own. #}
{%- if messages[0]['role'] == 'system' %}
    {%- set rules, rest = messages[0]['content']|trim, messages[1:] %}
{%- else %}
    {%- set rules, rest = "", messages %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{{- "Date: " + date + "\\n\\n" + rules }}
{%- for f in functions | selectattr('type', 'equalto', 'function') %}
    {{- "\\n" + f | tojson(indent=4) }}
{%- endfor %}
{{- "<|eot_id|>" }}
{%- for message in rest %}
    {%- if message.tool_calls is defined and message.tool_calls %}
        {%- if not message.tool_calls|length == 1 %}
            {{- raise_exception("One call at a time!") }}
        {%- endif %}
        {%- set call = message.tool_calls[0].function %}
        {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' + call.name + "(" -}}
        {%- for key, value in call.arguments | items %}
            {{- key ~ '="' ~ value ~ '"' }}{{ ", " if not loop.last }}
        {%- endfor %}
        {{- ")<|eot_id|>" }}
    {%- elif message.role in ["tool", "ipython"] %}
        {{- "<|start_header_id|>ipython<|end_header_id|>\\n\\n" }}
        {{- (message.content | tojson if message.content is mapping else message.content) ~ "<|eot_id|>" }}
    {%- else %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""

MISTRAL = """\
{%- set has_system = messages[0]["role"] == "system" %}
{%- set loop_messages = messages[1:] if has_system else messages %}
{%- set last_user = (loop_messages | selectattr("role", "equalto", "user") | list)[-1] %}
{%- set ns = namespace(turn=0) %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if message["role"] == "user" %}
        {%- if ns.turn % 2 != 0 %}
            {{- raise_exception("Two messages of a user follow each other") }}
        {%- endif %}
        {%- set ns.turn = ns.turn + 1 %}
        {%- if has_system and message == last_user %}
            {{- "[INST] " + messages[0]["content"] + "\\n\\n" + message["content"] + "[/INST]" }}
        {%- else %}
            {{- "[INST] " + message["content"] + "[/INST]" }}
        {%- endif %}
    {%- elif message.tool_calls is defined and message.tool_calls is not none %}
        {{- "[TOOL_CALLS] [" }}
        {%- for call in message.tool_calls %}
            {%- set text = call.function|tojson %}
            {%- if call.id|length != 9 %}
                {{- raise_exception("An id has nine characters") }}
            {%- endif %}
            {{- text[:-1] + ', "id": "' + call.id + '"}' }}
            {{- ", " if not loop.last else "]" + eos_token }}
        {%- endfor %}
    {%- elif message["role"] == "assistant" %}
        {%- set ns.turn = ns.turn + 1 %}
        {{- " " + message["content"]|trim + eos_token}}
    {%- elif message["role"] == "tool" %}
        {{- '[TOOL_RESULTS] {"content": ' + message.content|string + '}[/TOOL_RESULTS]' }}
    {%- else %}
        {{- raise_exception("The role " + message["role"] + " is not known") }}
    {%- endif %}
{%- endfor %}
"""

GEMMA = """\
{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}\
{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}\
{{ raise_exception('Roles must alternate') }}{% endif %}{% if (message['role'] == 'assistant') %}\
{% set role = 'model' %}{% else %}{% set role = message['role'] %}{% endif %}\
{{ '<start_of_turn>' + role + '
' + message['content'] | trim + '<end_of_turn>
' }}{% endfor %}{% if add_generation_prompt %}{{'<start_of_turn>model
'}}{% endif %}"""

PHI = """\
{% for message in messages %}{% if message['role'] == 'system' and message['content'] %}{{'<|system|>
' + message['content'] + '<|end|>
'}}{% elif message['role'] == 'user' %}{{'<|user|>
' + message['content'] + '<|end|>
'}}{% elif message['role'] == 'assistant' %}{{'<|assistant|>
' + message['content'] + '<|end|>
'}}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>
' }}{% else %}{{ eos_token }}{% endif %}"""

QWEN = """\
{%- macro turn(role, content) %}{{ '<|im_start|>' + role + '\\n' + content + '<|im_end|>\\n' }}{% endmacro %}
{%- set first = messages[0] %}
{%- set rules = first['content'] if first['role'] == 'system' else 'You help.' %}
{%- if tools %}
    {{- '<|im_start|>system\\n' + rules + "\\n\\n# Tools\\n<tools>" }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\\n</tools><|im_end|>\\n" }}
{%- else %}
    {{- turn('system', rules) }}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "assistant" and not message.tool_calls) %}
        {{- turn(message.role, message.content) }}
    {%- elif message.role == "assistant" %}
        {{- '<|im_start|>' + message.role }}
        {%- if message.content %}
            {{- '\\n' + message.content }}
        {%- endif %}
        {%- for tool_call in message.tool_calls %}
            {%- if tool_call.function is defined %}
                {%- set tool_call = tool_call.function %}
            {%- endif %}
            {{- '\\n<tool_call>\\n{"name": "' ~ tool_call.name ~ '", "arguments": ' ~ tool_call.arguments | tojson ~ '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "tool" %}
        {%- if loop.first or loop.previtem.role != "tool" %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\\n<tool_response>\\n' }}
        {{- message.content }}
        {{- '\\n</tool_response>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}
            {{- '<|im_end|>\\n' }}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""

REASONING = """\
{% set ns = namespace(system='', seen=false) %}\
{%- for message in messages if message['role'] == 'system' %}\
{% set ns.system = ns.system + ('\\n\\n' if ns.seen else '') + message['content'] %}{% set ns.seen = true %}{%- endfor %}\
{{ bos_token }}{{ ns.system }}\
{%- for message in messages %}\
{%- if message['role'] == 'user' %}{{'<|User|>' + message['content'] }}{%- endif %}\
{%- if message['role'] == 'assistant' and message['content'] is not none %}\
{% set content = message['content'] %}{% if '</think>' in content %}{% set content = content.split('</think>')[-1] %}\
{% endif %}{{'<|Assistant|>' + content.lstrip('\\n') + '<|end|>'}}{%- endif %}{%- endfor %}\
{% if add_generation_prompt %}{{'<|Assistant|><think>\\n'}}{% endif %}"""

TEMPLATES = {name.lower(): value for name, value in globals().items() if name.isupper()}

USER = {"role": "user", "content": "  Where is Zürich? \U0001f600 "}
ANSWER = {"role": "assistant", "content": "<think>\nhm\n</think>\n\nIn \"Switzerland\" <north>.\n"}
SYSTEM = {"role": "system", "content": " Be brief.\n"}
CALL = {"role": "assistant", "content": None,
        "tool_calls": [{"id": "abcdefgh1", "type": "function",
                        "function": {"name": "weather", "arguments": {"city": "Zürich", "days": 3, "at": [1.5, True, None]}}}]}
TOOL_RESULT = {"role": "tool", "tool_call_id": "abcdefgh1", "name": "weather", "content": "21 °C"}
TOOLS = [{"type": "function", "function": {"name": "weather", "description": "the weather & more",
                                           "parameters": {"type": "object", "properties": {}, "required": []}}}]

CONVERSATIONS = {
    "user": [USER],
    "system": [SYSTEM, USER],
    "answered": [USER, ANSWER, USER],
    "all": [SYSTEM, USER, ANSWER, USER, ANSWER],
    "two users": [USER, USER],
    "tool": [SYSTEM, USER, CALL, TOOL_RESULT, TOOL_RESULT],
    "unknown role": [{"role": "wizard", "content": "x"}],
}
