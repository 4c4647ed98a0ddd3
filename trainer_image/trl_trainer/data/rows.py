"""One row of the user's data becomes one row of the form that TRL's trainer of that kind reads. Pure functions."""

import json
from collections.abc import Callable, Sequence
from typing import Any

from trl_trainer.stage import Row

Messages = list[dict[str, Any]]


class BadRow(ValueError):
    """Why this row cannot be used."""


def shape(
    form: Callable[[Row], Row], row: Row, columns: dict[str, str] | None = None, system_prompt: str | None = None
) -> Row:
    """Return the row as `form` (sft, pair, prompted_pair or prompt) makes it, with its columns renamed before, and the
    system prompt and the tools of a conversation added after. Raises BadRow."""
    # pandas writes NaN where a cell is empty.
    row = {name: value for name, value in _rename(row, columns or {}).items() if value is not None and value == value}
    if "conversations" in row and "messages" not in row:
        row["messages"] = row.pop("conversations")
    shaped = form(row)
    if conversational(shaped) and isinstance(row.get("system"), str) and row["system"].strip():
        _add_system_prompt(shaped, row["system"])
    if system_prompt is not None:
        _add_system_prompt(shaped, system_prompt)
    if conversational(shaped):
        if "tools" in row and "tools" not in shaped:
            shaped["tools"] = _tools(row["tools"])
        if "chat_template_kwargs" in row and "chat_template_kwargs" not in shaped:
            shaped["chat_template_kwargs"] = _template_kwargs(row["chat_template_kwargs"])
    return shaped


TALK = ("messages", "prompt", "completion", "chosen", "rejected")
"""Columns that may hold messages."""


def without_nulls(row: Row, columns: dict[str, str] | None) -> Row:
    """Return a row that Arrow made, without the fields of messages and tools that it has added because other rows have
    them: a template would render them."""
    names = {(columns or {}).get(name, name) for name in (*TALK, "tools")}
    return {name: _pruned(value) if name in names else value for name, value in row.items()}


def _pruned(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _pruned(item) for name, item in value.items() if item is not None}
    return [_pruned(item) for item in value] if isinstance(value, list) else value


def unread(row: Row, shaped: Row, columns: dict[str, str]) -> set[str]:
    """Return the names of the row's columns that have a value and that nothing of the shaped row comes from."""
    read = {columns.get(name, name) for name in shaped}
    if "chosen" not in shaped and columns.get("prompt", "prompt") not in row:
        # A prompt may be what they begin with.
        read.add("messages" if "messages" in row else "conversations")
    if conversational(shaped):
        read.add("system")
    return {name for name, value in row.items() if value is not None and name not in read}


def conversational(row: Row) -> bool:
    """Return whether a shaped row is made of messages rather than of plain text."""
    return any(isinstance(row.get(name), list) for name in ("messages", "prompt", "chosen"))


def form(row: Row) -> str:
    """Return a few words for the form of a shaped row; all rows of a data set must have the same."""
    names = [
        name for name in ("messages", "text", "prompt", "completion", "chosen", "rejected", "margin") if name in row
    ]
    return f"{', '.join(names)} ({'conversations' if conversational(row) else 'plain text'})"


def answers(row: Row) -> list[Any]:
    """Return what a shaped row teaches: text, completion, the answers of a pair, or the last assistant turn."""
    if "messages" in row:
        return [[message for message in row["messages"] if message["role"] == "assistant"][-1:]]
    return [row[name] for name in ("text", "completion", "chosen", "rejected") if name in row]


def is_blank(answer: str | Messages) -> bool:
    """Return whether an answer says nothing: no visible character and no tool call."""
    if isinstance(answer, str):
        return not answer.strip()
    return not any((message["content"] or "").strip() or message.get("tool_calls") for message in answer)


