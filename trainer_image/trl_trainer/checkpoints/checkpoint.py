"""Checkpoints that are whole or do not count: publish, choose, keep.

transformers writes straight into `checkpoint-N` and resumes from the highest number, torn or not. Here a folder is a
checkpoint only when it holds MANIFEST.json, which rank 0 writes last, when every rank's files are on disk.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from functools import cache
from importlib.metadata import version
from pathlib import Path

from pydantic import Field, ValidationError

from trl_contract.base import Model
from trl_trainer.errors import UserError
from trl_trainer.files import fsync, share, write_whole

MANIFEST = "MANIFEST.json"
BAD = "BAD."
"""Start of the names of files in a checkpoint: one for each attempt by which it verified and could not be loaded."""
FAILED_LOADS = 2
"""After so many a checkpoint is passed over; one alone may have been the fault of a GPU or of the storage."""
TRASH = ".trash"
SAMPLE_BYTES = 32 << 20
"""Files are hashed up to so many bytes from both ends: what a crash leaves is short, or empty at the end."""

_FOLDER = re.compile(r"checkpoint-(\d+)")
_RANK_FILE = re.compile(r"(?:__|rng_state_)(\d+)(?:_\d+\.distcp|\.pth)$")


class File(Model):
    path: str
    """Relative to the checkpoint's folder."""
    size: int
    sha256: str
    """Over the first and last SAMPLE_BYTES."""


class Manifest(Model):
    """What makes a folder a checkpoint."""

    uid: str
    """Of the job that wrote it."""
    attempt: int
    step: int
    world_size: int
    time: str
    metrics: dict[str, float] = {}
    training_seconds: float = 0
    """Of all steps up to this one."""
    files: list[File] = Field(min_length=1)
    versions: dict[str, str]


def own_files(folder: Path, rank: int) -> list[File]:
    """Return the files that `rank`, which calls this, wrote into the checkpoint, on disk when this returns. Shards and
    random states carry their rank's number, everything else is rank 0's. NFS may hide what other nodes wrote from the
    list of names, never what this one did."""
    found = []
    for path in _files(folder):
        match = _RANK_FILE.search(path.name)
        if (int(match[1]) if match else 0) == rank:
            share(path, folder)
            fsync(path)
            found.append(describe(folder, path))
    return found


def describe(folder: Path, path: Path) -> File:
    """Return the manifest's entry for one file."""
    size = path.stat().st_size
    total = hashlib.sha256()
    with path.open("rb") as file:
        total.update(file.read(SAMPLE_BYTES))
        file.seek(max(SAMPLE_BYTES, size - SAMPLE_BYTES))
        total.update(file.read())
    return File(path=str(path.relative_to(folder)), size=size, sha256=total.hexdigest())


def publish(folder: Path, manifest: Manifest) -> None:
    """Make `folder` a checkpoint: from here on it is resumed from. OSError leaves it what it was, no checkpoint.

    ValueError if a file of the manifest has not arrived as its rank wrote it, or trainer_state.json is of another step.
    Each file is opened by its name: on NFS that asks the server, while a list of names may be a minute old.
    """
    for file in manifest.files:
        size = _size(folder / file.path)
        if size != file.size:
            raise ValueError(f"{folder}: {file.path} has {size} bytes, and its rank wrote {file.size}")
    if json.loads((folder / "trainer_state.json").read_text())["global_step"] != manifest.step:
        raise ValueError(f"{folder}: trainer_state.json is not of step {manifest.step}")
    for directory in {(folder / file.path).parent for file in manifest.files} | {folder}:
        fsync(directory)
    write_whole(folder / MANIFEST, manifest.model_dump_json(by_alias=True, indent=1))
    fsync(folder.parent)


def _size(path: Path) -> int | None:
    """Return the bytes of the file, None if there is none."""
    try:
        with path.open("rb") as file:
            return os.fstat(file.fileno()).st_size
    except FileNotFoundError:
        return None


@cache
def versions() -> dict[str, str]:
    """Return the versions of what reads and writes checkpoints."""
    return {name: version(name) for name in ("torch", "transformers", "accelerate", "trl", "peft")}


