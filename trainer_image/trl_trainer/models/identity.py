"""What tells a model's files from all others, found without reading them where that is known already."""

import hashlib
import json
from pathlib import Path

from trl_contract.jobfile import JobFile
from trl_trainer import files
from trl_trainer.models import source

ENDS = (".json", ".safetensors")


def of_base(job: JobFile, memory: Path, owner: str) -> str:
    """Return a text that is the same for the same files of the job's base model, and for no others: the digest that the
    earlier job has left, the commit of a hub repository, else the digest of the files.

    Files are read once, and again when one has another size, time of change or place on the volume: the digest is in
    the folder `memory`, which jobs share; `owner` as in files.keep_shared.
    """
    where = source.path(job)
    known = (job.digests or {}).get(where)
    if known is not None:
        return known
    folder = source.weights(where, job.spec.model.revision)
    if job.paths.model is None:
        # The hub's cache has a folder for each commit.
        return f"{where}@{folder.name}"
    kept = memory / f"{_looks(folder)}.digest"
    try:
        found = kept.read_text()
    except OSError:
        found = files.digest(folder, ENDS)
        files.keep_shared(kept, owner, lambda file: file.write(found.encode()))
    files.take_shared(kept)
    return found


def _looks(folder: Path) -> str:
    """Return a name for the files as they are seen without being opened."""
    paths = sorted(path for path in folder.rglob("*") if path.name.endswith(ENDS) and path.is_file())
    seen = [(str(path.relative_to(folder)), *_stamp(path)) for path in paths]
    return hashlib.sha256(json.dumps(seen).encode()).hexdigest()[:32]


def _stamp(path: Path) -> tuple[int, int, int]:
    found = path.stat()
    return found.st_size, found.st_mtime_ns, found.st_ino
