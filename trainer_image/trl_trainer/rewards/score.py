"""What goes into a scorer and what comes out."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from trl_trainer.errors import TrainerError

Completion = str | list[dict[str, Any]]
Score = float | str | None
"""A number, why there is none, or nothing: this reward does not judge this completion."""


@dataclass(frozen=True)
class Batch:
    """One rank's completions of one generation step; all lists have one entry per completion."""

    prompts: list[Completion]
    completions: list[Completion]
    columns: dict[str, list[Any]]
    """The other columns of the data."""
    ids: list[list[int]] = field(default_factory=list)
    """The completions' tokens; none where they are made up."""

    @property
    def texts(self) -> list[str]:
        """What the model said: the completions, or the contents of their assistant turns."""
        return [text_of(completion) for completion in self.completions]


Scorer = Callable[[Batch], list[Score]]
"""Returns one score per completion; whatever it raises concerns all of them."""


def text_of(completion: Completion) -> str:
    if isinstance(completion, str):
        return completion
    return "\n".join(message.get("content") or "" for message in completion if message["role"] == "assistant")


def in_column(batch: Batch, name: str) -> list[Any]:
    """Return the values of a column; TrainerError (RewardError) if the data have no such column."""
    if name not in batch.columns:
        raise TrainerError(
            "RewardError", f"the data have no column {name}; they have {', '.join(batch.columns) or 'none'}"
        )
    return batch.columns[name]
