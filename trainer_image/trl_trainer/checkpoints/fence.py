"""Which attempt owns the job's folder: a rank of an older attempt that wakes up must publish nothing."""

from pathlib import Path

from trl_trainer.errors import TrainerError


def claim(work: Path, attempt: int) -> None:
    """Make `attempt` the owner of `work`; TrainerError if a newer attempt has claimed it.

    One empty file per attempt in `<work>/attempt/`: names only grow, so no two writers can undo each other, on NFS too.
    """
    folder = work / "attempt"
    folder.mkdir(parents=True, exist_ok=True)
    check(work, attempt)
    (folder / str(attempt)).touch()


def check(work: Path, attempt: int) -> None:
    """Return if `attempt` is the newest that claimed `work`, else raise TrainerError."""
    newest = max((int(path.name) for path in (work / "attempt").iterdir()), default=attempt)
    if newest > attempt:
        raise TrainerError(
            "PeerLost", f"attempt {newest} has taken over {work}; this one, {attempt}, writes nothing more"
        )
