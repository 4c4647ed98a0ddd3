"""The type of what differs by kind; each file of stages/ makes one, and `stages.of` finds it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Row = dict[str, Any]


@dataclass(frozen=True)
class Stage:
    """All that the trainer must know of a kind beside its spec (trl_contract.spec says the rest)."""

    method: str
    """What it does, in a few words for the model card."""
    config: type
    """TRL's config class."""
    settings: Callable[[Any], dict[str, Any]]
    """(resolved job) -> keyword arguments of `config` that only this kind has. Pure."""
    trainer: Callable[..., Any]
    """(run, args, tokenizer, data, rewards) -> TRL's trainer, model loaded."""
    shape: Callable[[Row], Row]
    """Makes of a user's row, its columns renamed, the row that TRL reads; raises BadRow."""
    sequences: Callable[[Row, str], list[Any]]
    """(shaped row, end-of-text token) -> what the model sees of it before any cut: texts, or conversations to render.
    Empty where it sees the prompt alone."""
    total_steps: Callable[[Any, int], int | None]
    """(resolved job, training rows) -> optimizer steps; None where only TRL knows. Raises UserError."""
    ready: Callable[[Any, Any], None] = lambda run, trainer: None
    """(run, TRL's trainer, its models sharded): does what is to be done once before training."""
    tokens: tuple[str, ...] = ()
    """Columns of token ids that TRL's preparation makes of a row; none where the trainer takes rows as they are."""
    tokenize: Callable[..., Any] = lambda job, args, tokenizer, rows, split: rows
    """(resolved job, TRL's config, tokenizer, IterableDataset, train or eval) -> the rows as TRL prepares them."""
    pack: Callable[[Any], Callable[[Any], Any] | None] = lambda job: None
    """(resolved job) -> what puts several tokenized rows into one; None where each stays alone."""
    check_row: Callable[[Any, Row], None] = lambda job, row: None
    """(job, shaped row): raises BadRow for a row that this job cannot use."""
    check: Callable[[Any, Any, Any], None] = lambda job, tokenizer, report: None
    """(job, tokenizer, data report): raises UserError for what this kind cannot do with such data."""
    findings: Callable[[Any, Any, Any], list[str]] = lambda job, tokenizer, report: []
    """(job, tokenizer, data report) -> what this kind has to say about such data."""
    task_type: Literal["CAUSAL_LM", "SEQ_CLS"] = "CAUSAL_LM"
    """peft's word for the model; SEQ_CLS is a classifier with one label."""
    adapts_head: bool = True
    """Whether an adapter on the output head would be trained."""
    metrics: tuple[str, ...] = ()
    """What TRL's evaluation may log beside the loss, without eval_; not the rewards of the job."""
    measures: Mapping[str, Callable[[Any], float]] = field(default_factory=dict)
    """Metrics that are ours: (trainer) -> value."""

    @property
    def pads_both_sides(self) -> bool:
        """Whether batches have padding before the prompts, too: where the model goes on from them itself."""
        return not self.tokens

    @property
    def is_classifier(self) -> bool:
        return self.task_type == "SEQ_CLS"
