"""The image store and the containers of our containerd, through ctr."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from devcluster import image, paths
from devcluster.errors import DevClusterError
from devcluster.process import run
from devcluster.waiting import wait_for


def ctr(*arguments: str | Path) -> str:
    """What ctr prints, in the kubelet's namespace of our containerd."""
    return run("ctr", "--address", paths.CONTAINERD_SOCKET, "--namespace", "k8s.io", *arguments)


def answers() -> bool:
    """Whether containerd serves."""
    try:
        ctr("version")
    except DevClusterError:
        return False
    return True


def ensure_image(repository: str, files: Mapping[str, Path | str], entrypoint: Sequence[str]) -> str:
    """The name of an image of these files in the kubelet's store; older ones of the repository are gone."""
    wanted = image.name(repository, files, entrypoint)
    present = [name for name in ctr("images", "ls", "-q").split() if name.startswith(f"localhost/{repository}:")]
    if wanted not in present:
        archive = paths.STATE / f"{repository}.tar"
        image.write(archive, wanted, files, entrypoint)
        ctr("images", "import", archive)
        archive.unlink()
    for old in set(present) - {wanted}:
        ctr("images", "rm", old)
    return wanted


def remove_all() -> None:
    """No container is in the store any more, nor its writable layer; their processes must have been killed."""
    wait_for("the containers go", _removed, 60)


def _removed() -> bool:
    names = ctr("containers", "ls", "-q").split()
    if names:
        # Refused for a moment, until the shim has seen that its process was killed.
        with suppress(DevClusterError):
            ctr("containers", "rm", *names)
    return not names