def _rename(row: Row, columns: dict[str, str]) -> Row:
    for name, source in columns.items():
        if source not in row:
            raise BadRow(f"dataset.columns.{name} is {source!r}, but the row has {_names(row)}")
    renamed = {name: row[source] for name, source in columns.items()}
    moved = set(columns.values())
    return {**{name: value for name, value in row.items() if name not in moved}, **renamed}


def _names(row: Row) -> str:
    """Return the names of the columns for a message: not all of a thousand, not all of a text taken for a header."""
    names = [str(name)[:40] for name in row]
    return ", ".join(names[:12] + ["..."] * (len(names) > 12)) or "no columns"


def _missing(row: Row, needed: str) -> BadRow:
    return BadRow(f"needs {needed}, but has {_names(row)}; name the columns in dataset.columns")


def sft(row: Row) -> Row:
    """Return messages | prompt and completion | text."""
    if "messages" in row:
        messages = _messages(row["messages"], "messages")
        _check_taught(messages, "messages")
        return {"messages": messages}
    if "prompt" in row and "completion" in row:
        prompt, completion = _alike(row, "prompt", "completion")
        if isinstance(completion, list):
            _check_turns(prompt, completion, "completion")
            _check_taught(completion, "completion")
        return {"prompt": prompt, "completion": completion}
    if "text" in row:
        return {"text": _text(row["text"], "text")}
    raise _missing(row, "messages, or prompt and completion, or text")


def prompt(row: Row) -> Row:
    """Return the prompt, and every other column for the rewards."""
    if row.get("chat_template_kwargs"):
        raise BadRow("chat_template_kwargs of a prompt never reaches the chat template: remove the column")
    if "prompt" in row:
        asked = _content(row["prompt"], "prompt")
    elif "messages" in row:
        messages = _messages(row["messages"], "messages")
        last = max((i for i, message in enumerate(messages) if message["role"] == "assistant"), default=len(messages))
        asked = messages[:last]
    else:
        raise _missing(row, "prompt, or messages")
    _check_prompt(asked)
    # TRL takes any of these names for its own input, whatever the row's prompt looks like.
    taken = {
        "messages", "chosen", "rejected", "prompts", "completion", "completions", "completion_ids", "image", "images",
    }  # fmt: skip
    return {"prompt": asked, **{name: value for name, value in row.items() if name not in taken and name != "prompt"}}


def pair(row: Row) -> Row:
    """Return chosen and rejected with their prompt; plain text without a prompt stays so."""
    shaped = _pair(row, needs_prompt=False)
    if "margin" in row:
        shaped["margin"] = _number(row["margin"], "margin")
    return shaped


def prompted_pair(row: Row) -> Row:
    """Return prompt, chosen and rejected."""
    return _pair(row, needs_prompt=True)


def _pair(row: Row, needs_prompt: bool) -> Row:
    if "chosen" not in row or "rejected" not in row:
        raise _missing(row, "chosen and rejected (and prompt)")
    chosen, rejected = _alike(row, "chosen", "rejected")
    if chosen == rejected:
        raise BadRow("chosen equals rejected")
    if isinstance(chosen, str):
        return _plain_pair(row, chosen, rejected, needs_prompt)
    for name, answer in (("chosen", chosen), ("rejected", rejected)):
        if any(is_masked(message) for message in answer):
            raise BadRow(f"{name} has a turn with weight 0, and a pair is compared as a whole: remove the weight")
    return _conversational_pair(row, chosen, rejected)


