"""How long the rows are in tokens, and what TRL will do with the long ones."""

from collections import Counter
from typing import Any

from trl_contract.base import Model
from trl_contract.jobfile import JobFile
from trl_trainer.data import DataReport, template
from trl_trainer.data.lines import Lines
from trl_trainer.stage import Stage

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
    """Sampled rows that TRL leaves out because of training.maxLength."""

    @property
    def exact(self) -> bool:
        return self.sampled == self.rows

    @property
    def kept(self) -> int:
        """Training rows that are left, as far as the sample tells."""
        return self.rows - round(self.rows * self.dropped / self.sampled)


def measure(job: JobFile, stage: Stage, rows: Lines, report: DataReport, tokenizer: Any) -> Lengths:
    """Return the lengths of up to SAMPLE rows of a data set, evenly spread, and what TRL 1.16 does with them.

    sft cuts at training.maxLength, and drops a row of which only prompt is left when the loss is on completions;
    reward drops a pair with an answer over it; dpo drops a pair whose prompt alone fills it and cuts the others.
    """
    max_length = job.spec.max_length
    total = len(rows)
    number = min(total, SAMPLE)
    sample = rows.take(i * total // number for i in range(number))
    prompts = _tokens(tokenizer, [_prompt(row) for row in sample])
    wholes = [stage.sequences(row, tokenizer.eos_token or "") for row in sample]
    flat = iter(_tokens(tokenizer, [text for texts in wholes for text in texts]))
    lengths = [max((next(flat) for _ in texts), default=prompt) for texts, prompt in zip(wholes, prompts, strict=True)]
    dropped = cut = 0
    for prompt, length in zip(prompts, lengths, strict=True):
        if max_length is None or length <= max_length:
            continue
        if stage.drops(job, report, prompt >= max_length):
            dropped += 1
        else:
            cut += 1
    return _summary(lengths, total, cut, dropped)


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


def _tokens(tokenizer: Any, texts: list[Any]) -> list[int]:
    """Return the number of tokens of each text or rendered conversation, as TRL counts them."""
    plain = [text for text in texts if isinstance(text, str)]
    rendered = [
        template.render(tokenizer, messages, given, add_generation_prompt=generate)
        for messages, given, generate in (text for text in texts if not isinstance(text, str))
    ]
    counts = [len(ids) for ids in tokenizer(plain)["input_ids"]] if plain else []
    if rendered:
        counts += [len(ids) for ids in tokenizer(rendered, add_special_tokens=False)["input_ids"]]
    assert not (plain and rendered), "a data set has one form"
    return counts


def _prompt(row: dict[str, Any]) -> Any:
    prompt = row.get("prompt", "")
    return (prompt, template.options(row), True) if isinstance(prompt, list) else prompt


def whole(row: dict[str, Any], eos: str) -> list[Any]:
    """Return the sequences that the model sees of a row; TRL ends plain text with the end-of-text token."""
    if "messages" in row:
        return [(row["messages"], template.options(row), False)]
    if "text" in row:
        return [row["text"].removesuffix(eos) + eos]
    prompt = row.get("prompt", "")
    answers = [row[name] for name in ("completion", "chosen", "rejected") if name in row]
    if isinstance(answers[0], list):
        return [(prompt + answer, template.options(row), False) for answer in answers]
    return [prompt + answer.removesuffix(eos) + eos for answer in answers]
