"""How the ranks of an attempt end when one of them has failed, and when they are only told to stop."""

import os
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import pytest
from trainer_kit import free_port, job_file, stand_in_record, start_stand_in, wait_for

from trl_trainer import supervisor
from trl_trainer.launch import peers
from trl_trainer.launch.processes import Stopped, is_stopped

STUCK = """
import ctypes, os, signal, sys, time
from pathlib import Path
place = Path({place!r})
def note(name):
    (place / f"{{name}}.part").write_text(str(os.getpid()))
    os.rename(place / f"{{name}}.part", place / name)
if os.environ["RANK"] == "0":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    note("stuck")
    # In C code and with the interpreter's lock: no thread and no signal handler of Python runs any more.
    while True:
        ctypes.PyDLL(None).sleep(1000)
while not (place / "stuck").exists():
    time.sleep(0.01)
note("dead")
print("about to crash, token hf_abcdefghijklmn", file=sys.stderr, flush=True)
os.abort()
"""


def check_end(place: Path, seconds: float) -> None:
    """The stuck rank ends within `seconds` of its peer's death; torchrun alone would take the grace period."""
    wait_for((place / "dead").exists, 60)
    died, pid = time.monotonic(), int((place / "stuck").read_text())
    wait_for(lambda: not Path(f"/proc/{pid}").exists(), seconds)
    assert time.monotonic() - died > 1, "it gets a while"


def test_what_is_promised_is_kept_with_a_margin() -> None:
    assert supervisor.PEER_SECONDS + supervisor.POLL_SECONDS + 2 * peers.POLL_SECONDS < 30 - 5


def test_a_rank_that_is_stuck_in_native_code_ends_soon_after_its_peer(tmp_path: Path) -> None:
    job = job_file(tmp_path, tmp_path, spec={})
    process = start_stand_in(tmp_path, job, STUCK.format(place=str(tmp_path)), peer_seconds=2)
    check_end(tmp_path, 2 + 5)
    record = stand_in_record(process, 60)
    assert (record.outcome, record.reason, record.rank) == ("Failed", "Unknown", 1), (
        "not the one that was killed for it"
    )
    assert "ended without a word" in record.message
    assert "about to crash, token ***" in record.log


def test_a_rank_that_is_stuck_in_native_code_ends_soon_after_its_peer_in_another_pod(tmp_path: Path) -> None:
    job = job_file(tmp_path, tmp_path, spec={}, numNodes=2, numProcPerNode=1)
    variables = {"PET_NNODES": "2", "PET_MASTER_ADDR": "127.0.0.1", "PET_MASTER_PORT": str(free_port())}
    code = STUCK.format(place=str(tmp_path))
    pods = [
        start_stand_in(tmp_path, job, code, {**variables, "PET_NODE_RANK": str(node)}, peer_seconds=2)
        for node in range(2)
    ]
    check_end(tmp_path, 2 + peers.POLL_SECONDS + 5)
    stuck, dead = (stand_in_record(pod, 60) for pod in pods)
    assert (stuck.reason, stuck.rank) == ("PeerLost", 0)
    assert "ended without a word" in stuck.message
    assert (dead.reason, dead.rank) == ("Unknown", 1)


IDLE = """
import os, time
from pathlib import Path
Path({place!r}, f"up-{{os.environ.get('RANK', '0')}}").write_text(str(os.getpid()))
time.sleep(1000)
"""


