"""PID 1: children, signals, names of peers, limits of the container."""

import json
import os
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest
from trainer_kit import job_file, start_supervisor, wait_for, write_jsonl

from trl_contract.report import ExitRecord
from trl_trainer import supervisor
from trl_trainer.checkpoints import fence
from trl_trainer.errors import TrainerError, UserError
from trl_trainer.launch import job as launch_job
from trl_trainer.launch import peers


def python(code: str, **options: object) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, **options)  # type: ignore[call-overload, no-any-return]


def test_it_starts_without_torch() -> None:
    code = "import sys, time; t = time.time(); import trl_trainer.supervisor; print('torch' in sys.modules)"
    out, _ = python(code).communicate(timeout=60)
    assert out == "False\n"


def test_only_its_arguments_say_which_job_it_runs() -> None:
    code = "import sys; sys.argv = ['x', '--help']; from trl_trainer import supervisor; supervisor.main()"
    run = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "TRL_JOB_FILE": "/data/job.json"},
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert launch_job.JOB_FILE in run.stdout
    assert "/data/job.json" not in run.stdout


def test_a_sigterm_while_it_is_being_imported_is_obeyed(tmp_path: Path) -> None:
    # Python runs it before anything else; it sends the signal when the first slow import begins.
    (tmp_path / "sitecustomize.py").write_text("""
import os, signal, sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "pydantic":
            sys.meta_path.remove(self)
            os.kill(os.getpid(), signal.SIGTERM)
sys.meta_path.insert(0, Finder())
""")
    job = job_file(tmp_path, tmp_path, spec={})
    process = start_supervisor(job, tmp_path, {"PYTHONPATH": str(tmp_path)})
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 143, said
    record = ExitRecord.model_validate_json((tmp_path / "termination-log").read_text())
    assert (record.outcome, record.message) == ("Preempted", "stopped before start")


@pytest.mark.parametrize(
    ("environment", "names"),
    [
        ({}, []),
        ({"PET_NNODES": "1", "PET_MASTER_ADDR": "job-worker-0"}, []),
        ({"PET_NNODES": "3", "PET_MASTER_ADDR": "job-worker-0"}, ["job-worker-0", "job-worker-1", "job-worker-2"]),
        ({"PET_NNODES": "2", "PET_MASTER_ADDR": "job-node-0-0.job"}, ["job-node-0-0.job", "job-node-0-1.job"]),
        ({"PET_NNODES": "2", "PET_MASTER_ADDR": "10.0.0.7"}, ["10.0.0.7"]),
    ],
)
def test_peers_are_counted_from_the_masters_name(environment: dict[str, str], names: list[str]) -> None:
    assert peers.peers(environment) == names


def test_it_waits_for_a_name_that_does_not_resolve_and_can_be_stopped_meanwhile(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "train.jsonl", [])
    job = job_file(tmp_path, tmp_path, spec={})
    variables = {
        **os.environ, "PET_NNODES": "2", "PET_MASTER_ADDR": "no-such-host-0.invalid", "PET_NODE_RANK": "1",
        "TRL_TERMINATION_LOG": str(tmp_path / "log"),
    }  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-m", "trl_trainer.supervisor", "--job", str(job)],
        env=variables, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    line = process.stdout.readline()
    assert "waiting for no-such-host-0.invalid, no-such-host-1.invalid" in line
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 143
    assert ExitRecord.model_validate_json((tmp_path / "log").read_text()).outcome == "Preempted"


def test_it_waits_while_the_job_file_is_that_of_an_earlier_job_of_the_same_name(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "train.jsonl", [])
    job = job_file(tmp_path, tmp_path, spec={})
    process = start_supervisor(job, tmp_path, {"TRL_JOB_UID": "uid-2"})
    assert process.stdout is not None
    assert process.stdout.readline() == f"supervisor: waiting for the job file: {job} is of uid-1, not of uid-2\n"
    job.write_text(job.read_text().replace('"uid-1"', '"uid-2"').replace('"DPOJob"', '"KTOJob"'))
    said, _ = process.communicate(timeout=60)
    record = ExitRecord.model_validate_json((tmp_path / "termination-log").read_text())
    assert (record.reason, "KTOJob" in record.message) == ("InvalidSpec", True), said
    assert not (tmp_path / "storage" / "uid-1").exists()


