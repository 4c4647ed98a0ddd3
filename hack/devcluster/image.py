"""Container images with one layer of a few files, written without any builder."""

import hashlib
import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path


def name(repository: str, files: Mapping[str, Path | str], entrypoint: Sequence[str]) -> str:
    """localhost/REPOSITORY:TAG with a tag that is a hash of the contents' identity, so that a present tag is current.

    Files are known by their paths, since the cache names a binary's folder by what it was built from.
    """
    return f"localhost/{repository}:{hashlib.sha256(repr((dict(files), list(entrypoint))).encode()).hexdigest()[:16]}"


def write(archive: Path, image: str, files: Mapping[str, Path | str], entrypoint: Sequence[str]) -> None:
    """`archive` is a Docker archive of `image` for linux/amd64; `files`: path to a file, or to a link's target."""
    layer = _layer(files)
    config = json.dumps(
        {
            "architecture": "amd64",
            "os": "linux",
            "config": {"Entrypoint": list(entrypoint), "Env": ["PATH=/usr/bin:/bin"]},
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"]},
        }
    ).encode()
    manifest = json.dumps([{"Config": "config.json", "RepoTags": [image], "Layers": ["layer.tar"]}]).encode()
    with tarfile.open(archive, "w") as tar:
        for file, content in (("config.json", config), ("layer.tar", layer), ("manifest.json", manifest)):
            tar.addfile(_entry(file, len(content)), io.BytesIO(content))


def _layer(files: Mapping[str, Path | str]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for path, source in files.items():
            if isinstance(source, str):
                link = _entry(path)
                link.type, link.linkname = tarfile.SYMTYPE, source
                tar.addfile(link)
            else:
                with source.open("rb") as content:
                    tar.addfile(_entry(path, source.stat().st_size), content)
        for folder in ("tmp", "proc", "sys", "dev", "etc"):
            made = _entry(folder)
            made.type, made.mode = tarfile.DIRTYPE, 0o1777 if folder == "tmp" else 0o755
            tar.addfile(made)
    return buffer.getvalue()


def _entry(path: str, size: int = 0) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(path.lstrip("/"))
    entry.size, entry.mode = size, 0o755
    return entry
