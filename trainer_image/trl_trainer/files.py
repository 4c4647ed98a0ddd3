"""Files that are whole or not there, and on disk when it is said so. Standard library only."""

import os
from pathlib import Path


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
