"""Files that are whole or not there, on disk when it is said so, and known by their content. No torch: the supervisor
imports this."""

import hashlib
import os
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from errno import EACCES, EDQUOT, ENOSPC, EROFS
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import BinaryIO

from trl_trainer.errors import TrainerError

UNUSED_DAYS = 30
"""So long stays what jobs share and none uses."""


def fsync(path: Path) -> None:
    """Return when the file, or the folder's list of names, is on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_whole(path: Path, text: str) -> None:
    """Replace `path` by one with `text`, on disk when this returns: a crash leaves the old file or the new one."""
    part = path.with_name(f"{path.name}.part")
    part.write_text(text)
    fsync(part)
    os.replace(part, path)
    fsync(path.parent)


def keep_shared(path: Path, owner: str, write: Callable[[BinaryIO], object]) -> None:
    """Publish what `write` writes, whole, where several jobs keep what they could make anew: a crash leaves nothing by
    that name, and another job or attempt (`owner`: a name of its own for each) that does the same at the same time the
    same. A storage that cannot take it costs only the time to make it once more."""
    part = path.with_name(f"{path.stem}.{owner}.part")
    try:
        path.parent.mkdir(exist_ok=True)
        with part.open("wb") as file:
            write(file)
        share(part, path.parent)
        fsync(part)
        os.replace(part, path)
        fsync(path.parent)
    except OSError as error:
        print(f"{path} is not kept: {error}", flush=True)


def take_shared(path: Path) -> None:
    """Note that a file of `keep_shared` is in use, and remove those beside it that no job has used for UNUSED_DAYS. A
    job that needs one of them after all makes it anew."""
    with suppress(OSError):
        os.utime(path)
        for other in path.parent.iterdir():
            if other.stat().st_mtime < time.time() - UNUSED_DAYS * 86400:
                other.unlink()


def sha256(path: Path) -> str:
    """Return the hex digest of a file's contents."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(folder: Path, ends: tuple[str, ...] = ("",)) -> str:
    """Return sha256:<hex> over the names and contents of all files below `folder` whose names end so, in order of name.
    Several files are read at a time."""
    paths = [path for path in folder.rglob("*") if path.name.endswith(ends) and path.is_file()]
    with ThreadPoolExecutor() as pool:
        found = pool.map(sha256, paths)
    return total_digest({str(path.relative_to(folder)): value for path, value in zip(paths, found, strict=True)})


def total_digest(digests: Mapping[str, str]) -> str:
    """Return the digest of a folder from those of its files, by their path in it. Pure."""
    lines = "".join(f"{name}\n{digests[name]}\n" for name in sorted(digests, key=Path))
    return f"sha256:{hashlib.sha256(lines.encode()).hexdigest()}"


def share(path: Path, folder: Path) -> None:
    """Let everybody read `path` who may read `folder`: some libraries write files that only their user can read."""
    mode = path.stat().st_mode
    wanted = mode | folder.stat().st_mode & (0o555 if path.is_dir() else 0o444)
    if wanted != mode:
        path.chmod(wanted)


def not_writable(folder: Path, error: OSError) -> OSError | TrainerError:
    """Return what to raise for an `error` of the first write to `folder`: who may not write where, and the remedy; the
    error itself if it is about something else."""
    who = f"uid {os.geteuid()}, gid {os.getegid()}"
    remedies = {
        EROFS: "it is mounted read-only: use a volume, or an access mode, that can be written",
        EACCES: f"make it writable for {who}: chown it on the server, since NFS passes fsGroup over",
    }
    if error.errno not in remedies:
        return error
    remedy = remedies[error.errno]
    return TrainerError("StorageNotWritable", f"storage: {who} cannot write {folder} ({error.strerror}); {remedy}")


def try_renames(folder: Path) -> None:
    """Return if files and folders below `folder` can be renamed, which makes checkpoints and results whole.

    TrainerError names the call that failed: mounts of object stores refuse it, and not before there is something to
    publish. A full or read-only storage raises its own OSError.
    """
    with TemporaryDirectory(prefix=".try-", dir=folder) as name:
        inner = Path(name) / "a"
        inner.mkdir()
        try:
            call = "rename a file"
            write_whole(inner / "file", "")
            call = "rename a folder"
            os.rename(inner, inner.with_name("b"))
        except OSError as error:
            if error.errno in (ENOSPC, EDQUOT, EACCES, EROFS):
                raise
            raise TrainerError(
                "StorageNotWritable",
                f"storage: {folder} does not {call} ({error.strerror}), which checkpoints and results need: use NFS, "
                "CephFS, Lustre or block storage, and copy to an object store afterwards",
            ) from error
