"""Rank 0's first part: passes over the rows once, checks and shapes each, and writes them down as JSON lines."""

import hashlib
import json
import os
import random
from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
from pydantic import ValidationError

from trl_contract.jobfile import JobFile
from trl_trainer.data import mixing
from trl_trainer.data.lines import Lines
from trl_trainer.data.preparation import Tell, untold
from trl_trainer.data.report import DataReport, SourceReport, WrittenFile
from trl_trainer.data.usable import UsableRows
from trl_trainer.files import fsync, write_whole
from trl_trainer.stage import Stage


@dataclass(frozen=True)
class Written:
    """The job's rows in the form that TRL reads, on the storage volume."""

    train: Lines
    eval: Lines
    report: DataReport


def write(job: JobFile, stage: Stage, tokenizer: Any, folder: Path, tell: Tell = untold) -> Written:
    """Write train.jsonl, eval.jsonl (perhaps empty) and report.json into `folder` and return them.

    What an earlier attempt wrote is kept when nothing that it depends on has changed, so that a branch that moves on
    the hub does not change the data of a running job. Memory does not grow with the rows but by some 50 bytes for each.
    Raises UserError: DatasetNotFound, AccessDenied, InvalidSpec, or DataFormatError with the file, the row and why.
    """
    fingerprint = _fingerprint(job)
    before = _earlier(folder)
    report = before
    if before is None or before.fingerprint != fingerprint or not _is_whole(folder, before):
        folder.mkdir(parents=True, exist_ok=True)
        report = _write(job, UsableRows(job, stage, tokenizer, tell), folder, fingerprint, before)
        write_whole(folder / "report.json", report.model_dump_json(by_alias=True, indent=2))
    assert report is not None, "there is a report where nothing had to be written"
    return Written(Lines(folder / "train.jsonl", report.train), Lines(folder / "eval.jsonl", report.eval), report)


def _fingerprint(job: JobFile) -> str:
    """Return a digest of all that the rows depend on; a hub data set is taken to stay what it was."""
    given = [job.paths.train, job.paths.eval, *job.paths.mixture.values()]
    files = [os.stat(path) for path in given if path is not None and os.path.exists(path)]
    spec = job.spec.to_wire()
    parts = [job.kind, spec["model"], spec["dataset"], spec["evaluation"], [(f.st_size, f.st_mtime_ns) for f in files]]
    return f"sha256:{hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()}"


def _earlier(folder: Path) -> DataReport | None:
    path = folder / "report.json"
    try:
        return DataReport.model_validate_json(path.read_text()) if path.exists() else None
    except ValidationError:
        return None  # of another version of the trainer


def _is_whole(folder: Path, report: DataReport) -> bool:
    """Return whether the files are there. They were on disk before the report was, so their sizes say enough."""
    wanted = {"train.jsonl": report.train_file, "eval.jsonl": report.eval_file}
    return all((folder / name).exists() and (folder / name).stat().st_size == f.bytes for name, f in wanted.items())


def _write(job: JobFile, usable: UsableRows, folder: Path, fingerprint: str, before: DataReport | None) -> DataReport:
    """Write both files and return the report."""
    dataset, evaluation = job.spec.dataset, job.spec.evaluation
    everything, train, held = folder / "rows.tmp", folder / "train.jsonl", folder / "eval.jsonl"
    total = _LineFile(everything).write(usable.train(folder)).number
    own = evaluation.enabled and dataset.eval is not None
    rest, held_out, sources = _split(job, total, 0 if own or not evaluation.enabled else dataset.eval_split, usable)
    lines = Lines(everything, total)
    evals = _LineFile(held).write(usable.eval(folder) if own else lines.picked(held_out.tolist()))
    trains = _LineFile(train).write(lines.picked(rest.tolist()))
    everything.unlink()
    fsync(folder)
    different = numpy.unique(trains.hashes)
    return DataReport(
        **usable.counts(),
        sources=sources,
        train=trains.number,
        eval=evals.number,
        duplicates=len(numpy.unique(rest)) - len(different),
        shared=int(numpy.isin(evals.hashes, different).sum()),
        train_file=trains.seen,
        eval_file=evals.seen,
        changed=before is not None and before.train_file.digest != trains.seen.digest,
        fingerprint=fingerprint,
    )


def _split(job: JobFile, total: int, share: float, usable: UsableRows) -> tuple[Any, Any, list[SourceReport]]:
    """Return the places of the rows to train on, in their order, those of the `share` that is held out, and what that
    makes of each source of a mixture."""
    dataset, limit = job.spec.dataset, job.spec.evaluation.max_examples
    if dataset.mixture is None:
        number = num_held_out(total, share, limit)
        held_out = numpy.sort(random.Random(dataset.seed).sample(range(total), number)).astype(numpy.int64)
        return numpy.delete(numpy.arange(total), held_out), held_out, []
    numbers, weights = ([getattr(source, name) for source in usable.mixed] for name in ("rows", "weight"))
    rest, held_out = mixing.mix(numbers, weights, dataset.seed, lambda used: num_held_out(used, share, limit))
    counts = (mixing.per_source(places, numbers) for places in (rest, held_out))
    sources = [
        source.model_copy(update={"train": train, "eval": held})
        for source, train, held in zip(usable.mixed, *counts, strict=True)
    ]
    return rest, held_out, sources


def num_held_out(total: int, share: float, limit: int) -> int:
    """Return how many of `total` rows are held out: the share, rounded, but one at least and `limit` at most."""
    return 0 if share == 0 or total < 2 else min(max(1, round(total * share)), limit)


class _LineFile:
    """A file of lines that is whole, and on disk, or not there; what is asked of it later is noted on the way."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._hashes = array("q")
        self._size = 0
        self._sha = hashlib.sha256()

    def write(self, lines: Iterable[bytes]) -> "_LineFile":
        part = self._path.with_suffix(".part")
        with part.open("wb") as file:
            for line in lines:
                file.write(line)
                self._sha.update(line)
                self._size += len(line)
                # Of 64 bits: among a billion rows one pair may be taken for duplicates that are none.
                self._hashes.append(hash(line))
        fsync(part)
        os.replace(part, self._path)
        return self

    @property
    def number(self) -> int:
        return len(self._hashes)

    @property
    def hashes(self) -> Any:
        """int64 of shape (rows,)."""
        return numpy.frombuffer(self._hashes, dtype=numpy.int64) if self._hashes else numpy.empty(0, numpy.int64)

    @property
    def seen(self) -> WrittenFile:
        return WrittenFile(digest=f"sha256:{self._sha.hexdigest()}", bytes=self._size)