@pytest.mark.parametrize(("nodes", "per_node", "rank"), [(1, 1, 0), (2, 1, 1)])
def test_a_rank_that_stays_stopped_is_ended_by_its_supervisor(
    tmp_path: Path, nodes: int, per_node: int, rank: int
) -> None:
    """Its watchdog is stopped with it, and nobody else can tell it from one that takes its time."""
    job = job_file(tmp_path, tmp_path, spec={}, numNodes=nodes, numProcPerNode=per_node, stallTimeoutSeconds=2)
    port = str(free_port())
    pods = []
    for node in range(nodes):
        pet = {"PET_MASTER_ADDR": "127.0.0.1", "PET_MASTER_PORT": port, "PET_NODE_RANK": str(node)}
        variables = {**pet, "PET_NNODES": str(nodes)} if nodes > 1 else {}
        pods.append(start_stand_in(tmp_path, job, IDLE.format(place=str(tmp_path)), variables, peer_seconds=1))
    up = [tmp_path / f"up-{number}" for number in range(nodes * per_node)]
    wait_for(lambda: all(path.exists() and path.read_text() for path in up), 60)
    stopped, pids = time.monotonic(), [int(path.read_text()) for path in up]
    os.kill(pids[rank], signal.SIGSTOP)
    try:
        found = [stand_in_record(pod, 60) for pod in pods]
    finally:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    assert 2 < time.monotonic() - stopped < 20
    ours = found[rank // per_node]
    assert (ours.outcome, ours.reason, ours.rank) == ("Failed", "Stalled", rank)
    assert f"rank {rank} was stopped (SIGSTOP, or a debugger) for 2 s" in ours.message
    assert [record.reason for record in found if record is not ours] == ["PeerLost"] * (nodes - 1)


def test_a_process_that_runs_for_a_moment_begins_anew() -> None:
    process = subprocess.Popen(["sleep", "1000"])

    def told(number: signal.Signals) -> list[int]:
        process.send_signal(number)
        wait_for(lambda: is_stopped(process.pid) is (number == signal.SIGSTOP), 10)
        return stopped.find([process.pid])

    stopped = Stopped(3)
    try:
        signals = [signal.SIGSTOP, signal.SIGSTOP, signal.SIGCONT, *[signal.SIGSTOP] * 3]
        assert [told(number) for number in signals] == [[], [], [], [], [], [process.pid]]
    finally:
        process.kill()
        process.wait()
    assert stopped.find([process.pid]) == [], "it is gone"


SAVES = """
import os, signal, sys, time
from pathlib import Path
from trl_contract.report import ExitRecord
from trl_trainer.launch import records
rank, told = int(os.environ["RANK"]), []
signal.signal(signal.SIGTERM, lambda *_: told.append(True))
Path({place!r}, f"up-{{rank}}").touch()
while not told:
    time.sleep(0.01)
if rank == 0:
    time.sleep(3)
record = ExitRecord(
    outcome="Preempted", reason="Preempted", rank=rank, time=records.now(), message=f"rank {{rank}} has saved"
)
records.write(Path(os.environ[records.FOLDER]), rank, record)
sys.exit(143)
"""


# Some library that torchrun imports asks a program, before there are ranks.
ASKS = """
import subprocess, sys
if "torch.distributed.run" in sys.orig_argv:
    subprocess.run(["sleep", "1"])
"""


def test_a_rank_that_saves_after_a_sigterm_is_not_cut_short_by_one_that_has_saved(tmp_path: Path) -> None:
    """Nor by another child of torchrun that has ended."""
    job = job_file(tmp_path, tmp_path, spec={})
    (tmp_path / "sitecustomize.py").write_text(ASKS)
    process = start_stand_in(tmp_path, job, SAVES.format(place=str(tmp_path)), peer_seconds=1)
    wait_for(lambda: len(list(tmp_path.glob("up-*"))) == 2, 60)
    process.send_signal(signal.SIGTERM)
    record = stand_in_record(process, 60)
    assert (record.outcome, record.message) == ("Preempted", "rank 1 has saved")
    pids = [int(pid) for pid in os.listdir("/proc") if pid.isdigit()]
    assert [pid for pid in pids if supervisor.variable(pid, "PYTHONPATH") == str(tmp_path)] == []


@pytest.mark.parametrize(
    ("outcomes", "dead", "says"),
    [
        ({}, 0, ""),
        ({0: "Succeeded"}, 1, ""),
        ({0: "Preempted", 1: "Preempted"}, 2, ""),
        ({0: "Succeeded"}, 2, "a rank ended without a word"),
        ({0: "Preempted", 1: "Failed"}, 1, "rank 1: m"),
    ],
)
def test_only_a_failure_shortens_what_the_others_get(outcomes: dict[int, str], dead: int, says: str) -> None:
    from trl_contract.report import ExitRecord

    found = {
        rank: ExitRecord.model_validate({"outcome": outcome, "time": "t", "message": "m"})
        for rank, outcome in outcomes.items()
    }
    assert supervisor.failure(found, dead) == says
