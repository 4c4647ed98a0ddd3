"""How long the rows are in tokens, and what TRL will do with the long ones."""

from collections import Counter
from typing import Any

import datasets

from trl_contract.base import Model
from trl_contract.jobfile import JobFile
from trl_trainer.data import Tokenize, Written, template
from trl_trainer.data.lines import Lines
from trl_trainer.errors import UserError
from trl_trainer.launch import processes
from trl_trainer.stage import Row, Stage

SAMPLE = 1000
"""So many rows are tokenized at most: a thousand tell the share of long ones to about a percent, in seconds."""


class Lengths(Model):
    """Tokens per row (pairs: of the longer answer with its prompt; grpo: of the prompt), seen in a sample."""

    rows: int
    sampled: int
    p50: int
    p90: int
    p99: int
    longest: int
    histogram: dict[str, int]
    """Rows by length: `<=64`, `<=128` and so on."""
    cut: int = 0
    """Sampled rows that lose their end to training.maxLength."""
    dropped: int = 0
    """Sampled rows that TRL leaves out: nothing of them that would be learnt is within training.maxLength."""
    held_out: int = 0
    """Held-out rows of which that was looked at too."""
    held_out_dropped: int = 0
    """Of these, those that TRL leaves out."""
    held_out_cut: int = 0
    """Of these, those that lose their end."""
    held_out_longest: int = 0

    @property
    def exact(self) -> bool:
        return self.sampled == self.rows

    @property
    def kept(self) -> int:
        """Training rows that are left, as far as the sample tells."""
        return self.rows - round(self.rows * self.dropped / self.sampled)


def measure(job: JobFile, stage: Stage, rows: Written, tokenizer: Any, tokenize: Tokenize) -> Lengths:
    """Return the lengths of up to SAMPLE training rows, evenly spread, and what TRL does with them and as many held-out
    ones: it is asked to prepare them. UserError if no training row is left."""
    sample, held_out = _sample(rows.train), _sample(rows.eval)
    lengths, held_out_lengths = (_lengths(stage, tokenizer, found) for found in (sample, held_out))
    dropped, held_out_dropped = 0, 0
    if stage.tokens:
        dropped = len(sample) - _left(tokenize, sample, "train")
        held_out_dropped = len(held_out) - _left(tokenize, held_out, "eval")
    if dropped == len(sample):
        raise UserError(
            "DataFormatError",
            f"every one of {len(sample)} rows is dropped: nothing of it that would be learnt is within"
            f" training.maxLength ({job.spec.max_length}); the longest has {max(lengths)} tokens: raise it",
        )
    cut = _cut(job, lengths, dropped) if job.spec.cuts_rows else 0
    found = _summary(lengths, len(rows.train), cut=cut, dropped=dropped)
    return found.model_copy(
        update={
            "held_out": len(held_out),
            "held_out_dropped": held_out_dropped,
            "held_out_cut": _cut(job, held_out_lengths, held_out_dropped),
            "held_out_longest": max(held_out_lengths, default=0),
        }
    )


def _lengths(stage: Stage, tokenizer: Any, rows: list[Row]) -> list[int]:
    """Return the tokens of the longest sequence of each row."""
    prompts = [len(ids) for ids in tokenized(tokenizer, [prompt(row) for row in rows])]
    wholes = [stage.sequences(row, tokenizer.eos_token or "") for row in rows]
    flat = iter(tokenized(tokenizer, [text for texts in wholes for text in texts]))
    return [max((len(next(flat)) for _ in texts), default=alone) for texts, alone in zip(wholes, prompts, strict=True)]


def _cut(job: JobFile, lengths: list[int], dropped: int) -> int:
    longer = sum(length > (job.spec.max_length or length) for length in lengths)
    return max(0, longer - dropped)


def _sample(rows: Lines) -> list[Row]:
    number = min(len(rows), SAMPLE)
    return rows.take(i * len(rows) // number for i in range(number))


def _left(tokenize: Tokenize, rows: list[Row], split: str) -> int:
    """Return how many rows are left when TRL has prepared them, in processes that do nothing else."""

    def left(share: list[Row]) -> bytes:
        given = datasets.IterableDataset.from_generator(lambda: iter(share))
        return sum(1 for _ in tokenize(given, split)).to_bytes(4)

    number = processes.cpus()
    shares = [share for begin in range(number) if (share := rows[begin::number])]
    return sum(map(int.from_bytes, processes.in_parallel(left, shares, number)))


def _summary(lengths: list[int], total: int, cut: int, dropped: int) -> Lengths:
    ordered = sorted(lengths)
    bounds = Counter(1 << max(length - 1, 1).bit_length() for length in lengths)
    return Lengths(
        rows=total,
        sampled=len(ordered),
        p50=_percentile(ordered, 50),
        p90=_percentile(ordered, 90),
        p99=_percentile(ordered, 99),
        longest=ordered[-1],
        histogram={f"<={bound}": bounds[bound] for bound in sorted(bounds)},
        cut=cut,
        dropped=dropped,
    )


def _percentile(ordered: list[int], percent: int) -> int:
    """Return the smallest value that at least `percent` % of the values do not exceed."""
    return ordered[-(-len(ordered) * percent // 100) - 1]


def tokenized(tokenizer: Any, texts: list[Any]) -> list[list[int]]:
    """Return the tokens of each text or conversation (of `whole` and `prompt`), as TRL sees them."""
    plain = [text for text in texts if isinstance(text, str)]
    rendered = [
        template.render(tokenizer, messages, given, add_generation_prompt=generate)
        for messages, given, generate in (text for text in texts if not isinstance(text, str))
    ]
    ids: list[list[int]] = tokenizer(plain)["input_ids"] if plain else []
    if rendered:
        ids = [*ids, *tokenizer(rendered, add_special_tokens=False)["input_ids"]]
    assert not (plain and rendered), "a data set has one form"
    return ids


def prompt(row: dict[str, Any]) -> Any:
    """Return the prompt of a row as the model sees it; an empty text without one."""
    given = row.get("prompt", "")
    return (given, template.options(row), True) if isinstance(given, list) else given


def whole(row: dict[str, Any], eos: str) -> list[Any]:
    """Return the sequences that the model sees of a row; TRL ends plain text with the end-of-text token."""
    if "messages" in row:
        return [(row["messages"], template.options(row), False)]
    if "text" in row:
        return [row["text"].removesuffix(eos) + eos]
    asked = row.get("prompt", "")
    answers = [row[name] for name in ("completion", "chosen", "rejected") if name in row]
    if isinstance(answers[0], list):
        return [(asked + answer, template.options(row), False) for answer in answers]
    return [asked + answer.removesuffix(eos) + eos for answer in answers]
