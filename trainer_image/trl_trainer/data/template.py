"""What the tokenizer's chat template makes of a shaped row."""

import inspect
from collections.abc import Callable
from typing import Any

from jinja2 import TemplateError, TemplateSyntaxError
from transformers import PreTrainedTokenizerBase

from trl_contract.sources import Dataset
from trl_trainer.data.rows import TALK, conversational, has_calls, is_masked, num_common
from trl_trainer.data.turns import BadRow
from trl_trainer.errors import UserError
from trl_trainer.stage import Row

NOWHERE = "a8f3e2b1"
"""Text that no row has."""
KNOWN = frozenset({"role", "content", "tool_calls", "tool_call_id", "name", "weight"})
"""Fields of a message that are no text of its own, or are looked at in every row."""


def end_of_turn(tokenizer: Any) -> str | None:
    """Return the token with which the chat template ends an assistant turn: "" if that is none, None if the template
    does not take a question and an answer."""
    asked = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": NOWHERE}]
    try:
        text = render(tokenizer, asked, {}, add_generation_prompt=False)
    except (TemplateError, TypeError, ValueError):
        return None
    ids = tokenizer(text.rpartition(NOWHERE)[2].lstrip(), add_special_tokens=False)["input_ids"]
    return str(tokenizer.convert_ids_to_tokens(ids[0])) if ids and ids[0] in tokenizer.added_tokens_decoder else ""


def takes_text_arguments(tokenizer: Any) -> bool:
    """Return whether the chat template joins the arguments of tool calls to text, as DeepSeek's do: it takes no
    objects."""
    call = {"id": "callabcde", "type": "function", "function": {"name": "f", "arguments": {"a": 1}}}
    asked = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "", "tool_calls": [call]}]
    try:
        render(tokenizer, asked, {}, add_generation_prompt=False)
    except TypeError:
        return True
    except (TemplateError, ValueError):
        return False
    return False


def check(tokenizer: Any, row: Row) -> None:
    """Do nothing if the chat template renders the row as TRL will. Raises BadRow; UserError without a template."""
    if not conversational(row):
        return
    if not tokenizer.chat_template:
        raise UserError(
            "InvalidSpec",
            "the data are conversations, but the model's tokenizer has no chat template:"
            " set model.chatTemplate, or give plain text columns",
        )
    for name in OURS & row.get("chat_template_kwargs", {}).keys():
        raise BadRow(f"chat_template_kwargs.{name}: the trainer says that itself: remove it")
    is_prompt = row.keys().isdisjoint(("messages", "completion", "chosen"))
    try:
        for messages in _conversations(row):
            render(tokenizer, messages, options(row), add_generation_prompt=is_prompt)
    except TemplateSyntaxError as error:
        raise UserError(
            "InvalidSpec", f"model.chatTemplate: the chat template is no Jinja, line {error.lineno}: {error}: mend it"
        ) from error
    except (TemplateError, TypeError, ValueError) as error:
        raise BadRow(f"the chat template refuses it: {error}") from error


def check_calls(tokenizer: Any, row: Row) -> bool:
    """Return whether the row has tool calls. UserError if the chat template leaves them, or what a tool answered, out:
    an empty turn would be learnt, or an answer from nowhere."""
    if not conversational(row):
        return False
    messages = [message for name in TALK for message in row.get(name, [])]
    called = has_calls(row)
    if called and NOWHERE not in _rendered(tokenizer, row, _renamed):
        raise UserError(
            "InvalidSpec",
            "model.chatTemplate: the rows have tool_calls, and the chat template does not render them: set a template"
            " that does, or take a model whose own one does",
        )
    if any(message["role"] == "tool" for message in messages) and NOWHERE not in _rendered(tokenizer, row, _told):
        raise UserError(
            "InvalidSpec",
            "model.chatTemplate: the rows have turns of role tool, and the chat template does not render them: set a"
            " template that does, or take a model whose own one does",
        )
    return called


def left_out(tokenizer: Any, rows: list[Row]) -> list[str]:
    """Return what the chat template leaves out of conversations, like the turns of a role or a field of messages; of
    those of users, assistants and tools, and of calls, it leaves out nothing, or the rows were refused."""
    first: dict[tuple[str, str], Row] = {}
    for row in filter(conversational, rows):
        for message in (message for messages in _conversations(row) for message in messages):
            if message["role"] not in ("user", "assistant", "tool"):
                first.setdefault(("role", message["role"]), row)
            for name in sorted(message.keys() - KNOWN):
                if isinstance(message[name], str) and message[name]:
                    first.setdefault(("field", name), row)

    def change(kind: str, name: str) -> Callable[[Row], Row]:
        if kind == "role":
            return lambda message: {**message, "content": NOWHERE} if message["role"] == name else message
        return lambda message: {**message, name: NOWHERE} if message.get(name) else message

    words = {"role": "the turns of role {}", "field": "{} of messages"}
    return [
        words[kind].format(name)
        for (kind, name), row in first.items()
        if NOWHERE not in _rendered(tokenizer, row, change(kind, name))
    ]


