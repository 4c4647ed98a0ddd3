"""The other pods of an attempt: that they are there, and that one of them has failed."""

import socket
import threading
import time
from collections.abc import Mapping
from pathlib import Path

POLL_SECONDS = 2.0


def wait_for_peers(environment: Mapping[str, str]) -> None:
    """Return when the names of all nodes resolve: torchrun's own store gives up after ten minutes, an image pull may
    take longer, and a waiting pod costs no attempt."""
    names = peers(environment)
    missing, last = names, 0.0
    while missing := [name for name in missing if not _resolves(name)]:
        if time.monotonic() - last > 30:
            print(f"supervisor: waiting for {', '.join(missing[:8])} ({len(missing)} of {len(names)})", flush=True)
            last = time.monotonic()
        time.sleep(0.5)


def peers(environment: Mapping[str, str]) -> list[str]:
    """Return the host names of all nodes: the master's, with its index (its first label ends in -0) counted up."""
    count = int(environment.get("PET_NNODES", "1"))
    master = environment.get("PET_MASTER_ADDR", "")
    host, dot, domain = master.partition(".")
    if count == 1 or not master:
        return []
    if not host.endswith("-0"):
        return [master]
    return [f"{host[:-1]}{index}{dot}{domain}" for index in range(count)]


def _resolves(name: str) -> bool:
    try:
        socket.getaddrinfo(name, None)
    except socket.gaierror:
        return False
    return True


class OtherPods:
    """What the supervisors of an attempt tell each other: that a rank has failed. Nothing else would tell: torchrun
    watches its own ranks, and a rank that hangs in native code does not see that a connection has closed.

    It goes through a file on the storage, which is there before anything is said: NFS asks the server when a file is
    opened, and remembers for up to a minute that there was none. A thread does it, for a storage may not answer.
    """

    def __init__(self, work: Path, attempt: int) -> None:
        self.heard = ""
        """What another pod has said, or this one; empty: nothing."""
        self._file = work / "failed" / str(attempt)
        self._file.parent.mkdir(exist_ok=True)
        self._file.touch()
        # Whoever starts the same attempt again begins anew.
        self._skip = self._file.stat().st_size
        self._says = threading.Event()
        self._what = ""
        self._thread = threading.Thread(target=self._listen, name="other-pods", daemon=True)
        self._thread.start()

    def tell(self, what: str, seconds: float = 0.0) -> None:
        """Tell the others that this pod has failed; returns when it is told, or after `seconds`."""
        self._what = what
        self._says.set()
        self._thread.join(seconds)

    def _listen(self) -> None:
        while not self.heard:
            said = self._says.wait(POLL_SECONDS)
            try:
                if said:
                    with self._file.open("a") as file:
                        file.write(f"{self._what}\n")
                self.heard = self._file.read_text()[self._skip :].strip()
            except OSError as error:
                # Perhaps later. Meanwhile this pod is no worse off than alone.
                print(f"supervisor: {self._file}: {error}", flush=True)
                time.sleep(POLL_SECONDS)
