"""The usable rows of a source, checked and shaped, as JSON lines; what is left out is counted."""

import json
from collections import Counter
from collections.abc import Iterator
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

from trl_contract.jobfile import JobFile
from trl_contract.sources import DataSource, MixtureSource
from trl_trainer.data import rows, sources, template, turns
from trl_trainer.data.preparation import Tell
from trl_trainer.data.report import ColumnType, SourceReport
from trl_trainer.data.turns import BadRow
from trl_trainer.errors import UserError
from trl_trainer.launch.network import hub_token
from trl_trainer.stage import Row, Stage

MAX_UNREAD = 20
"""So many columns that nothing reads are named."""


class UsableRows:
    """The usable rows of a job as JSON lines; counts on the way what is dropped."""

    def __init__(self, job: JobFile, stage: Stage, tokenizer: Any, tell: Tell) -> None:
        self._job = job
        self._stage = stage
        self._dataset = job.spec.dataset
        self._tokenizer = tokenizer
        self._tell = tell
        self._max_prompt_length: int | None = getattr(job.spec.dataset, "max_prompt_length", None)
        template.check_options(self._dataset.chat_template_kwargs)
        self._columns: dict[str, ColumnType] = {}
        self._form: str | None = None
        self.mixed: list[SourceReport] = []
        """The sources of a mixture that have been read."""
        self._bad = self._long_prompts = self._empty_answers = 0
        self._first_bad: str | None = None
        self._calls = False
        """Whether a row had tool calls, which the chat template renders."""
        self._unread: Counter[str] = Counter()
        self._formats: Counter[str] = Counter()

    def counts(self) -> dict[str, Any]:
        return {
            "form": self._form,
            "columns": self._columns,
            "bad": self._bad,
            "first_bad": self._first_bad,
            "long_prompts": self._long_prompts,
            "empty_answers": self._empty_answers,
            "unread": dict(sorted(self._unread.items())[:MAX_UNREAD]),
            "formats": dict(self._formats),
        }

    def train(self, folder: Path) -> Iterator[bytes]:
        """Yield the training rows, dataset.maxExamples at most; of a mixture, those of each source after the other.
        `folder` is for what is downloaded."""
        if self._dataset.train is not None:
            limit = self._dataset.max_examples
            source = self._open(self._dataset.train, self._job.paths.train, "train", folder, limit)
            yield from islice(self._usable("dataset.train", *source), limit)
        for i, one in enumerate(self._dataset.mixture or []):
            yield from self._mixed(f"dataset.mixture[{i}]", one, self._job.paths.mixture.get(str(i)), folder)

    def _mixed(self, field: str, source: MixtureSource, path: str | None, folder: Path) -> Iterator[bytes]:
        name, numbered = self._open(source, path, "train", folder, source.max_examples)
        bad, long_prompts, count = self._bad, self._long_prompts, 0
        for line in islice(self._usable(field, f"{field} {name}", numbered), source.max_examples):
            count += 1
            yield line
        self.mixed.append(
            SourceReport(
                name=name,
                weight=source.weight,
                rows=count,
                bad=self._bad - bad,
                long_prompts=self._long_prompts - long_prompts,
            )
        )

    def eval(self, folder: Path) -> Iterator[bytes]:
        """Yield the held-out rows of a source of their own, evaluation.maxExamples at most."""
        assert self._dataset.eval is not None, "the job has held-out rows of its own"
        limit = self._job.spec.evaluation.max_examples
        source = self._open(self._dataset.eval, self._job.paths.eval, "test", folder, limit)
        return islice(self._usable("dataset.eval", *source), limit)

    def _open(
        self, source: DataSource, path: str | None, split: str, folder: Path, limit: int | None
    ) -> tuple[str, Iterator[sources.Numbered]]:
        return sources.open_source(source, path, split, folder, limit, hub_token(self._job.spec, source.hub))

    def _usable(self, field: str, name: str, numbered: Iterator[sources.Numbered]) -> Iterator[bytes]:
        read = usable = bad = 0
        first_bad = ""
        for number, row in numbered:
            read += 1
            if read % 100 == 0:
                self._tell("reading", read)
            try:
                line = self._line(row)
            except BadRow as error:
                bad += 1
                first_bad = first_bad or f"row {number}: {error}"
                self._count_bad(f"{name}, row {number}: {error}")
                continue
            if line is not None:
                usable += 1
                yield line
        if read == 0:
            raise UserError("DataFormatError", f"{field}: {name} is empty")
        if usable == 0:
            why = [f"{bad} are malformed, the first in {first_bad}"] if bad else []
            if read > bad:
                why.append(f"{read - bad} have a prompt over dataset.maxPromptLength ({self._max_prompt_length})")
            raise UserError("DataFormatError", f"{field}: none of the {read} rows of {name} is left: {'; '.join(why)}")

    def _line(self, row: Row | BadRow) -> bytes | None:
        """Return the JSON line of a row; None if its prompt is too long. Raises BadRow."""
        if isinstance(row, BadRow):
            raise row
        if isinstance(row, sources.ArrowRow):
            row = rows.without_nulls(row, self._dataset.columns)
        dataset = self._dataset
        taken_for, row, dropped = rows.read(row, dataset.columns, dataset.format)
        shaped = rows.shape(
            self._stage.shape, row, dataset.system_prompt, dataset.as_conversation, dataset.chat_template_kwargs
        )
        if rows.has_calls(shaped) and self._takes_text_arguments:
            shaped = rows.with_text_arguments(shaped)
        self._stage.check_row(self._job, shaped)
        line, form = _encode(shaped), rows.form(shaped)
        if self._form is not None and form != self._form:
            raise BadRow(f"has {form}, but the rows before have {self._form}")
        template.check(self._tokenizer, shaped)
        self._calls = self._calls or template.check_calls(self._tokenizer, shaped)
        limit = self._max_prompt_length
        if limit is not None and template.prompt_length(self._tokenizer, shaped) > limit:
            self._long_prompts += 1
            return None
        self._form = form
        self._empty_answers += any(rows.is_blank(answer) for answer in rows.answers(shaped))
        self._formats[taken_for] += 1
        unread = {*dropped, *rows.unread(row, shaped, dataset.columns or {})}
        if "chat_template_kwargs" in shaped:
            told = turns.template_kwargs(row.get("chat_template_kwargs", {}))
            unread |= {f"chat_template_kwargs.{name}" for name in template.unknown_options(self._tokenizer, told)}
        self._unread.update(unread)
        for column, value in shaped.items():
            # That is for the chat template, and for no reward.
            if column != "chat_template_kwargs":
                merge_type(self._columns, column, value)
        return line

    @cached_property
    def _takes_text_arguments(self) -> bool:
        return bool(self._tokenizer.chat_template) and template.takes_text_arguments(self._tokenizer)

    def _count_bad(self, text: str) -> None:
        self._bad += 1
        self._first_bad = self._first_bad or text
        allowed = self._dataset.max_bad_rows
        if self._bad > allowed:
            more = f" ({self._bad} bad rows so far, dataset.maxBadRows is {allowed})" if allowed else ""
            raise UserError("DataFormatError", self._first_bad + more)


