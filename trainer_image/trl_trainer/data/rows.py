"""One row of the user's data becomes one row of the form that TRL's trainer of that kind reads. Pure functions."""

import json
from collections.abc import Callable, Sequence
from typing import Any

from trl_contract.rewards import RESERVED_COLUMNS
from trl_contract.sources import Format
from trl_trainer.data import formats, turns
from trl_trainer.data.turns import BadRow, Messages
from trl_trainer.stage import Row


def read(row: Row, columns: dict[str, str] | None, format: Format) -> tuple[str, Row, list[str]]:
    """Return what the row was taken for, the row in TRL's own columns (formats.read): renamed before, and without
    empty cells; and the columns, as the data name them, that dataset.columns or the form puts something else in place
    of. Raises BadRow."""
    columns = columns or {}
    given, row = _filled(row), _filled(_rename(row, columns))
    overwritten = [name for name in columns if name in given and name not in columns.values()]
    name, found, dropped = formats.read(row, format)
    return name, found, [*overwritten, *(columns.get(column, column) for column in dropped)]


def _filled(row: Row) -> Row:
    """Return a row without its empty cells, in which pandas writes NaN."""
    return {name: value for name, value in row.items() if value is not None and value == value}


def shape(
    form: Callable[[Row], Row],
    row: Row,
    system_prompt: str | None = None,
    as_conversation: bool = False,
    template_kwargs: Row | None = None,
) -> Row:
    """Return the row (of `read`) as `form` (sft, pair, prompted_pair or prompt) makes it; then, if it is to be a
    conversation, its prompt and answers as turns; then the system prompt, the tools, and what the chat template gets:
    `template_kwargs`, and the row's own. Raises BadRow."""
    shaped = form(row)
    if as_conversation and not conversational(shaped):
        shaped = _as_conversation(row, shaped)
    if conversational(shaped) and isinstance(row.get("system"), str) and row["system"].strip():
        _add_system_prompt(shaped, row["system"])
    if system_prompt is not None:
        _add_system_prompt(shaped, system_prompt)
    if conversational(shaped):
        if "tools" in row and "tools" not in shaped:
            shaped["tools"] = turns.tools(row["tools"])
        given = {**(template_kwargs or {}), **turns.template_kwargs(row.get("chat_template_kwargs", {}))}
        if given:
            shaped["chat_template_kwargs"] = given
    return shaped


def _as_conversation(row: Row, shaped: Row) -> Row:
    """Return a shaped row of plain text with its prompt as the user's turn, and each answer as the assistant's."""
    if "prompt" not in row or "prompt" not in shaped:
        raise BadRow(
            f"dataset.asConversation needs a prompt, and the row has {_names(row)}; name it in dataset.columns"
        )
    _check_prompt(shaped["prompt"])
    roles = {"prompt": "user", "completion": "assistant", "chosen": "assistant", "rejected": "assistant"}
    return {name: [{"role": roles[name], "content": value}] if name in roles else value
            for name, value in shaped.items()}  # fmt: skip


TALK = ("messages", "prompt", "completion", "chosen", "rejected")
"""Columns that may hold messages."""


def without_nulls(row: Row, columns: dict[str, str] | None) -> Row:
    """Return a row that Arrow made, without the fields of messages and tools that it has added because other rows have
    them: a template would render them."""
    names = {(columns or {}).get(name, name) for name in (*TALK, *formats.TALK, "tools")}
    return {name: _pruned(value) if name in names else value for name, value in row.items()}


def _pruned(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _pruned(item) for name, item in value.items() if item is not None}
    return [_pruned(item) for item in value] if isinstance(value, list) else value


def unread(row: Row, shaped: Row, columns: dict[str, str]) -> list[str]:
    """Return the names, in the data, of the columns of a row (of `read`) that nothing of the shaped row comes from."""
    used = set(shaped)
    if "prompt" not in row and not ("chosen" in shaped and formats.whole_pair(row)):
        # A prompt may be what they begin with.
        used.add("messages")
    if "messages" in shaped and _begins(shaped["messages"], row.get("prompt")):
        used.add("prompt")
    if conversational(shaped) and isinstance(row.get("system"), str):
        used.add("system")
    if row.get("output") == row.get("completion") and not used.isdisjoint(("output", "completion")):
        # Alpaca's answer, under both names.
        used |= {"output", "completion"}
    return [columns.get(name, name) for name in row if name not in used]


def _begins(messages: Messages, prompt: Any) -> bool:
    """Return whether the prompt, text or turns, is in the conversation already."""
    said = [message["content"] for message in messages]
    wanted = (
        [turn.get("content") for turn in prompt if isinstance(turn, dict)] if isinstance(prompt, list) else [prompt]
    )
    return all(content in said for content in wanted)


def conversational(row: Row) -> bool:
    """Return whether a shaped row is made of messages rather than of plain text."""
    # Asked several times of each of a million rows.
    return isinstance(row.get("messages", row.get("prompt", row.get("chosen"))), list)


