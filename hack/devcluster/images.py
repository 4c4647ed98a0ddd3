"""The images of trainer and operator, built by BuildKit straight into the kubelet's image store.

Every image is made FROM the one before: base, NAME-dependencies, NAME. Each records the digest of all that it was made
of, so what has not changed is not built. The dependencies are an image of their own because BuildKit then shares the
store's unpacked layers: its cache would be a second copy of them.
"""

import hashlib
import json
import os
import shutil
import subprocess
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from devcluster import containers, paths, process, tools
from devcluster.errors import DevClusterError
from devcluster.layout import CGROUP
from devcluster.locks import exclusive
from devcluster.waiting import wait_for

NAMES = ("trainer", "operator")
CODE = {
    "trainer": ("trainer_image/trl_contract", "trainer_image/trl_trainer"),
    "operator": ("trainer_image/trl_contract", "operator/trl_operator"),
}
INPUTS = "trl-operator.io/inputs"  # label of an image: the digest of what it was made of
CA_BUNDLE = Path(os.environ.get("SSL_CERT_FILE") or "/etc/ssl/certs/ca-certificates.crt")
DEBOOTSTRAP = ("debootstrap", "--variant=minbase", "--include=python3,python3-venv,ca-certificates", "bookworm")
NOT_IN_BASE = (  # documentation, caches, and glibc's legacy character sets
    *("dev", "var/cache", "var/lib/apt/lists", "var/log", "usr/lib/x86_64-linux-gnu/gconv"),
    *("usr/share/doc", "usr/share/info", "usr/share/locale", "usr/share/man"),
)

BUILDKITD = """\
root = "{paths.STATE}/buildkit"
[grpc]
  address = ["unix://{socket}"]
[otel]
  socketPath = "{paths.RUN}/buildkit-otel.sock"
[worker.oci]
  enabled = false
[worker.containerd]
  enabled = true
  address = "{paths.CONTAINERD_SOCKET}"
  namespace = "k8s.io"
  snapshotter = "overlayfs"
  networkMode = "host"
  defaultCgroupParent = "{CGROUP}"
  # What is not needed any more is pruned after every build.
  gc = false
  [worker.containerd.runtime]
    name = "io.containerd.runc.v2"
    options = {{ Root = "{paths.RUN}/runc" }}
"""


@dataclass(frozen=True)
class Step:
    """One image to build: all that decides its contents, `inputs` being their digest."""

    image: str
    inputs: str
    dockerfile: Path
    context: Path
    options: dict[str, str] = field(default_factory=dict)


def reference(image: str) -> str:
    """The name of the image in the kubelet's store."""
    return f"localhost/trl-{image}:dev"


def build(name: str, repository: Path = paths.REPOSITORY) -> None:
    """localhost/trl-NAME:dev, NAME being one of NAMES, is in the kubelet's store and is what the checkout builds.

    Needs the containerd of a running cluster. Raises DevClusterError.
    """
    if not process.running("containerd", paths.RUN):
        raise DevClusterError("the images go into the image store of the running cluster; run `make cluster-up` first")
    base, dependencies, code = plan(name, repository)
    if _inputs(code.image) == code.inputs:
        return
    with exclusive(paths.STATE / "images.lock", "images: waiting for another build to end"), buildkitd():
        if _inputs(dependencies.image) != dependencies.inputs:
            _forget(name)
            if _inputs(base.image) != base.inputs:
                _rootfs(base.context)
                build_step(base, "a minute")
            build_step(dependencies, "2 minutes, downloads 3 GB" if name == "trainer" else "20 s")
            # The layers are in the image now, and what the FROM of another image has unpacked is to stay.
            _buildctl("prune", "--all", "--filter", 'description~="from exec|rootfs.tar"')
        build_step(code, "seconds")
        remove_unnamed()


def plan(name: str, repository: Path) -> tuple[Step, Step, Step]:
    """The steps whose last one is the image NAME of the checkout `repository`. Reads files, changes nothing."""
    dockerfile, lock = repository / f"Dockerfile.{name}", repository / "requirements" / f"{name}.txt"
    text = dockerfile.read_text()
    # What stands below the last FROM is about our code only.
    head = text[: text.rindex("\nFROM ")]
    version = tomllib.loads((repository / "pyproject.toml").read_text())["project"]["version"]
    base_dockerfile = repository / "hack/devcluster/Dockerfile.base"
    base = _digest(base_dockerfile.read_text(), *DEBOOTSTRAP, *NOT_IN_BASE)
    dependencies = _digest(base, head, lock.read_text())
    code = _digest(dependencies, text, version, *_contents(repository, CODE[name]))
    return (
        Step("base", base, base_dockerfile, paths.CACHE / f"base-{base}"),
        Step(
            f"{name}-dependencies",
            dependencies,
            dockerfile,
            repository,
            {
                "target": "dependencies",
                "build-arg:BASE_IMAGE": reference("base"),
                # Half as long, and half the disk.
                "build-arg:UV_NO_CACHE": "1",
            },
        ),
        Step(
            name,
            code,
            dockerfile,
            repository,
            {"build-arg:DEPENDENCIES": reference(f"{name}-dependencies"), "build-arg:VERSION": version},
        ),
    )


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _contents(repository: Path, folders: tuple[str, ...]) -> list[str]:
    """Path and digest of every file below the folders that .dockerignore lets into an image."""
    files = [file for folder in folders for file in sorted((repository / folder).rglob("*")) if file.is_file()]
    return [
        f"{file.relative_to(repository)} {hashlib.sha256(file.read_bytes()).hexdigest()}"
        for file in files
        if "__pycache__" not in file.parts
    ]