def _encode(row: Row) -> bytes:
    for column, value in row.items():
        if isinstance(value, bytes):
            raise BadRow(f"{column} is bytes; only what JSON can say is usable: leave the column out")
    try:
        # Dates, decimals and the like of parquet files become text.
        line = json.dumps(row, ensure_ascii=False, allow_nan=False, default=str).encode() + b"\n"
    except UnicodeEncodeError as error:
        raise BadRow(f"has half of a surrogate pair, which is no character: {error.reason}") from error
    except (ValueError, RecursionError) as error:
        raise BadRow(f"cannot be written as JSON: {error}") from error
    if len(line) > sources.MAX_ROW_BYTES:
        raise BadRow(f"is longer than {sources.MAX_ROW_BYTES // 2**20} MiB")
    return line


def merge_type(columns: dict[str, ColumnType], column: str, value: Any) -> None:
    """Widen the type of `column` so that it can hold `value`."""
    if value is None:
        return
    new, old = _type_of(value), columns.get(column)
    if old is None or old == new:
        columns[column] = new
    elif {old, new} == {"integer", "number"}:
        columns[column] = "number"
    else:
        columns[column] = "json"


def _type_of(value: Any) -> ColumnType:
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int):
        return "integer" if -(2**63) <= value < 2**63 else "json"
    if isinstance(value, float):
        return "number"
    if isinstance(value, list) and value and all(_is_plain_message(item) for item in value):
        return "messages"
    return "json" if isinstance(value, list | dict) else "text"


def _is_plain_message(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and value.keys() == {"role", "content"}
        and all(isinstance(text, str) for text in value.values())
    )