def test_a_job_file_that_stays_that_of_an_earlier_job_lets_the_pod_give_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kubelet reads an immutable ConfigMap anew only when no pod uses it any more."""
    path = str(job_file(tmp_path, tmp_path, spec={}))
    monkeypatch.setattr(launch_job, "AWAITED_SECONDS", 1)
    with pytest.raises(TrainerError, match="is still that of uid-1, an earlier job of this name") as raised:
        launch_job.await_own(launch_job.read_job(path), path, {"TRL_JOB_UID": "uid-2"})
    assert raised.value.reason == "Preempted"


def test_a_bad_job_file_names_the_field(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "train.jsonl", [])
    job = job_file(tmp_path, tmp_path, spec={"training": {"learningRat": 1}})
    run = subprocess.run(
        [sys.executable, "-m", "trl_trainer.supervisor", "--job", str(job)],
        env={**os.environ, "TRL_TERMINATION_LOG": str(tmp_path / "log")}, check=False, timeout=60,
    )  # fmt: skip
    record = ExitRecord.model_validate_json((tmp_path / "log").read_text())
    assert (run.returncode, record.reason) == (10, "InvalidSpec")
    assert "learningRat" in record.message


def test_a_storage_that_is_mounted_read_only_is_named_with_who_cannot_write_it(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "train.jsonl", [])
    job = job_file(tmp_path, tmp_path, spec={})
    assert os.system(f"mount -t tmpfs -o ro none {tmp_path}/storage") == 0
    try:
        run = subprocess.run(
            [sys.executable, "-m", "trl_trainer.supervisor", "--job", str(job)],
            env={**os.environ, "TRL_TERMINATION_LOG": str(tmp_path / "log")}, check=False, timeout=60,
        )  # fmt: skip
    finally:
        os.system(f"umount -l {tmp_path}/storage")
    record = ExitRecord.model_validate_json((tmp_path / "log").read_text())
    assert (run.returncode, record.reason) == (10, "StorageNotWritable")
    assert f"uid 0, gid 0 cannot write {tmp_path}/storage/uid-1 (Read-only file system)" in record.message
    assert "use a volume" in record.message


def test_a_storage_of_another_user_is_named_with_who_cannot_write_it(tmp_path: Path) -> None:
    os.seteuid(1234)
    try:
        with pytest.raises(TrainerError, match=r"uid 1234, gid 0 cannot write .*Permission denied.*chown") as caught:
            fence.claim(tmp_path / "storage" / "uid-1", 0)
    finally:
        os.seteuid(0)
    assert caught.value.reason == "StorageNotWritable"


def test_no_process_is_left_and_no_zombie(tmp_path: Path) -> None:
    """The launcher leaves a daemon and a zombie behind: both are gone when the supervisor is done."""
    code = f"""
import os, time
from trl_trainer import supervisor
supervisor.adopt_orphans()
script = "(setsid sleep 300 & echo $! > {tmp_path}/daemon) ; true & exit 3"
pid = supervisor.launch(["sh", "-c", script], dict(os.environ))
while not supervisor.ended(pid):
    time.sleep(0.01)
supervisor.kill_descendants()
print(supervisor.children(os.getpid()))
"""
    out, _ = python(code).communicate(timeout=30)
    assert out == "[]\n"
    daemon = int((tmp_path / "daemon").read_text())
    wait_for(lambda: not Path(f"/proc/{daemon}").exists(), 60)


def test_the_launcher_is_told_to_stop_when_the_supervisor_dies(tmp_path: Path) -> None:
    code = f"""
import os, signal
from trl_trainer import supervisor
script = "trap 'touch {tmp_path}/told; exit' TERM; touch {tmp_path}/up; while :; do sleep 0.1; done"
supervisor.launch(["sh", "-c", script], dict(os.environ))
signal.pause()
"""
    process = python(code)
    wait_for((tmp_path / "up").exists, 60)
    process.kill()
    process.wait(60)
    wait_for((tmp_path / "told").exists, 60)


def test_ranks_that_do_not_end_are_killed_before_the_grace_period_is_over(tmp_path: Path) -> None:
    code = """