def form(row: Row) -> str:
    """Return a few words for the form of a shaped row; all rows of a data set must have the same."""
    names = [
        name for name in ("messages", "text", "prompt", "completion", "chosen", "rejected", "margin") if name in row
    ]
    return f"{', '.join(names)} ({'conversations' if conversational(row) else 'plain text'})"


def answers(row: Row) -> list[Any]:
    """Return what a shaped row teaches: text, or each turn of the assistant that is learnt, alone."""
    found: list[Any] = []
    for name in ("messages", "text", "completion", "chosen", "rejected"):
        value = row.get(name, [])
        said = (
            [[turn] for turn in value if turn["role"] == "assistant" and not is_masked(turn)]
            if isinstance(value, list)
            else [value]
        )
        found += said
    return found


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


def _check_paired(row: Row) -> None:
    """Raise BadRow for a row of TRL's unpaired form: sft would learn what the label calls bad, too."""
    label = row.get("label")
    # True is 1 in Python.
    is_judged = "completion" in row and (label in (0, 1) or str(label).lower() in ("true", "false"))
    if is_judged or (isinstance(label, bool) and "messages" in row and "chosen" not in row):
        raise BadRow(
            "label says whether the answer is good, and such unpaired rows (KTO) are trained by no kind: give dpo"
            " or reward pairs of chosen and rejected, or sft the good rows without the column"
        )


def sft(row: Row) -> Row:
    """Return messages | prompt and completion | text."""
    _check_paired(row)
    if "messages" in row:
        messages = _with_prompt(row, turns.messages(row["messages"], "messages"))
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


def _with_prompt(row: Row, messages: Messages) -> Messages:
    """Return the messages, after the row's prompt where they begin with the answer to it."""
    if "prompt" not in row or messages[0]["role"] != "assistant" or _begins(messages, row["prompt"]):
        return messages
    given = _content(row["prompt"], "prompt")
    return [*([{"role": "user", "content": given}] if isinstance(given, str) else given), *messages]


def prompt(row: Row) -> Row:
    """Return the prompt, and every other column for the rewards."""
    if row.get("chat_template_kwargs"):
        raise BadRow(
            "chat_template_kwargs of a prompt never reaches the chat template: remove the column, and say it for all"
            " rows in dataset.chatTemplateKwargs"
        )
    if row.get("tools"):
        raise BadRow(
            "tools of a prompt never reach the chat template: say in the system turn what they do, and remove the"
            " column; one that a reward reads may have another name in dataset.columns"
        )
    if "prompt" in row:
        asked = _content(row["prompt"], "prompt")
    elif "messages" in row:
        messages = turns.messages(row["messages"], "messages")
        # A conversation that ends with a question, or with what a tool answered, has its answer yet to come.
        asked = messages[:-1] if messages[-1]["role"] == "assistant" else messages
    else:
        raise _missing(row, "prompt, or messages")
    _check_prompt(asked)
    # TRL takes them for its own input, whatever the row's prompt looks like.
    return {"prompt": asked, **{name: value for name, value in row.items() if name not in RESERVED_COLUMNS}}


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
    _check_paired(row)
    if "chosen" not in row or "rejected" not in row:
        raise _missing(row, "chosen and rejected (and prompt)")
    if isinstance(row.get("messages"), list) and not formats.whole_pair(row):
        row = {**row, "prompt": row["messages"], **{name: _turns(row[name]) for name in ("chosen", "rejected")}}
    chosen, rejected = _alike(row, "chosen", "rejected")
    if chosen == rejected:
        raise BadRow("chosen equals rejected")
    if isinstance(chosen, str):
        return _plain_pair(row, chosen, rejected, needs_prompt)
    for name, answer in (("chosen", chosen), ("rejected", rejected)):
        if any(is_masked(message) for message in answer):
            raise BadRow(f"{name} has a turn with weight 0, and a pair is compared as a whole: remove the weight")
    return _conversational_pair(row, chosen, rejected)


def _turns(answer: Any) -> Any:
    """Return an answer, text or one turn, as turns."""
    if isinstance(answer, str):
        return [{"role": "assistant", "content": answer}]
    return [answer] if isinstance(answer, dict) else answer


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
        prompt = turns.messages(given, "prompt")
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
    answered = [message for message in messages if message["role"] == "assistant"]
    if not answered:
        raise BadRow(f"{name} has no assistant turn, so there is nothing to learn; {_roles(messages)}")
    if all(is_masked(turn) for turn in answered):
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
    return turns.messages(value, name) if isinstance(value, list) else _text(value, name)


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise BadRow(f"{name} is {turns.type_of(value)}; it must be text or a list of messages")
    return value


def _number(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadRow(f"{name} is {turns.type_of(value)}; it must be a number")
    return float(value)


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
