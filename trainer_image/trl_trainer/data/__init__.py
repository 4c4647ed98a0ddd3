"""The job's rows: read from any source, checked, shaped for TRL, split, and written down once for all ranks."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets

from trl_contract.jobfile import JobFile
from trl_trainer.data.prepare import prepare
from trl_trainer.data.report import ColumnType, DataReport
from trl_trainer.stage import Stage

__all__ = ["Data", "DataReport", "load"]


@dataclass(frozen=True)
class Data:
    """What the trainer trains and evaluates on; the same on every rank."""

    train: datasets.Dataset
    eval: datasets.Dataset | None
    report: DataReport


def load(job: JobFile, stage: Stage, tokenizer: Any, work: Path, rank: int) -> Data:
    """Return the job's rows in TRL's form. Rank 0 must come first: it writes `<work>/data`, the others read that.

    Raises UserError: DatasetNotFound, AccessDenied, InvalidSpec, or DataFormatError with the file, the row and why.
    """
    folder = work / "data"
    if rank == 0:
        report = prepare(job, stage, tokenizer, folder)
    else:
        report = DataReport.model_validate_json((folder / "report.json").read_text())
    train = _dataset(folder, "train", report.digest, report.columns)
    held_out = _dataset(folder, "eval", report.eval_digest, report.columns) if report.eval else None
    return Data(train=train, eval=held_out, report=report)


def _dataset(folder: Path, name: str, digest: str, columns: dict[str, ColumnType]) -> datasets.Dataset:
    # Not load_dataset("json"): it guesses types from the first rows and turns text like 2026-01-31 into a timestamp.
    # The digest is part of the cache's key: other rows at the same path are another data set.
    return datasets.Dataset.from_generator(
        _read,
        features=datasets.Features({column: _feature(kind) for column, kind in columns.items()}),
        # A tuple: from_generator takes a list for shards and runs the generator once for each.
        gen_kwargs={"path": str(folder / f"{name}.jsonl"), "columns": tuple(columns), "digest": digest},
        cache_dir=str(folder / "cache"),
        split=name,
    )


def _read(path: str, columns: tuple[str, ...], digest: str) -> Iterator[dict[str, Any]]:
    with open(path, encoding="utf-8") as file:
        for line in file:
            row = json.loads(line)
            yield {column: row.get(column) for column in columns}


def _feature(kind: ColumnType) -> Any:
    value = {"text": "string", "integer": "int64", "number": "float64", "boolean": "bool"}.get(kind)
    if value is not None:
        return datasets.Value(value)
    if kind == "messages":
        return datasets.List({"role": datasets.Value("string"), "content": datasets.Value("string")})
    return datasets.Json()
