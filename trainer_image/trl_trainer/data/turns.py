"""Turns of a conversation as users write them become the turns that chat templates take. Pure functions."""

import json
from typing import Any

from trl_trainer.stage import Row

Messages = list[dict[str, Any]]


class BadRow(ValueError):
    """Why this row cannot be used."""


def messages(value: Any, name: str) -> Messages:
    if not isinstance(value, list) or not value:
        raise BadRow(f"{name} is {type_of(value) if value != [] else 'an empty list'}; it must be a list of messages")
    return [_message(message, f"{name}[{i}]") for i, message in enumerate(value)]


SHAREGPT = {
    "system": "system", "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant",
    "observation": "tool", "tool": "tool",
}  # fmt: skip
"""Its roles, and ours."""


def _message(message: Any, name: str) -> dict[str, Any]:
    if not isinstance(message, dict):
        raise BadRow(f"{name} is {type_of(message)}; a message is an object with role and content")
    if {"from", "value"} <= message.keys():
        message = _of_sharegpt(message, name)
    message = _of_functions(message, name)
    role, content = message.get("role"), _joined(message.get("content"), f"{name}.content")
    if not isinstance(role, str) or not role:
        raise BadRow(f"{name} has no role")
    if not isinstance(content, str) and not (content is None and message.get("tool_calls")):
        raise BadRow(f"{name}.content is {type_of(content)}; it must be text")
    if message.get("weight") not in (None, 0, 1):
        raise BadRow(f"{name}.weight is {message['weight']!r}; it must be 0 (not learnt) or 1")
    more = {key: item for key, item in message.items() if key not in ("role", "content") and item is not None}
    if "tool_calls" in more:
        more["tool_calls"] = _calls(more["tool_calls"], f"{name}.tool_calls")
    return {"role": role, "content": content, **more}


def _of_sharegpt(message: Row, name: str) -> Row:
    role = SHAREGPT.get(message["from"]) if isinstance(message["from"], str) else None
    if role is None:
        raise BadRow(f"{name}.from is {message['from']!r}; it must be one of {', '.join(SHAREGPT)}")
    more = {key: value for key, value in message.items() if key not in ("from", "value")}
    return {"role": role, "content": message["value"], **more}


def _of_functions(message: Row, name: str) -> Row:
    """Return a message with OpenAI's older `function_call` and role `function` as tool_calls and tool."""
    if message.get("role") == "function":
        message = {**message, "role": "tool"}
    call = message.get("function_call")
    if call is None:
        return message
    if not isinstance(call, dict) or message.get("tool_calls"):
        raise BadRow(f"{name}.function_call is {type_of(call)}; it must be an object, without tool_calls beside it")
    return {**message, "function_call": None, "tool_calls": [{"type": "function", "function": call}]}


def _joined(content: Any, name: str) -> Any:
    """Return the text of content that is a list of parts; other content as it is."""
    if not isinstance(content, list):
        return content
    for i, part in enumerate(content):
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            found = f"a part of type {part.get('type')}" if isinstance(part, dict) else type_of(part)
            raise BadRow(f"{name}[{i}] is {found}; only parts of type text are read")
    return "".join(part["text"] for part in content)


def _calls(value: Any, name: str) -> list[Row]:
    """Return tool calls with their arguments as objects, which is what chat templates take: OpenAI's API writes them as
    JSON text, and a template would encode that a second time."""
    if not isinstance(value, list) or not all(isinstance(call, dict) for call in value):
        raise BadRow(f"{name} is {type_of(value)}; it must be a list of objects")
    found = []
    for i, call in enumerate(value):
        if isinstance(call.get("function"), dict):
            found.append({**call, "function": _decoded(call["function"], f"{name}[{i}].function")})
        else:
            found.append(_decoded(call, f"{name}[{i}]"))
    return found


def _decoded(function: Row, name: str) -> Row:
    given = function.get("arguments")
    if not isinstance(given, str):
        return function
    try:
        arguments = json.loads(given or "{}")
    except json.JSONDecodeError as error:
        raise BadRow(f"{name}.arguments is text that is not JSON: {error.msg}") from error
    if not isinstance(arguments, dict):
        raise BadRow(f"{name}.arguments is {type_of(arguments)} as JSON; it must be an object")
    return {**function, "arguments": arguments}


def tools(value: Any) -> list[Any]:
    """Return the tools of a row, which may be a list or, as TRL allows, one in a JSON string."""
    try:
        tools = json.loads(value) if isinstance(value, str) else value
    except json.JSONDecodeError as error:
        raise BadRow(f"tools is text that is not JSON: {error.msg}") from error
    if not isinstance(tools, list):
        raise BadRow(f"tools is {type_of(tools)}; it must be a list of tool descriptions")
    return tools


def template_kwargs(value: Any) -> Row:
    """Return what a row tells the chat template; fields that Arrow has added for other rows are null."""
    if not isinstance(value, dict):
        raise BadRow(f"chat_template_kwargs is {type_of(value)}; it must be an object")
    return {name: item for name, item in value.items() if item is not None}


def type_of(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "a truth value", type(None): "null"}
    return names.get(type(value), "a number" if isinstance(value, int | float) else type(value).__name__)