def _plain_pair(row: Row, chosen: str, rejected: str, needs_prompt: bool) -> Row:
    if "prompt" in row:
        prompt = _text(row["prompt"], "prompt")
    elif needs_prompt:
        prompt = _common_text(chosen, rejected)
        chosen, rejected = chosen[len(prompt) :], rejected[len(prompt) :]
    else:
        return {"chosen": chosen, "rejected": rejected}
    _check_prompt(prompt)
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def _conversational_pair(row: Row, chosen: Messages, rejected: Messages) -> Row:
    given = row.get("prompt")
    if isinstance(given, str) and chosen[0]["role"] == "assistant":
        prompt: Messages = [{"role": "user", "content": given}]
    elif isinstance(given, list):
        prompt = _messages(given, "prompt")
        # Many data sets repeat the prompt at the start of both conversations; TRL would train on it twice.
        if chosen[: len(prompt)] == prompt and rejected[: len(prompt)] == prompt:
            chosen, rejected = chosen[len(prompt) :], rejected[len(prompt) :]
    else:
        shared = num_common(chosen, rejected)
        prompt, chosen, rejected = chosen[:shared], chosen[shared:], rejected[shared:]
        if isinstance(given, str) and not any(message["content"] == given for message in prompt):
            raise BadRow("prompt is text that is not a message at the start of both chosen and rejected")
    _check_turns(prompt, chosen, "chosen")
    _check_turns(prompt, rejected, "rejected")
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def _common_text(chosen: str, rejected: str) -> str:
    """Return the shared start of both texts, cut back to the end of a word."""
    length = num_common(chosen, rejected)
    while length and not (chosen[length - 1].isspace() or chosen[length : length + 1].isspace()):
        length -= 1
    return chosen[:length].rstrip(" ")


def num_common(one: Sequence[Any], two: Sequence[Any]) -> int:
    """Return how many items both begin with."""
    pairs = zip(one, two, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(one), len(two)))


def _check_prompt(prompt: str | Messages) -> None:
    if not prompt or is_blank(prompt):
        raise BadRow("the prompt is empty")
    if isinstance(prompt, list) and prompt[-1]["role"] == "assistant":
        raise BadRow("the prompt ends with an assistant turn; it must end with what the model answers")


def _check_turns(prompt: Messages, answer: Messages, name: str) -> None:
    if not prompt:
        raise BadRow(f"{name} has no prompt: chosen and rejected must start with the same messages")
    _check_prompt(prompt)
    if not answer or answer[0]["role"] != "assistant":
        raise BadRow(f"{name} must go on with an assistant turn after the prompt; {_roles(answer or prompt)}")


def is_masked(message: dict[str, Any]) -> bool:
    """Return whether the turn is there to be read and not to be learnt (OpenAI's `weight: 0`)."""
    return message.get("weight") == 0


def _check_taught(messages: Messages, name: str) -> None:
    """Raise BadRow unless some assistant turn is there to be learnt."""
    turns = [message for message in messages if message["role"] == "assistant"]
    if not turns:
        raise BadRow(f"{name} has no assistant turn, so there is nothing to learn; {_roles(messages)}")
    if all(is_masked(turn) for turn in turns):
        raise BadRow(f"{name} has weight 0 on every assistant turn, so there is nothing to learn")


def _roles(messages: Messages) -> str:
    roles = ", ".join(dict.fromkeys(message["role"] for message in messages))
    return (
        f"its roles are {roles}, and must be system, user, assistant and tool (ShareGPT's words for them are system,"
        " human, gpt and observation)"
    )


def _add_system_prompt(row: Row, text: str) -> None:
    name = "messages" if "messages" in row else "prompt"
    if not isinstance(row.get(name), list):
        raise BadRow("dataset.systemPrompt needs conversations, but this row is plain text")
    if row[name][0]["role"] not in ("system", "developer"):
        row[name] = [{"role": "system", "content": text}, *row[name]]


def _alike(row: Row, first: str, second: str) -> tuple[Any, Any]:
    """Return both values, checked; both text or both conversations."""
    one, two = _content(row[first], first), _content(row[second], second)
    if type(one) is not type(two):
        raise BadRow(f"{first} and {second} must both be text or both be lists of messages")
    return one, two


def _content(value: Any, name: str) -> str | Messages:
    return _messages(value, name) if isinstance(value, list) else _text(value, name)


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise BadRow(f"{name} is {_type(value)}; it must be text or a list of messages")
    return value


