"""Rank 0's part: passes over the rows once, checks and shapes each, and writes what all ranks will read."""

import hashlib
import json
import os
import random
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from trl_contract.jobfile import JobFile
from trl_trainer.data import rows, sources, template
from trl_trainer.data.report import ColumnType, DataReport
from trl_trainer.data.rows import BadRow
from trl_trainer.errors import UserError
from trl_trainer.files import write_whole
from trl_trainer.stage import Row, Stage


def prepare(job: JobFile, stage: Stage, tokenizer: Any, folder: Path) -> DataReport:
    """Write train.jsonl, eval.jsonl (perhaps empty) and report.json into `folder` and return the report.

    What an earlier attempt wrote is kept when nothing that it depends on has changed, so that a branch that moves on
    the hub does not change the data of a running job. Raises UserError.
    """
    fingerprint = _fingerprint(job)
    before = _earlier(folder)
    if before is not None and before.fingerprint == fingerprint and _is_whole(folder, before):
        return before
    folder.mkdir(parents=True, exist_ok=True)
    counts = _write(job, stage, tokenizer, folder)
    digest = _digest(folder / "train.jsonl")
    report = DataReport(
        **counts,
        digest=digest,
        eval_digest=_digest(folder / "eval.jsonl"),
        changed=before is not None and before.digest != digest,
        fingerprint=fingerprint,
    )
    write_whole(folder / "report.json", report.model_dump_json(by_alias=True, indent=2))
    return report


def _fingerprint(job: JobFile) -> str:
    """Return a digest of all that the rows depend on; a hub data set is taken to stay what it was."""
    files = [os.stat(path) for path in (job.paths.train, job.paths.eval) if path is not None and os.path.exists(path)]
    spec = job.spec.to_wire()
    parts = [job.kind, spec["model"], spec["dataset"], spec["evaluation"], [(f.st_size, f.st_mtime_ns) for f in files]]
    return f"sha256:{hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()}"


def _earlier(folder: Path) -> DataReport | None:
    path = folder / "report.json"
    return DataReport.model_validate_json(path.read_text()) if path.exists() else None


def _is_whole(folder: Path, report: DataReport) -> bool:
    """Return whether the files are those of the report: a crash of the node may have cut them."""
    wanted = {"train.jsonl": report.digest, "eval.jsonl": report.eval_digest}
    return all((folder / name).exists() and _digest(folder / name) == digest for name, digest in wanted.items())


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"


def _write(job: JobFile, stage: Stage, tokenizer: Any, folder: Path) -> dict[str, Any]:
    """Write both files; return the report's counts."""
    dataset, evaluation = job.spec.dataset, job.spec.evaluation
    rows_of = _Rows(job, stage, tokenizer)
    everything, train, held = folder / "rows.tmp", folder / "train.jsonl", folder / "eval.jsonl"
    total = _write_lines(everything, islice(rows_of.train(folder), dataset.max_examples))
    held_out: set[int] = set()
    if evaluation.enabled and dataset.eval is not None:
        evals = _write_lines(held, islice(rows_of.eval(folder), evaluation.max_examples))
    else:
        evals = num_held_out(total, dataset.eval_split, evaluation.max_examples) if evaluation.enabled else 0
        held_out = set(random.Random(dataset.seed).sample(range(total), evals))
        _write_lines(held, (line for i, line in enumerate(_lines(everything)) if i in held_out))
    _write_lines(train, (line for i, line in enumerate(_lines(everything)) if i not in held_out))
    everything.unlink()
    seen = {hash(line) for line in _lines(train)}
    return {
        **rows_of.counts(),
        "train": total - len(held_out),
        "eval": evals,
        "duplicates": total - len(held_out) - len(seen),
        "shared": sum(hash(line) in seen for line in _lines(held)),
    }


def num_held_out(total: int, share: float, limit: int) -> int:
    """Return how many of `total` rows are held out: the share, rounded, but one at least and `limit` at most."""
    return 0 if share == 0 or total < 2 else min(max(1, round(total * share)), limit)


def _write_lines(path: Path, lines: Iterable[bytes]) -> int:
    """Write the lines at once or not at all; return their number."""
    temporary = path.with_suffix(".part")
    number = 0
    with temporary.open("wb") as file:
        for line in lines:
            number += 1
            file.write(line)
    os.replace(temporary, path)
    return number


def _lines(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        yield from file


class _Rows:
    """The usable rows of a job as JSON lines; counts on the way what is dropped."""

    def __init__(self, job: JobFile, stage: Stage, tokenizer: Any) -> None:
        self._job = job
        self._stage = stage
        self._dataset = job.spec.dataset
        self._tokenizer = tokenizer
        self._max_prompt_length: int | None = getattr(job.spec.dataset, "max_prompt_length", None)
        self._columns: dict[str, ColumnType] = {}
        self._form: str | None = None
        self._bad = self._long_prompts = self._empty_answers = 0
        self._first_bad: str | None = None

    def counts(self) -> dict[str, Any]:
        return {
            "form": self._form,
            "columns": self._columns,
            "bad": self._bad,
            "first_bad": self._first_bad,
            "long_prompts": self._long_prompts,
            "empty_answers": self._empty_answers,
        }

    def train(self, folder: Path) -> Iterator[bytes]:
        return self._usable("train", *sources.open_source(self._dataset.train, self._job.paths.train, "train", folder))

    def eval(self, folder: Path) -> Iterator[bytes]:
        assert self._dataset.eval is not None, "the job has held-out rows of its own"
        return self._usable("eval", *sources.open_source(self._dataset.eval, self._job.paths.eval, "test", folder))

    def _usable(self, field: str, name: str, numbered: Iterator[sources.Numbered]) -> Iterator[bytes]:
        read = usable = 0
        for number, row in numbered:
            read += 1
            try:
                line = self._line(row)
            except BadRow as error:
                self._count_bad(f"{name}, row {number}: {error}")
                continue
            if line is not None:
                usable += 1
                yield line
        if read == 0:
            raise UserError("DataFormatError", f"dataset.{field}: {name} is empty")
        if usable == 0:
            raise UserError(
                "DataFormatError",
                f"dataset.{field}: none of the {read} rows of {name} is left: {self._bad} are malformed and"
                f" {self._long_prompts} have a prompt over dataset.maxPromptLength ({self._max_prompt_length})",
            )

    def _line(self, row: Row | BadRow) -> bytes | None:
        """Return the JSON line of a row; None if its prompt is too long. Raises BadRow."""
        if isinstance(row, BadRow):
            raise row
        shaped = rows.shape(self._stage.shape, row, self._dataset.columns, self._dataset.system_prompt)
        line = _encode(shaped)
        if self._form is not None and rows.form(shaped) != self._form:
            raise BadRow(f"has {rows.form(shaped)}, but the rows before have {self._form}")
        template.check(self._tokenizer, shaped)
        limit = self._max_prompt_length
        if limit is not None and template.prompt_length(self._tokenizer, shaped) > limit:
            self._long_prompts += 1
            return None
        self._form = rows.form(shaped)
        self._empty_answers += any(rows.is_blank(answer) for answer in rows.answers(shaped))
        for column, value in shaped.items():
            merge_type(self._columns, column, value)
        return line

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
