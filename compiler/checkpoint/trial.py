"""Conversations that a chat template is tried with at build: what llmc cannot do is said before anybody chats."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ...runtime.errors import RecipeError, Unsupported
from ...runtime.text.chat import ChatTemplate
from ..tokens.conversation import ANSWERED

_SYSTEM = {"role": "system", "content": "Be brief."}
_USER, _ANSWER = ANSWERED
_PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
_TOOL = {"name": "weather", "description": "The weather of a city.", "parameters": _PARAMETERS}
_CALL = {"id": "call00001", "type": "function", "function": {"name": "weather", "arguments": {"city": "Rome"}}}
_RESULT = {"role": "tool", "tool_call_id": "call00001", "name": "weather", "content": '{"rain": false}'}
_CALLED = ({"role": "assistant", "content": "", "tool_calls": [_CALL]}, _RESULT)
CONVERSATIONS: Mapping[str, Mapping[str, Any]] = {
    "two turns": {"messages": (_USER, _ANSWER, _USER)},
    "a system message": {"messages": (_SYSTEM, _USER, _ANSWER, _USER)},
    "an answer at the end": {"messages": (_USER, _ANSWER), "add_generation_prompt": False},
    "tools": {"messages": (_USER,), "tools": [{"type": "function", "function": _TOOL}]},
    "a tool result": {
        "messages": (_SYSTEM, _USER, *_CALLED, _ANSWER, _USER),
        "tools": [{"type": "function", "function": _TOOL}],
    },
}


def unsupported(template: ChatTemplate) -> Iterator[str]:
    """What a template uses and llmc does not have, with the conversation that needs it.

    A template may refuse a conversation: that says nothing.

    Raises:
        EngineError: the template needs more than its budget.
    """
    seen = set()
    for name, conversation in CONVERSATIONS.items():
        try:
            template.render(**conversation)
        except RecipeError:
            continue
        except Unsupported as error:
            if error.found not in seen:
                yield f"{error.asked} with {name}; {error.found}"
            seen.add(error.found)