def build_step(step: Step, takes: str) -> None:
    """The step's image is in the store; needs `buildkitd`. `takes` is what the user reads of its duration."""
    print(f"images: building {step.image} (about {takes})", flush=True)
    start = time.monotonic()
    # BuildKit unpacks the image that a FROM names: doing it here too would do it twice.
    unpack = "true" if step.image in NAMES else "false"
    options = {
        "filename": step.dockerfile.name,
        # BASE_IMAGE and DEPENDENCIES are in the store; nothing is to be asked for them.
        "image-resolve-mode": "local",
        f"label:{INPUTS}": step.inputs,
        **step.options,
    }
    _buildctl(
        "build",
        "--progress=plain",
        "--frontend=dockerfile.v0",
        f"--local=context={step.context}",
        f"--local=dockerfile={step.dockerfile.parent}",
        *(f"--opt={key}={value}" for key, value in options.items()),
        *([f"--secret=id=ca,src={CA_BUNDLE}"] if CA_BUNDLE.is_file() else []),
        # zstd: on two cores faster than writing the 6 GB uncompressed, and half the size.
        f"--output=type=image,name={reference(step.image)},unpack={unpack},compression=zstd,oci-mediatypes=true",
    )
    print(f"images: built {step.image} ({time.monotonic() - start:.1f} s)", flush=True)


def _rootfs(context: Path) -> None:
    """The cache has the base's root file system as a tar, without what images do not need."""
    if (context / "rootfs.tar").exists():
        return
    print("images: debootstrap (about a minute)", flush=True)
    work = context.with_suffix(".new")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    # In namespaces of its own: when we are killed, all its processes are, and the /proc that it mounts goes with it.
    alone = (*process.DIES_WITH_US, "unshare", "--mount", "--pid", "--fork", "--kill-child")
    process.run(*alone, *DEBOOTSTRAP, work / "rootfs")
    excluded = [f"--exclude=./{folder}/*" for folder in NOT_IN_BASE]
    process.run("tar", "-C", work / "rootfs", "--numeric-owner", *excluded, "-cf", work / "rootfs.tar", ".")
    shutil.rmtree(work / "rootfs")
    shutil.rmtree(context, ignore_errors=True)
    work.rename(context)


def config(image: str) -> dict[str, Any] | None:
    """The OCI configuration of the image in the kubelet's store, or None if there is no such image."""
    digests = [digest for name, digest in _stored() if name == reference(image)]
    if not digests:
        return None
    manifest = json.loads(containers.ctr("content", "get", digests[0]))
    found: dict[str, Any] = json.loads(containers.ctr("content", "get", manifest["config"]["digest"]))
    return found


def _inputs(image: str) -> str | None:
    """The digest of what the image in the store was made of, or None if there is no such image."""
    found = config(image)
    return found["config"]["Labels"][INPUTS] if found else None


def _stored() -> list[tuple[str, str]]:
    """Name and digest of every image in the store."""
    lines = containers.ctr("images", "ls").splitlines()[1:]
    return [(words[0], words[2]) for words in map(str.split, lines)]


def _forget(name: str) -> None:
    """The old images and what BuildKit keeps of them are gone: the new ones need their room."""
    names = {reference(name), reference(f"{name}-dependencies")}
    if old := [found for found, _ in _stored() if found in names]:
        containers.ctr("images", "rm", *old)
        _buildctl("prune", "--all")
        remove_unnamed()


def remove_unnamed() -> None:
    """Images that a build has replaced are gone; the kubelet's CRI keeps them by a name that is their digest."""
    images = _stored()
    named = {digest for name, digest in images if not name.startswith("sha256:")}
    if unnamed := [name for name, digest in images if digest not in named]:
        containers.ctr("images", "rm", "--sync", *unnamed)


def _buildctl(*arguments: str) -> None:
    log = paths.LOGS / "images.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as output:
        if subprocess.run([*_client(), *arguments], stdout=output, stderr=subprocess.STDOUT).returncode == 0:
            return
    raise DevClusterError(f"buildctl {arguments[0]} failed; the end of {log}:\n{log.read_text()[-4000:]}")


@contextmanager
def buildkitd() -> Iterator[None]:
    """A BuildKit daemon answers meanwhile; what it keeps for the next build is in STATE/buildkit and in containerd."""
    process.stop("buildkitd", paths.RUN)
    config, temporary = paths.CONFIG / "buildkitd.toml", paths.STATE / "buildkit" / "tmp"
    temporary.mkdir(parents=True, exist_ok=True)
    config.write_text(BUILDKITD.format(paths=paths, socket=_socket(), CGROUP=CGROUP))
    log = paths.LOGS / "buildkitd.log"
    process.start(
        "buildkitd",
        [tools.binary("buildkitd"), f"--config={config}"],
        run=paths.RUN,
        log=log,
        env={"TMPDIR": str(temporary)},
    )
    try:
        wait_for(f"BuildKit answers (see {log})", _answers, 60)
        yield
    finally:
        process.stop("buildkitd", paths.RUN)


def _answers() -> bool:
    if not process.running("buildkitd", paths.RUN):
        raise DevClusterError(f"buildkitd has ended; see {paths.LOGS}/buildkitd.log")
    return subprocess.run([*_client(), "debug", "workers"], capture_output=True).returncode == 0


def _client() -> list[str]:
    return [str(tools.binary("buildctl")), f"--addr=unix://{_socket()}"]


def _socket() -> Path:
    return paths.RUN / "buildkitd.sock"
