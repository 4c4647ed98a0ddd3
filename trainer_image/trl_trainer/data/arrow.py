"""Rank 0's second part: the rows as Arrow, as TRL's trainer takes them, made once in the job's life, in parallel."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import datasets
import numpy
import pyarrow  # type: ignore[import-untyped]

from trl_contract.base import Model
from trl_contract.jobfile import JobFile
from trl_trainer.data.lines import PART, Lines, read_part
from trl_trainer.data.preparation import Tell, untold
from trl_trainer.data.report import ColumnType, DataReport
from trl_trainer.data.write import Written
from trl_trainer.errors import UserError
from trl_trainer.files import fsync, write_whole
from trl_trainer.launch import processes
from trl_trainer.stage import Row, Stage

Tokenize = Callable[[Any, str], Iterator[Row]]
"""(IterableDataset, train or eval) -> the rows with the stage's columns of tokens; some may be left out."""

MANIFEST = "manifest.json"
SEQUENCES = ("prompt_ids", "input_ids", "chosen_ids", "rejected_ids")
VERSIONS = ("trl", "transformers", "tokenizers", "datasets")


@dataclass(frozen=True)
class Data:
    """What the trainer trains and evaluates on, mapped from the storage volume; the same on every rank."""

    train: datasets.Dataset
    eval: datasets.Dataset | None
    report: DataReport


class Manifest(Model):
    """Of a folder that is whole: the rows of its files, and what became of the job's rows on the way to them."""

    train: int
    eval: int
    report: DataReport


def build(
    job: JobFile, stage: Stage, tokenizer: Any, tokenize: Tokenize, written: Written, folder: Path, tell: Tell = untold
) -> str:
    """Make train.arrow and eval.arrow in a folder of their own below `folder` and return its name, for `load`.

    The name is a digest of all that they depend on: if it is there, nothing is made. A folder that a crash cut short is
    never taken, since it gets its name when all of it is on disk. Raises UserError when no training row is left.
    """
    name = f"rows-{_digest(job, stage, tokenizer, written)}"
    if (folder / name / MANIFEST).exists():
        return name
    part = folder / f"{name}.part"
    for old in (part, *folder.glob("rows-*")):
        shutil.rmtree(old, ignore_errors=True)
    part.mkdir()
    make = _Maker(stage, tokenize, written.report.columns)
    total, done = len(written.train) + len(written.eval), 0
    rows: dict[str, int] = {}
    for split, lines in (("train", written.train), ("eval", written.eval)):
        rows[split] = 0
        for count, made in make.file(part, split, lines):
            rows[split], done = rows[split] + made, done + count
            tell("tokenizing", done, total)
    if rows["train"] == 0:
        raise UserError(
            "DataFormatError",
            f"dataset.train: TRL leaves out every one of {len(written.train)} rows: nothing of it that would be learnt"
            f" is within training.maxLength ({job.spec.max_length}); raise it",
        )
    pack = stage.pack(job)
    if pack is not None:
        rows["train"] = _pack(pack, part)
    write_whole(part / MANIFEST, Manifest(**rows, report=written.report).model_dump_json(by_alias=True, indent=2))
    os.replace(part, folder / name)
    fsync(folder)
    return name


def load(folder: Path) -> Data:
    """Return the rows of a folder that `build` made."""
    known = Manifest.model_validate_json((folder / MANIFEST).read_text())
    # Columns and types are in the file; the data set's fingerprint comes of its path and time, on every rank the same.
    train, held_out = (datasets.Dataset.from_file(str(folder / name)) for name in ("train.arrow", "eval.arrow"))
    return Data(train, held_out if known.eval else None, known.report)


