"""Conversations that templates differ on: turns, tools, tool results, a wrong order."""

from __future__ import annotations

from typing import Any

USER = {"role": "user", "content": " Hi, who are <you>? 'é' & \"日\"\n"}
ANSWER = {"role": "assistant", "content": "<think>\nhm\n</think>\n\nA model.  "}
SYSTEM = {"role": "system", "content": "Be brief."}
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Where's rain? <b>é</b>",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": ["integer", "null"], "default": None}},
            "required": ["city"],
        },
    },
}
CALL = {
    "type": "function",
    "function": {"name": "weather", "arguments": {"city": "Zürich", "days": 2, "x": [1.5, True]}},
}
TOOL_TALK = [
    *({"role": "user", "content": "Rain?"}, {"role": "assistant", "tool_calls": [CALL]}),
    {"role": "tool", "content": '{"rain": false}', "name": "weather"},
]
TALKS: dict[str, dict[str, Any]] = {
    "user": {"messages": [USER]},
    "system": {"messages": [SYSTEM, USER]},
    "turns": {"messages": [SYSTEM, USER, ANSWER, USER, ANSWER, USER]},
    "answered": {"messages": [USER, ANSWER], "add_generation_prompt": False},
    "tools": {"messages": [SYSTEM, USER], "tools": [TOOL]},
    "tool results": {"messages": TOOL_TALK, "tools": [TOOL]},
    "variables": {
        "messages": [SYSTEM, USER],
        "tools": [TOOL],
        "tools_in_user_message": False,
        "enable_thinking": False,
    },
    "wrong order": {"messages": [ANSWER, ANSWER]},
}
