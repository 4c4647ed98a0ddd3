"""What the tokenizer's chat template makes of a shaped row."""

from typing import Any

from jinja2 import TemplateError

from trl_trainer.data.rows import BadRow, conversational
from trl_trainer.errors import UserError
from trl_trainer.stage import Row


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
    if "messages" in row:
        texts = [row["messages"]]
    else:
        texts = [row["prompt"] + row[name] for name in ("completion", "chosen", "rejected") if name in row]
    try:
        for messages in texts or [row["prompt"]]:
            render(tokenizer, messages, options(row), add_generation_prompt=not texts)
    except (TemplateError, TypeError, ValueError) as error:
        raise BadRow(f"the chat template refuses it: {error}") from error


def prompt_length(tokenizer: Any, row: Row) -> int:
    """Return the number of tokens of the row's prompt as TRL will see it."""
    prompt = row["prompt"]
    if isinstance(prompt, list):
        prompt = render(tokenizer, prompt, options(row), add_generation_prompt=True)
        return len(tokenizer(prompt, add_special_tokens=False)["input_ids"])
    return len(tokenizer(prompt)["input_ids"])


def options(row: Row) -> dict[str, Any]:
    """Return what a row tells the chat template beside its messages. A prompt alone is grpo's, where TRL takes
    chat_template_kwargs for a column of the rewards."""
    has_answer = any(name in row for name in ("messages", "completion", "chosen"))
    return {"tools": row.get("tools"), **(row.get("chat_template_kwargs", {}) if has_answer else {})}


def render(tokenizer: Any, messages: Any, given: dict[str, Any], add_generation_prompt: bool) -> str:
    """Return a conversation as text; `given` as `options` returns it."""
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=add_generation_prompt, **given)
    assert isinstance(text, str)
    return text