import os, signal, time
from trl_trainer import supervisor
stop = supervisor.Stop(grace_seconds=7)
stop.launcher = supervisor.launch(["sh", "-c", "trap '' TERM; echo up; while :; do sleep 0.1; done"], dict(os.environ))
signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGTERM, signal.SIGINT))
while not supervisor.ended(stop.launcher):
    time.sleep(0.01)
print("ended")
"""
    process = python(code)
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    started = time.monotonic()
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=20)
    assert out == "ended\n"
    assert 1 <= time.monotonic() - started < 7


def test_a_sigterm_after_the_launcher_has_ended_changes_nothing() -> None:
    code = """
import os, signal, subprocess
from trl_trainer.supervisor import Stop
stop = Stop(grace_seconds=300)
launcher = subprocess.Popen(["true"])
launcher.wait()
stop.launcher = launcher.pid
os.kill(os.getpid(), signal.SIGTERM)
print(stop.time is not None)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "True\n", done.stderr


def test_kills_for_memory_are_read_from_cgroup_v2_and_v1(tmp_path: Path) -> None:
    assert supervisor.oom_kills(tmp_path) == 0
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory" / "memory.oom_control").write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 2\n")
    assert supervisor.oom_kills(tmp_path) == 2
    (tmp_path / "memory.events").write_text("low 0\nhigh 0\nmax 10\noom 3\noom_kill 3\n")
    assert supervisor.oom_kills(tmp_path) == 3


def test_threads_follow_the_containers_cpu_limit(tmp_path: Path) -> None:
    allowed = len(os.sched_getaffinity(0))
    assert supervisor.cpus(tmp_path) == allowed
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert supervisor.cpus(tmp_path) == allowed
    (tmp_path / "cpu.max").write_text("50000 100000\n")
    assert supervisor.cpus(tmp_path) == 1


def test_torchrun_gets_the_time_to_save_and_restarts_nothing(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "train.jsonl", [])
    job = supervisor.read_job(str(job_file(tmp_path, tmp_path, spec={}, terminationGracePeriodSeconds=100)))
    argv = supervisor.command("job.json", job, tmp_path, world=2)
    options = dict(pairwise(argv))
    assert options["--shutdown-timeout"] == "85"
    assert options["--max-restarts"] == "0"
    assert options["--module"] == "trl_trainer"
    assert supervisor.command("job.json", job, tmp_path, world=1)[1:] == ["-m", "trl_trainer", "--job", "job.json"]


def test_ranks_get_what_the_libraries_must_know_before_import(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "train.jsonl", [])
    job = supervisor.read_job(str(job_file(tmp_path, tmp_path, spec={})))
    found = supervisor.environment(job, tmp_path, nproc=2)
    assert found["DISABLE_KUBEFLOW_INTEGRATION"] == "TRUE"
    assert found["HF_DATASETS_CACHE"].startswith(job.paths.storage)
    assert json.loads(Path(tmp_path / "job-0.json").read_text())["uid"] in found["HF_DATASETS_CACHE"]


def test_a_job_file_that_all_attempts_share_needs_the_file_of_the_attempt_beside_it(tmp_path: Path) -> None:
    own = job_file(tmp_path, tmp_path, spec={}, attempt=2)
    assert supervisor.read_job(str(own)).attempt == 2, "one of version 1 is an attempt's own"
    shared = job_file(tmp_path, tmp_path, spec={}, contractVersion=2)
    with pytest.raises(UserError, match=r"attempt\.json: no such file; a job file of version 2 needs it"):
        supervisor.read_job(str(shared))
    beside = tmp_path / "attempt.json"
    beside.write_text('{"attempt": 3}')
    assert supervisor.read_job(str(shared)) == supervisor.read_job(str(own)).model_copy(
        update={"attempt": 3, "contract_version": 2}
    )
    for wrong, words in (
        ('{"attempt": -1}', "attempt: Input should be greater"),
        ('{"attempt": 1, "x": 1}', "x: Extra"),
    ):
        beside.write_text(wrong)
        with pytest.raises(UserError, match=words):
            supervisor.read_job(str(shared))