def _rendered(tokenizer: Any, row: Row, change: Callable[[Row], Row]) -> str:
    """Return all that the template makes of a row, each message changed."""
    return "".join(
        render(tokenizer, [change(message) for message in messages], options(row), add_generation_prompt=False)
        for messages in _conversations(row)
    )


def _renamed(message: Row) -> Row:
    """Return the message with other names of the functions that it calls."""
    if not message.get("tool_calls"):
        return message
    calls = [
        {**call, "function": {**call["function"], "name": NOWHERE}} if "function" in call else {**call, "name": NOWHERE}
        for call in message["tool_calls"]
    ]
    return {**message, "tool_calls": calls}


def _told(message: Row) -> Row:
    return {**message, "content": NOWHERE} if message["role"] == "tool" else message


def _conversations(row: Row) -> list[list[Row]]:
    """Return the whole conversations of a row; of a row with a prompt alone, that."""
    if "messages" in row:
        return [row["messages"]]
    answers = [row[name] for name in ("completion", "chosen", "rejected") if name in row]
    return [row["prompt"] + answer for answer in answers or [[]]]


def masked(tokenizer: Any, row: Row, **given: Any) -> list[slice]:
    """Return where the tokens of the row's turns of weight 0 are, from what the turn says to what the next one says.

    Found by what changes in the text when a turn says something else: templates may render a turn in another way when
    more turns follow. `given` goes to the template, beside what the row tells it.
    """
    (messages, *_), given = _conversations(row), {**options(row), **given}
    places = [i for i, message in enumerate(messages) if message["role"] == "assistant" and is_masked(message)]
    if not places:
        return []
    text = render(tokenizer, messages, given, add_generation_prompt=False)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]

    def begin(i: int) -> int:
        if i == len(messages):
            return len(ids)
        other = render(tokenizer, _saying_else(messages, i), given, add_generation_prompt=False)
        before = text[: num_common(text, other)]
        return num_common(ids, tokenizer(before, add_special_tokens=False)["input_ids"])

    return [slice(begin(i), begin(i + 1)) for i in places]


def _saying_else(messages: list[Row], i: int) -> list[Row]:
    changed = {key: value for key, value in messages[i].items() if key != "tool_calls"}
    changed["content"] = "1" if (changed["content"] or "").lstrip().startswith("0") else "0"
    return [*messages[:i], changed, *messages[i + 1 :]]


def prompt_length(tokenizer: Any, row: Row) -> int:
    """Return the number of tokens of the row's prompt as TRL will see it."""
    prompt = row["prompt"]
    if isinstance(prompt, list):
        prompt = render(tokenizer, prompt, options(row), add_generation_prompt=True)
        return len(tokenizer(prompt, add_special_tokens=False)["input_ids"])
    return len(tokenizer(prompt)["input_ids"])


def asked(tokenizer: Any, prompt: str, dataset: Dataset, *, conversational: bool) -> list[int]:
    """Return the tokens of a question that is in no row, asked as the rows are. What the chat template raises is raised
    too."""
    if not conversational:
        return list(tokenizer(prompt)["input_ids"])
    messages = [{"role": "system", "content": dataset.system_prompt}] if dataset.system_prompt else []
    messages.append({"role": "user", "content": prompt})
    text = render(tokenizer, messages, dataset.chat_template_kwargs or {}, add_generation_prompt=True)
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def options(row: Row) -> dict[str, Any]:
    """Return what a shaped row tells the chat template beside its messages."""
    return {"tools": row.get("tools"), **row.get("chat_template_kwargs", {})}


OURS = frozenset({"messages", *inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters})
"""What TRL and this trainer themselves tell the chat template, or transformers."""


def check_options(given: Row | None) -> None:
    """Raise UserError if dataset.chatTemplateKwargs has what is not the job's to say."""
    for name in OURS & (given or {}).keys():
        raise UserError("InvalidSpec", f"dataset.chatTemplateKwargs.{name}: the trainer says that itself: remove it")


def unread_options(tokenizer: Any, given: Row | None, *, conversational: bool) -> list[str]:
    """Return what to say of dataset.chatTemplateKwargs that change nothing."""
    if not given:
        return []
    if not conversational:
        return ["dataset.chatTemplateKwargs: the rows are plain text, and no chat template is used"]
    unread = unknown_options(tokenizer, given)
    return [f"dataset.chatTemplateKwargs: the chat template knows no {', '.join(unread)}"] if unread else []


def unknown_options(tokenizer: Any, given: Row) -> list[str]:
    """Return the names of which the chat template has none."""
    return [name for name in given if name not in str(tokenizer.chat_template)]


def render(tokenizer: Any, messages: Any, given: dict[str, Any], add_generation_prompt: bool) -> str:
    """Return a conversation as text; `given` as `options` returns it."""
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=add_generation_prompt, **given)
    assert isinstance(text, str)
    return text
