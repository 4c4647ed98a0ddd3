"""The job's rows: read from any source, checked, shaped for TRL, split, and written down once for all ranks."""

import hashlib
import json
import os
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets

from trl_contract.base import Model
from trl_contract.jobfile import JobFile
from trl_contract.sources import DataSource
from trl_trainer.data import rows, sources
from trl_trainer.data.rows import BadRow
from trl_trainer.errors import UserError


class DataReport(Model):
    """What became of the rows; all counts are of rows."""

    form: str
    """Columns and whether they are conversations, for example `prompt, chosen, rejected (conversations)`."""
    train: int
    eval: int
    bad: int = 0
    """Rows dropped because they are malformed, at most dataset.maxBadRows."""
    first_bad: str | None = None
    """The first of them: file, row number and why."""
    duplicates: int = 0
    """Rows equal to an earlier one; they are kept."""
    shared: int = 0
    """Held-out rows that also occur in the training rows."""
    empty_answers: int = 0
    """Rows with an answer without a visible character; they are kept."""
    long_prompts: int = 0
    """Rows dropped because the prompt has more than dataset.maxPromptLength tokens."""
    digest: str
    """sha256:<hex> of the training rows as they are trained on."""


@dataclass(frozen=True)
class Data:
    """What the trainer trains and evaluates on; the same on every rank."""

    train: datasets.Dataset
    eval: datasets.Dataset | None
    report: DataReport


def load(job: JobFile, tokenizer: Any, work: Path, rank: int) -> Data:
    """Return the job's rows in TRL's form. Rank 0 must come first: it writes `<work>/data`, the others read that.

    Raises UserError: DatasetNotFound, AccessDenied or DataFormatError with the file, the row's number and why.
    """
    folder = work / "data"
    if rank == 0:
        _write(job, tokenizer, folder)
    report = DataReport.model_validate_json((folder / "report.json").read_text())
    files = {"train": str(folder / "train.jsonl")} | ({"eval": str(folder / "eval.jsonl")} if report.eval else {})
    loaded = datasets.load_dataset("json", data_files=files, cache_dir=str(folder / "cache"))
    return Data(train=loaded["train"], eval=loaded.get("eval"), report=report)


class _Counts:
    """What is counted while the rows pass by."""

    def __init__(self) -> None:
        self.bad = self.duplicates = self.empty_answers = self.long_prompts = 0
        self.first_bad: str | None = None
        self.form: str | None = None


def _write(job: JobFile, tokenizer: Any, folder: Path) -> None:
    dataset, evaluation = job.spec.dataset, job.spec.evaluation
    counts = _Counts()
    folder.mkdir(parents=True, exist_ok=True)
    all_rows = folder / "rows.tmp"
    total = _store(job, tokenizer, dataset.train, job.paths.train, "train", dataset.max_examples, counts, all_rows)
    held_out: set[int] = set()
    if not evaluation.enabled:
        (folder / "eval.jsonl").unlink(missing_ok=True)
        evals = 0
    elif dataset.eval is not None:
        evals = _store(
            job, tokenizer, dataset.eval, job.paths.eval, "eval", evaluation.max_examples, counts, folder / "eval.jsonl"
        )
    else:
        evals = min(round(total * dataset.eval_split), evaluation.max_examples)
        held_out = set(random.Random(dataset.seed).sample(range(total), evals))
    digest = hashlib.sha256()
    with (
        all_rows.open("rb") as source,
        (folder / "train.tmp").open("wb") as train,
        (folder / "eval.tmp").open("wb") as held,
    ):
        for i, line in enumerate(source):
            if i in held_out:
                held.write(line)
            else:
                digest.update(line)
                train.write(line)
    if held_out:
        os.replace(folder / "eval.tmp", folder / "eval.jsonl")
    os.replace(folder / "train.tmp", folder / "train.jsonl")
    all_rows.unlink()
    report = DataReport(
        form=counts.form or "",
        train=total - len(held_out),
        eval=evals,
        bad=counts.bad,
        first_bad=counts.first_bad,
        duplicates=counts.duplicates,
        empty_answers=counts.empty_answers,
        digest=f"sha256:{digest.hexdigest()}",
    )
    (folder / "report.json").write_text(report.model_dump_json(by_alias=True))


def _store(
    job: JobFile,
    tokenizer: Any,
    source: DataSource,
    path: str | None,
    split: str,
    limit: int | None,
    counts: _Counts,
    target: Path,
) -> int:
    dataset = job.spec.dataset
    name, numbered = _open(source, path, split, target.parent)
    written = 0
    with target.open("wb") as out:
        for number, row in numbered:
            try:
                if isinstance(row, BadRow):
                    raise row
                shaped = rows.shape(job.kind, row, dataset.columns, dataset.system_prompt)
                line = json.dumps(shaped, ensure_ascii=False).encode() + b"\n"
            except (BadRow, UnicodeEncodeError) as error:
                counts.bad += 1
                counts.first_bad = counts.first_bad or f"{name}, row {number}: {error}"
                if counts.bad > dataset.max_bad_rows:
                    raise UserError("DataFormatError", counts.first_bad) from error
                continue
            counts.form = counts.form or rows.form(shaped)
            out.write(line)
            written += 1
            if written == limit:
                break
    if not written:
        raise UserError("DataFormatError", f"{name} has no usable rows")
    return written


def _open(source: DataSource, path: str | None, split: str, folder: Path) -> tuple[str, Iterator[sources.Numbered]]:
    if source.hub is not None:
        return source.hub.repo, sources.read_hub(source.hub, "train" if split == "train" else "test", folder / "hub")
    assert path is not None, f"the launcher gave no path for dataset.{split}"
    return Path(path).name, sources.read_file(Path(path))