def _number(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadRow(f"{name} is {_type(value)}; it must be a number")
    return float(value)


def _messages(value: Any, name: str) -> Messages:
    if not isinstance(value, list) or not value:
        raise BadRow(f"{name} is {_type(value) if value != [] else 'an empty list'}; it must be a list of messages")
    return [_message(message, f"{name}[{i}]") for i, message in enumerate(value)]


SHAREGPT = {
    "system": "system", "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant",
    "observation": "tool", "tool": "tool",
}  # fmt: skip
"""Its roles, and ours."""


def _message(message: Any, name: str) -> dict[str, Any]:
    if not isinstance(message, dict):
        raise BadRow(f"{name} is {_type(message)}; a message is an object with role and content")
    if {"from", "value"} <= message.keys():
        message = _of_sharegpt(message, name)
    role, content = message.get("role"), _joined(message.get("content"), f"{name}.content")
    if not isinstance(role, str) or not role:
        raise BadRow(f"{name} has no role")
    if not isinstance(content, str) and not (content is None and message.get("tool_calls")):
        raise BadRow(f"{name}.content is {_type(content)}; it must be text")
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


def _joined(content: Any, name: str) -> Any:
    """Return the text of content that is a list of parts; other content as it is."""
    if not isinstance(content, list):
        return content
    for i, part in enumerate(content):
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            found = f"a part of type {part.get('type')}" if isinstance(part, dict) else _type(part)
            raise BadRow(f"{name}[{i}] is {found}; only parts of type text are read")
    return "".join(part["text"] for part in content)


def has_calls(row: Row) -> bool:
    """Return whether a turn of a shaped row calls tools."""
    talks = [row[name] for name in TALK if isinstance(row.get(name), list)]
    return any(message.get("tool_calls") for messages in talks for message in messages)


def with_text_arguments(row: Row) -> Row:
    """Return a shaped row with the arguments of its tool calls as JSON text."""
    return {name: [_encoded(turn) for turn in value] if name in TALK and isinstance(value, list) else value
            for name, value in row.items()}  # fmt: skip


def _encoded(message: Row) -> Row:
    if not message.get("tool_calls"):
        return message
    calls = []
    for call in message["tool_calls"]:
        function = call.get("function", call)
        text = {**function, "arguments": json.dumps(function.get("arguments", {}), ensure_ascii=False)}
        calls.append({**call, "function": text} if "function" in call else text)
    return {**message, "tool_calls": calls}


def _calls(value: Any, name: str) -> list[Row]:
    """Return tool calls with their arguments as objects, which is what chat templates take: OpenAI's API writes them as
    JSON text, and a template would encode that a second time."""
    if not isinstance(value, list) or not all(isinstance(call, dict) for call in value):
        raise BadRow(f"{name} is {_type(value)}; it must be a list of objects")
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
        raise BadRow(f"{name}.arguments is {_type(arguments)} as JSON; it must be an object")
    return {**function, "arguments": arguments}


def _tools(value: Any) -> list[Any]:
    """Return the tools of a row, which may be a list or, as TRL allows, one in a JSON string."""
    try:
        tools = json.loads(value) if isinstance(value, str) else value
    except json.JSONDecodeError as error:
        raise BadRow(f"tools is text that is not JSON: {error.msg}") from error
    if not isinstance(tools, list):
        raise BadRow(f"tools is {_type(tools)}; it must be a list of tool descriptions")
    return tools


def _template_kwargs(value: Any) -> Row:
    """Return what a row tells the chat template; fields that Arrow has added for other rows are null."""
    if not isinstance(value, dict):
        raise BadRow(f"chat_template_kwargs is {_type(value)}; it must be an object")
    return {name: item for name, item in value.items() if item is not None}


def _type(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "a truth value", type(None): "null"}
    return names.get(type(value), "a number" if isinstance(value, int | float) else type(value).__name__)