def verify(folder: Path, uid: str) -> Manifest:
    """Return the manifest if every file is as it says and the job is `uid`; ValueError says what is wrong.

    A storage that does not answer (OSError) is passed on: it says nothing about the checkpoint.
    """
    try:
        manifest = Manifest.model_validate_json((folder / MANIFEST).read_bytes())
    except (FileNotFoundError, ValidationError) as error:
        raise ValueError(f"{folder.name}: no readable {MANIFEST}: {error}") from None
    marks = sorted(folder.glob(f"{BAD}*"))
    if len(marks) >= FAILED_LOADS:
        raise ValueError(f"{folder.name}: could not be loaded {len(marks)} times: {marks[-1].read_text()}")
    if manifest.uid != uid:
        raise ValueError(f"{folder.name}: is of another job ({manifest.uid})")
    for wanted in manifest.files:
        try:
            found = describe(folder, folder / wanted.path)
        except FileNotFoundError as error:
            raise ValueError(f"{folder.name}: {wanted.path}: {error.strerror}") from None
        if found != wanted:
            raise ValueError(
                f"{folder.name}: {wanted.path} is not what was written ({found.size} of {wanted.size} bytes)"
            )
    return manifest


class Choice(Model):
    """What an attempt starts from."""

    path: str | None
    """Folder of the checkpoint; None: from the beginning."""
    step: int = 0
    training_seconds: float = 0
    """Of the steps up to there, which need not be taken again."""
    skipped: list[str] = []
    """Why newer folders are no checkpoints."""


def choose(work: Path, uid: str, world_size: int, only: int | None = None) -> Choice:
    """Return the newest checkpoint of job `uid` that verifies, or the one of step `only`.

    UserError if it was written by another number of processes: data order and shards would not continue.
    """
    skipped = []
    for step, folder in folders(work):
        if only not in (None, step):
            continue
        try:
            manifest = verify(folder, uid)
        except ValueError as error:
            skipped.append(str(error))
            continue
        if manifest.world_size != world_size:
            raise UserError(
                "InvalidSpec",
                f"{folder} was written by {manifest.world_size} processes and this attempt has {world_size}: a run "
                f"continues only with as many; start {manifest.world_size}, or begin a new job",
            )
        return Choice(path=str(folder), step=step, training_seconds=manifest.training_seconds, skipped=skipped)
    return Choice(path=None, skipped=skipped)


def clear_after(work: Path, step: int) -> None:
    """Remove every folder of a later step: the run gets there again, and must not mix with what is left of them.
    Also removes what an earlier removal left."""
    for found, folder in folders(work):
        if found > step:
            remove(folder)
    _empty_trash(work)


def retain(work: Path, keep: int) -> None:
    """Remove all but the newest `keep` published checkpoints."""
    published = [folder for _, folder in folders(work) if (folder / MANIFEST).exists()]
    for folder in published[keep:]:
        remove(folder)
    _empty_trash(work)


def remove(folder: Path) -> None:
    """Take `folder` away in one rename, so that a crash while deleting leaves nothing that looks like a checkpoint."""
    trash = folder.parent / TRASH
    trash.mkdir(exist_ok=True)
    os.rename(folder, trash / f"{folder.name}-{os.urandom(4).hex()}")


def _empty_trash(work: Path) -> None:
    shutil.rmtree(work / TRASH, ignore_errors=True)


def mark_bad(folder: Path, attempt: int, why: str) -> None:
    """Note that `attempt` could not load `folder`; after FAILED_LOADS attempts it is passed over."""
    (folder / f"{BAD}{attempt}").write_text(why[:500])


def folders(work: Path) -> list[tuple[int, Path]]:
    """Return (step, folder) of everything that is called checkpoint-N, newest first."""
    found = [(int(match[1]), path) for path in work.iterdir() if (match := _FOLDER.fullmatch(path.name))]
    return sorted(found, reverse=True)


def newest_bytes(work: Path) -> int | None:
    """Return the bytes of the newest folder, whole or not; None if they cannot be counted just now."""
    try:
        return sum(path.stat().st_size for _, folder in folders(work)[:1] for path in folder.rglob("*"))
    except OSError:
        return None


def published_paths(work: Path) -> Sequence[tuple[int, Path]]:
    """Return (step, folder) of the published checkpoints, newest first."""
    return [(step, folder) for step, folder in folders(work) if (folder / MANIFEST).exists()]


def _files(folder: Path) -> Iterator[Path]:
    ours = (MANIFEST, BAD)
    return (path for path in sorted(folder.rglob("*")) if path.is_file() and not path.name.startswith(ours))
