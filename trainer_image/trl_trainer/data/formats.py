"""The forms of rows that users have, each in TRL's own columns. Pure functions."""

from typing import Any

from trl_contract.sources import Format
from trl_trainer.data.turns import BadRow
from trl_trainer.stage import Row

TALK = ("conversations", "input", "preferred_output", "non_preferred_output")
"""Columns of these forms that may hold messages."""


def read(row: Row, format: Format) -> tuple[str, Row, list[str]]:
    """Return the name of the row's form (with `auto` what its columns look like); the row in TRL's columns: those of
    the form are taken out, all others stay; and the columns that the form puts something else in place of, or leaves
    out. Raises BadRow for a row that is not of the form."""
    name = _recognized(row) if format == "auto" else format
    missing = [column for column in _NEEDED.get(name, ()) if column not in row]
    if missing:
        raise BadRow(
            f"dataset.format is {name}, and the row has no {', '.join(missing)}; dataset.columns can rename one"
        )
    found = _READERS[name](dict(row))
    dropped = [column for column in row if column not in _TAKEN[name] and found.get(column) is not row[column]]
    return name, found, dropped


def _recognized(row: Row) -> str:
    if {"preferred_output", "non_preferred_output"} <= row.keys():
        return "openai-dpo"
    if "messages" not in row and isinstance(row.get("conversations"), list) and not whole_pair(row):
        turns = row["conversations"]
        return "sharegpt" if any(isinstance(turn, dict) and "from" in turn for turn in turns) else "messages"
    answered = "output" in row or isinstance(row.get("chosen"), str)
    # TRL's own columns come first: a row may have the rendered text beside what it was made of.
    if row.keys().isdisjoint(("messages", "prompt", "text")) and "instruction" in row and answered:
        return "alpaca"
    return "messages" if any(isinstance(row.get(name), list) for name in _OWN) else "text"


_OWN = ("messages", "prompt", "completion", "chosen", "rejected")
_NEEDED = {
    "sharegpt": ("conversations",),
    "alpaca": ("instruction",),
    "openai-dpo": ("input", "preferred_output", "non_preferred_output"),
}
_TAKEN = {
    "messages": ("conversations",), "text": (), "sharegpt": ("conversations",), "alpaca": ("instruction", "input"),
    "openai-dpo": _NEEDED["openai-dpo"],
}  # fmt: skip
"""What each form makes something else of."""


def whole_pair(row: Row) -> bool:
    """Return whether chosen and rejected need no conversation before them: they begin with one, or have a prompt."""
    pair = [row[name] for name in ("chosen", "rejected") if name in row]
    return len(pair) == 2 and ("prompt" in row or any(_asks(answer) for answer in pair))


def _asks(answer: Any) -> bool:
    """Return whether an answer is a conversation that begins before what the assistant says."""
    first = answer[0] if isinstance(answer, list) and answer else None
    return isinstance(first, dict) and first.get("role", first.get("from")) not in ("assistant", "gpt")


def _messages(row: Row) -> Row:
    if "conversations" in row and "messages" not in row and not whole_pair(row):
        row["messages"] = row.pop("conversations")
    if not any(isinstance(row.get(name), list) for name in _OWN):
        raise BadRow(f"dataset.format is messages, and none of {', '.join(_OWN)} is a list of messages")
    return row


def _text(row: Row) -> Row:
    """Plain text, whatever else is in the row."""
    return {name: value for name, value in row.items() if name != "messages" or not isinstance(value, list)}


def _sharegpt(row: Row) -> Row:
    if not whole_pair(row):
        row["messages"] = row.pop("conversations")
    return row


def _alpaca(row: Row) -> Row:
    """`instruction`, and `input` after a blank line if there is one, are the prompt. `output` is the completion, and
    stays for rewards."""
    parts = [row.pop("instruction"), row.pop("input", "")]
    for name, part in zip(("instruction", "input"), parts, strict=True):
        if not isinstance(part, str):
            raise BadRow(f"{name} must be text in a row of alpaca's form")
    row["prompt"] = "\n\n".join(part for part in parts if part.strip())
    return {**row, "completion": row["output"]} if "output" in row else row


def _openai_dpo(row: Row) -> Row:
    asked = row.pop("input")
    if not isinstance(asked, dict) or "messages" not in asked:
        raise BadRow("input must be an object with messages in a row with preferred_output")
    pair = {"prompt": asked["messages"], "chosen": row.pop("preferred_output"),
            "rejected": row.pop("non_preferred_output")}  # fmt: skip
    return {**row, **pair, **({"tools": asked["tools"]} if asked.get("tools") else {})}


_READERS: dict[str, Any] = {
    "messages": _messages, "text": _text, "sharegpt": _sharegpt, "alpaca": _alpaca, "openai-dpo": _openai_dpo,
}  # fmt: skip