def _digest(job: JobFile, stage: Stage, tokenizer: Any, written: Written) -> str:
    parts = [
        job.kind,
        stage.settings(job),
        written.report.columns,
        written.report.train_file.digest,
        written.report.eval_file.digest,
        _tokenizer_digest(tokenizer),
        [version(package) for package in VERSIONS],
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _tokenizer_digest(tokenizer: Any) -> str:
    """Return a digest of the tokenizer's files, chat template included, as save_pretrained writes them."""
    found = hashlib.sha256()
    with tempfile.TemporaryDirectory() as folder:
        for path in sorted(tokenizer.save_pretrained(folder)):
            if os.path.exists(path):
                found.update(os.path.basename(path).encode() + Path(path).read_bytes())
    return found.hexdigest()


class _Maker:
    """Makes Arrow of rows, in as many processes as there are CPUs."""

    def __init__(self, stage: Stage, tokenize: Tokenize, columns: dict[str, ColumnType]) -> None:
        if stage.tokens:
            fields = [(name, pyarrow.list_(pyarrow.int32())) for name in stage.tokens]
            margin = [("margin", pyarrow.float64())] if "margin" in columns else []
            self.schema = pyarrow.schema([*fields, *margin, ("length", pyarrow.int32())])
            self._make: Any = partial(_tokenized, tokenize, self.schema)
        else:
            features = datasets.Features({name: _feature(kind) for name, kind in columns.items()})
            self.schema = features.arrow_schema
            self._make = partial(_as_they_are, features)

    def file(self, folder: Path, split: str, lines: Lines) -> Iterator[tuple[int, int]]:
        """Write `lines` into `<split>.arrow`; yield, part by part, how many rows were read and how many are left."""
        path, parts = folder / f"{split}.arrow", list(lines.parts())
        made = processes.in_parallel(partial(self._part, split, str(lines.path)), parts, processes.cpus())
        with pyarrow.OSFile(str(path), "wb") as file, pyarrow.ipc.new_stream(file, self.schema) as writer:
            for (_, count), batch in zip(parts, map(self._read, made), strict=True):
                writer.write_batch(batch)
                yield count, batch.num_rows
        fsync(path)

    def _part(self, split: str, path: str, part: tuple[int, int]) -> bytes:
        return self._make(split, path, *part).serialize().to_pybytes()

    def _read(self, serialized: bytes) -> Any:
        return pyarrow.ipc.read_record_batch(pyarrow.py_buffer(serialized), self.schema)


def _tokenized(tokenize: Tokenize, schema: Any, split: str, path: str, begin: int, count: int) -> Any:
    """Return the rows of a part in tokens, with the length of the longest sequence that the model sees of each."""
    part = {"path": path, "begin": begin, "count": count}
    rows = list(tokenize(datasets.IterableDataset.from_generator(read_part, gen_kwargs=part), split))
    columns = [[row[name] for row in rows] for name in schema.names[:-1]]
    return _with_length(pyarrow.record_batch(columns, schema=pyarrow.schema(list(schema)[:-1])), schema)


def _as_they_are(features: datasets.Features, split: str, path: str, begin: int, count: int) -> Any:
    rows = [{name: row.get(name) for name in features} for row in read_part(path, begin, count)]
    (batch,) = datasets.Dataset.from_list(rows, features=features).data.table.combine_chunks().to_batches()
    return batch


def _with_length(batch: Any, schema: Any) -> Any:
    """Return the batch with a last column: tokens of the prompt, if it is apart, and of the longest sequence."""
    counts = {name: batch[name].value_lengths().to_numpy() for name in SEQUENCES if name in batch.schema.names}
    prompt = counts.pop("prompt_ids", 0)
    length = prompt + numpy.maximum.reduce(list(counts.values()))
    return pyarrow.record_batch([*batch.columns, pyarrow.array(length, pyarrow.int32())], schema=schema)


def _pack(pack: Callable[[datasets.Dataset], datasets.Dataset], folder: Path) -> int:
    """Put several rows into each one of train.arrow; return their number."""
    unpacked, path = folder / "unpacked.arrow", folder / "train.arrow"
    path.rename(unpacked)
    packed = pack(datasets.Dataset.from_file(str(unpacked)))
    names = packed.column_names
    schema = pyarrow.schema([*((name, pyarrow.list_(pyarrow.int32())) for name in names), ("length", pyarrow.int32())])
    with pyarrow.OSFile(str(path), "wb") as file, pyarrow.ipc.new_stream(file, schema) as writer:
        for table in packed.with_format("arrow").iter(PART):
            columns = [table[name].combine_chunks().cast(schema.field(name).type) for name in names]
            writer.write_batch(_with_length(pyarrow.record_batch(columns, names=names), schema))
    fsync(path)
    for file in (unpacked, *(Path(cached["filename"]) for cached in packed.cache_files)):
        file.unlink(missing_ok=True)
    return len(packed)


def _feature(kind: ColumnType) -> Any:
    value = {"text": "string", "integer": "int64", "number": "float64", "boolean": "bool"}.get(kind)
    if value is not None:
        return datasets.Value(value)
    if kind == "messages":
        return datasets.List({"role": datasets.Value("string"), "content": datasets.Value("string")})
    return datasets.Json()
