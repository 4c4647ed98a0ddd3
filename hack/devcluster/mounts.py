"""What is mounted below the cluster's folders, and removing folders without touching what is mounted in them."""

import shutil
from pathlib import Path

from devcluster.process import run


def below(*folders: Path) -> list[str]:
    """The mount points at or below the folders, deepest first."""
    points = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    # mountinfo writes space, tab, newline and backslash as octal.
    names = [point.encode().decode("unicode_escape") for point in points]
    return sorted((n for n in names if any(Path(n).is_relative_to(f) for f in folders)), key=len, reverse=True)


def unmount(*folders: Path) -> None:
    """Nothing is mounted at or below the folders any more, also where it is in use."""
    while points := below(*folders):
        run("umount", "--lazy", *points)


def remove(path: Path) -> None:
    """The folder or file is gone, all at once, since half a store would pass for a whole one; never through a mount.

    What a `remove` that was killed has left goes too.
    """
    assert not below(path), f"{path}: something is mounted below it"
    dead = path.with_name(f"{path.name}.dead")
    _delete(dead)
    if path.exists() or path.is_symlink():
        path.rename(dead)
        _delete(dead)


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
