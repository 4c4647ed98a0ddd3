"""Which attempt owns the job's folder: a rank of an older attempt that wakes up must publish nothing."""

from pathlib import Path

from trl_trainer.errors import TrainerError
from trl_trainer.files import not_writable


def claim(work: Path, attempt: int) -> None:
    """Make `attempt` the owner of `work`; TrainerError if a newer attempt has claimed it, or nothing can be written.

    `<work>/attempt/N` is empty while no newer attempt than N has claimed. Content is only ever added, so no two writers
    can undo each other.
    """
    folder = work / "attempt"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / str(attempt)).touch()
    except OSError as error:
        raise not_writable(work, error) from error
    check(work, attempt)
    for older in range(attempt):
        # Also those that never came to claim: they may yet wake up.
        with (folder / str(older)).open("a") as file:
            if file.tell() == 0:
                file.write(f"{attempt}\n")


def check(work: Path, attempt: int) -> None:
    """Return if `attempt` is the newest that claimed `work`, else raise TrainerError.

    It opens its own file, since NFS asks the server whenever a file is opened. What names a folder has, or has not, is
    remembered there for up to a minute.
    """
    newer = (work / "attempt" / str(attempt)).read_text().split()
    if newer:
        raise TrainerError(
            "PeerLost", f"attempt {newer[0]} has taken over {work}; this one, {attempt}, writes nothing more"
        )
