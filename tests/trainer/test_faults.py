"""What goes wrong while training, and how the rank, the checkpoints and the record answer."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from trainer_kit import (
    KILL,
    QUICK,
    STALL,
    Ended,
    Warm,
    at_step,
    job_file,
    metrics,
    preference_pairs,
    prompts,
    start_supervisor,
    supervise_stand_in,
    wait_for,
    write_jsonl,
)

from trl_contract.report import ExitRecord
from trl_trainer.checkpoints import checkpoint

SIGTERM = "os.kill(os.getpid(), signal.SIGTERM)"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_jsonl(tmp_path / "train.jsonl", preference_pairs(60))
    return tmp_path


def steps(folder: Path) -> list[int]:
    work = folder / "storage" / "uid-1"
    return [step for step, path in checkpoint.folders(work) if (path / checkpoint.MANIFEST).exists()]


def run(warm: Warm, folder: Path, model: Path, attempt: int = 0, **options: Any) -> Ended:
    spec = options.pop("spec", {})
    world = options.pop("world", 2)
    job = options.pop("job", {})
    return warm.run(
        job_file(folder, model, spec=spec, attempt=attempt, numProcPerNode=world, **job),
        world,
        **options,
    )


def test_sigterm_on_one_rank_saves_on_all_and_ends_with_143(warm: Warm, folder: Path, model_folder: Path) -> None:
    ended = run(
        warm,
        folder,
        model_folder,
        spec={"checkpoint": {"everySteps": 100}},
        prelude=[QUICK, *at_step(3, SIGTERM, rank=1)],
    )
    assert ended.codes == [143, 143], ended.logs
    assert {record.outcome for record in ended.records.values()} == {"Preempted"}
    # The signal came in step 3, travelled at its end, and was read at the end of step 4.
    assert steps(folder) == [4]
    ended = run(warm, folder, model_folder, attempt=1)
    assert ended.codes == [0, 0], ended.logs
    assert ended.records[0].progress is not None
    assert ended.records[0].progress.resumed_from_step == 4


def test_sigterm_in_a_slow_step_saves_at_the_end_of_that_very_step(
    warm: Warm, folder: Path, model_folder: Path
) -> None:
    # To one rank all steps are slow: it says so to the other.
    slow = "import trl_trainer.checkpoints.schedule as s; s.SLOW_SECONDS = 0 if rank == 0 else 1000"
    spec = {"checkpoint": {"everySteps": 100}, "evaluation": {"enabled": False}}
    ended = run(warm, folder, model_folder, spec=spec, prelude=[slow, *at_step(3, SIGTERM, rank=1)])
    assert ended.codes == [143, 143], ended.logs
    assert steps(folder) == [3]


def test_sigterm_in_an_evaluation_saves_nothing_that_is_not_finite(
    warm: Warm, folder: Path, model_folder: Path
) -> None:
    spec = {
        "training": {"loggingSteps": 100},
        "checkpoint": {"everySteps": 100},
        "evaluation": {"everySteps": 3, "maxExamples": 6, "perDeviceBatchSize": 1},
    }
    poison = "next(p for p in kwargs['model'].parameters() if p.requires_grad).data.mul_(float('nan'))"
    prelude = [*in_evaluation(3), *at_step(3, poison, rank=0)]
    ended = run(warm, folder, model_folder, spec=spec, prelude=prelude)
    assert ended.codes == [12, 12], ended.logs
    assert steps(folder) == []


def in_evaluation(step: int) -> list[str]:
    """A prelude that sends SIGTERM to rank 1 in the evaluation after `step`."""
    return [
        f"""
if rank == 1:
    import os, signal
    from trl_trainer.checkpoints.publisher import FiniteGuard
    def on_prediction_step(self, args, state, control, **kwargs):
        if state.global_step == {step}:
            os.kill(os.getpid(), signal.SIGTERM)
    FiniteGuard.on_prediction_step = on_prediction_step
"""
    ]


def test_sigterm_in_an_evaluation_saves_the_step_and_stops(warm: Warm, folder: Path, model_folder: Path) -> None:
    spec = {
        "checkpoint": {"everySteps": 100},
        "evaluation": {"everySteps": 3, "maxExamples": 6, "perDeviceBatchSize": 1},
    }
    ended = run(warm, folder, model_folder, spec=spec, prelude=in_evaluation(3))
    assert ended.codes == [143, 143], ended.logs
    assert steps(folder) == [3]


def test_nan_ends_the_run_without_a_manifest_and_with_its_own_class(
    warm: Warm, folder: Path, model_folder: Path
) -> None:
    poison = "next(p for p in kwargs['model'].parameters() if p.requires_grad).data.mul_(float('nan'))"
    ended = run(warm, folder, model_folder, prelude=at_step(6, poison, rank=0))
    assert ended.codes == [12, 12], ended.logs
    assert ended.records[0].reason == "NonFiniteLoss"
    assert "step 6" in ended.records[0].message
    assert ended.records[0].progress is not None
    assert [report.step for report in ended.records[0].progress.checkpoints] == [2, 4]
    assert steps(folder) == [4, 2]


def test_diverging_run_never_publishes_what_is_not_finite(warm: Warm, folder: Path, model_folder: Path) -> None:
    spec = {"training": {"learningRate": 1, "optimizer": "sgd", "maxGradNorm": 1000, "loggingSteps": 100}}
    blow = "[p.data.mul_(1e30) for p in kwargs['model'].parameters()]"
    prelude = [*at_step(3, blow, rank=0), at_step(3, blow, rank=1)[0]]
    ended = run(warm, folder, model_folder, spec=spec, prelude=prelude)
    assert 12 in ended.codes, ended.logs
    assert steps(folder) == [2]


def test_hanging_rank_is_found_and_every_stack_is_written(warm: Warm, folder: Path, model_folder: Path) -> None:
    hang = at_step(3, "watchdog.limit(3); time.sleep(1000)", rank=1)
    ended = run(warm, folder, model_folder, prelude=[STALL, *hang, *at_step(3, "watchdog.limit(3)", rank=0)])
    assert ended.codes == [137, 137], ended.logs
    for record, log in zip(ended.records.values(), ended.logs, strict=True):
        assert record.reason == "CommunicationTimeout"
        assert "while training, after step 2" in record.message
        assert "stacks of all threads" in log
    assert "time.sleep" not in ended.logs[0]
    assert "on_step_begin" in ended.logs[1]


def test_training_without_sharding_is_refused(warm: Warm, folder: Path, model_folder: Path) -> None:
    """Without cpu_fsdp.py accelerate trains DDP; should it shard one day by itself, that file can go."""
    ended = run(warm, folder, model_folder, prelude=["import trl_trainer.rank as r; r.cpu_fsdp.enable = lambda: None"])
    assert ended.codes == [1, 1], ended.logs
    assert "not sharded: FSDP is off" in ended.records[0].message
    assert metrics(folder) == []


@pytest.mark.parametrize("damage", ["truncate", "empty", "delete", "flip", "no-manifest"])
def test_torn_checkpoint_is_passed_over_for_the_one_before(
    damage: str, warm: Warm, folder: Path, model_folder: Path
) -> None:
    ended = run(warm, folder, model_folder, world=1, prelude=at_step(7, KILL, rank=0, saved=6))
    assert ended.codes == [-signal.SIGKILL]
    newest = folder / "storage" / "uid-1" / "checkpoint-6"
    victim = newest / "optimizer.pt"
    match damage:
        case "truncate":
            os.truncate(victim, victim.stat().st_size // 2)
        case "empty":
            os.truncate(victim, 0)
        case "delete":
            victim.unlink()
        case "flip":
            content = bytearray(victim.read_bytes())
            content[len(content) // 2] ^= 1
            victim.write_bytes(content)
        case "no-manifest":
            (newest / checkpoint.MANIFEST).unlink()
    ended = run(warm, folder, model_folder, world=1, attempt=1)
    assert ended.codes == [0], ended.logs
    progress = ended.records[0].progress
    assert progress is not None
    assert progress.resumed_from_step == 4
    assert any("checkpoint-6" in warning for warning in progress.warnings)


@pytest.mark.parametrize(("world", "part"), [(1, "optimizer.pt"), (2, "optimizer_0/.metadata")])
def test_checkpoint_that_verifies_but_does_not_load_is_marked_and_the_next_attempt_falls_back(
    world: int, part: str, warm: Warm, folder: Path, model_folder: Path
) -> None:
    run(warm, folder, model_folder, world=world, prelude=at_step(7, KILL, rank=0, saved=6))
    newest = folder / "storage" / "uid-1" / "checkpoint-6"
    (newest / part).write_bytes(b"not an optimizer")
    manifest = checkpoint.Manifest.model_validate_json((newest / checkpoint.MANIFEST).read_text())
    files = [checkpoint.describe(newest, newest / file.path) for file in manifest.files]
    (newest / checkpoint.MANIFEST).write_text(
        manifest.model_copy(update={"files": files}).model_dump_json(by_alias=True)
    )
    # The first time it may have been the fault of something else.
    for attempt in range(1, 1 + checkpoint.FAILED_LOADS):
        ended = run(warm, folder, model_folder, world=world, attempt=attempt)
        assert ended.codes == [13] * world, ended.logs
        assert ended.records[0].reason == "CheckpointCorrupt"
    ended = run(warm, folder, model_folder, world=world, attempt=attempt + 1)
    assert ended.codes == [0] * world, ended.logs
    assert ended.records[0].progress is not None
    assert ended.records[0].progress.resumed_from_step == 4


def test_another_number_of_processes_is_refused(warm: Warm, folder: Path, model_folder: Path) -> None:
    run(warm, folder, model_folder, world=1, prelude=at_step(5, KILL, rank=0, saved=4))
    ended = run(warm, folder, model_folder, world=2, attempt=1)
    assert ended.codes[0] == 10, ended.logs
    assert "written by 1 processes and this attempt has 2" in ended.records[0].message


def test_finished_training_is_not_repeated_and_export_runs(warm: Warm, folder: Path, model_folder: Path) -> None:
    """Killed between the last checkpoint and the export."""
    prelude = [
        "import os, signal; from trl_trainer.results import export as e; e.write = lambda *a: os.kill(os.getpid(), 9)"
    ]
    ended = run(warm, folder, model_folder, prelude=prelude)
    assert -signal.SIGKILL in ended.codes
    assert steps(folder)[0] == 8
    before = metrics(folder)
    ended = run(warm, folder, model_folder, attempt=1)
    assert ended.codes == [0, 0], ended.logs
    record = ended.records[0]
    assert record.step == 8
    assert record.artifacts
    assert [line for line in metrics(folder) if "loss" in line] == [line for line in before if "loss" in line]
    assert record.progress is not None
    assert record.progress.evaluation is not None
    assert record.progress.evaluation.before


def test_older_attempt_that_wakes_up_publishes_nothing(warm: Warm, folder: Path, model_folder: Path) -> None:
    claim = "from trl_trainer.checkpoints import fence; fence.claim(self._run.work, 1)"
    ended = run(warm, folder, model_folder, prelude=at_step(3, claim, rank=0, saved=2))
    assert ended.codes[0] == 137, ended.logs
    assert "attempt 1 has taken over" in ended.records[0].message
    assert steps(folder) == [2]
    assert not (folder / "storage/uid-1/checkpoint-4").exists()


@pytest.mark.parametrize("call", ["write", "make_final"])
def test_older_attempt_that_wakes_up_exports_nothing(call: str, warm: Warm, folder: Path, model_folder: Path) -> None:
    prelude = f"""
import trl_trainer.results.export as e
from trl_trainer.checkpoints import fence
original = e.{call}
def late(run, *args):
    fence.claim(run.work, 1)
    return original(run, *args)
e.{call} = late
"""
    ended = run(warm, folder, model_folder, world=1, prelude=[prelude])
    assert ended.codes == [137], ended.logs
    assert "attempt 1 has taken over" in ended.records[0].message
    assert not (folder / "storage/uid-1/final").exists()
    # What the older one has begun is no obstacle.
    ended = run(warm, folder, model_folder, world=1, attempt=1)
    assert ended.codes == [0], ended.logs
    assert not list((folder / "storage/uid-1").glob("final.part*"))


def test_a_crash_after_the_last_word_takes_no_success_away(warm: Warm, folder: Path, model_folder: Path) -> None:
    crash = "import os, torch.distributed as d; d.destroy_process_group = os.abort"
    ended = run(warm, folder, model_folder, prelude=[crash])
    assert ended.codes == [-signal.SIGABRT] * 2, ended.logs
    assert [record.outcome for record in ended.records.values()] == ["Succeeded"] * 2


def test_full_disk_while_saving_keeps_the_older_checkpoints(warm: Warm, folder: Path, model_folder: Path) -> None:
    """A real, small file system that is full."""
    storage = folder / "storage"
    storage.mkdir()
    assert os.system(f"mount -t tmpfs -o size=4m none {storage}") == 0
    try:
        fill = f"open({str(storage)!r} + '/ballast', 'wb').write(bytes(3 << 20))"
        try_fill = f"exec({fill!r}) if not os.path.exists({str(storage)!r} + '/ballast') else None"
        ended = run(warm, folder, model_folder, world=1, prelude=at_step(4, try_fill, rank=0, saved=2))
        assert ended.codes == [10], ended.logs
        assert ended.records[0].reason == "StorageFull"
        assert steps(folder) == [2]
        (storage / "ballast").unlink()
        ended = run(warm, folder, model_folder, world=1, attempt=1)
        assert ended.codes == [0], ended.logs
    finally:
        assert os.system(f"umount -l {storage}") == 0


def test_full_disk_of_one_rank_while_shards_are_written_is_told_by_all(
    warm: Warm, folder: Path, model_folder: Path
) -> None:
    full = """
import errno
from torch.distributed.checkpoint import FileSystemWriter
if rank == 1:
    def write_data(self, *args):
        raise OSError(errno.EDQUOT, "Disk quota exceeded", str(self.path))
    FileSystemWriter.write_data = write_data
"""
    ended = run(warm, folder, model_folder, prelude=[full])
    assert ended.codes == [10, 10], ended.logs
    assert {record.reason for record in ended.records.values()} == {"StorageFull"}
    assert steps(folder) == []


def test_a_checkpoint_that_takes_longer_than_the_stall_timeout_is_no_stall(
    warm: Warm, folder: Path, model_folder: Path
) -> None:
    slow = """
import time
from torch.distributed.checkpoint import FileSystemWriter
from trl_trainer.launch import watchdog
original = FileSystemWriter.write_data
def write_data(self, *args):
    FileSystemWriter.write_data = original
    watchdog.limit(4)
    for _ in range(12):
        with (self.path / "growing").open("ab") as file:
            file.write(bytes(100))
        time.sleep(0.5)
    (self.path / "growing").unlink(missing_ok=True)
    watchdog.limit(1000)
    return original(self, *args)
FileSystemWriter.write_data = write_data
"""
    spec = {"training": {"maxSteps": 2}, "evaluation": {"enabled": False}}
    ended = run(warm, folder, model_folder, spec=spec, prelude=[STALL, slow])
    assert ended.codes == [0, 0], ended.logs
    assert steps(folder) == [2]


def test_full_disk_while_exporting_leaves_no_half_model(warm: Warm, folder: Path, model_folder: Path) -> None:
    storage = folder / "storage"
    storage.mkdir()
    assert os.system(f"mount -t tmpfs -o size=6m none {storage}") == 0
    try:
        fill = """
import trl_trainer.results.export as e
original = e.write
def write(run, *args):
    open(str(run.work / 'ballast'), 'wb').write(bytes(STORAGE - 100_000))
    return original(run, *args)
e.write = write
"""
        free = "__import__('shutil').disk_usage(run.work).free"
        ended = run(warm, folder, model_folder, world=1, prelude=[fill.replace("STORAGE", free)])
        assert ended.codes == [10], ended.logs
        assert ended.records[0].reason == "StorageFull"
        assert not (storage / "uid-1" / "final").exists()
        (storage / "uid-1" / "ballast").unlink()
        ended = run(warm, folder, model_folder, world=1, attempt=1)
        assert ended.codes == [0], ended.logs
        assert (storage / "uid-1" / "final" / "model.safetensors").exists()
    finally:
        assert os.system(f"umount -l {storage}") == 0


def test_a_rank_that_hangs_before_training_ends_and_those_that_wait_for_it_end_with_it(
    warm: Warm, folder: Path, model_folder: Path
) -> None:
    hang = """
import time, trl_trainer.rank as r
def hangs(*args):
    r.watchdog.limit(2)
    time.sleep(1000)
r.preflight.run = hangs
"""
    ended = run(warm, folder, model_folder, prelude=[STALL, hang], patience=0)
    assert ended.codes == [137, 143], ended.logs
    assert ended.records[0].reason == "Stalled"
    assert "while preparing the data" in ended.records[0].message
    assert "in hangs" in ended.logs[0], "its stack"
    assert ended.records[1].reason == "Preempted", "rank 1 waited as long, and was not judged"


def test_rank_zero_takes_the_clock_and_all_save_with_it(warm: Warm, folder: Path, model_folder: Path) -> None:
    clock = """
import types
import trl_trainer.checkpoints.schedule as schedule
from trl_trainer.checkpoints.publisher import FiniteGuard
clock = types.SimpleNamespace(now=0.0, monotonic=lambda: clock.now)
schedule.time = clock
def on_step_begin(self, args, state, control, **kwargs):
    clock.now += 0.5 if rank == 0 else 100
FiniteGuard.on_step_begin = on_step_begin
"""
    spec = {"checkpoint": {"everySteps": None, "everyMinutes": 1.5 / 60}}
    ended = run(warm, folder, model_folder, spec=spec, prelude=[clock])
    assert ended.codes == [0, 0], ended.logs
    found = ended.records[0].progress
    assert found is not None
    # Due at the end of step 3 by rank 0's clock, known to all one step later; and the last step always.
    assert [report.step for report in found.checkpoints] == [4, 8]


@pytest.mark.parametrize(
    ("evaluation", "prelude"),
    [
        # Known at the end of step 4; the completions of steps 4 to 6 are not saved.
        ({"enabled": False}, [QUICK, *at_step(3, SIGTERM, rank=1)]),
        ({"everySteps": 4, "maxExamples": 8}, in_evaluation(4)),
    ],
    ids=["in a step", "in an evaluation"],
)
def test_grpo_saves_only_between_two_batches_of_completions(
    evaluation: dict[str, Any], prelude: list[str], warm: Warm, folder: Path, model_folder: Path
) -> None:
    write_jsonl(folder / "train.jsonl", prompts(40))
    spec = {
        "grpo": {
            "numIterations": 3,
            "generation": {"maxCompletionLength": 4},
            "rewards": [{"name": "short", "length": {"target": 2}}],
        },
        "evaluation": evaluation,
        "checkpoint": {"everySteps": 100},
        "training": {"maxSteps": 12},
    }
    ended = run(warm, folder, model_folder, job={"kind": "GRPOJob"}, spec=spec, prelude=prelude)
    assert ended.codes == [143, 143], ended.logs
    assert steps(folder) == [6]


def test_a_clock_that_jumps_back_changes_nothing(warm: Warm, folder: Path, model_folder: Path) -> None:
    back = "import types, datetime as d, trl_trainer.launch.records as r; r.datetime = types.SimpleNamespace("
    back += "now=lambda zone: d.datetime(2001, 1, 31, tzinfo=zone))"
    ended = run(warm, folder, model_folder, world=1, prelude=at_step(4, back, rank=0))
    assert ended.codes == [0], ended.logs
    assert [line["step"] for line in metrics(folder) if "loss" in line] == list(range(1, 9))
    assert any(line["time"].startswith("2001") for line in metrics(folder))
    progress = ended.records[0].progress
    assert progress is not None
    assert progress.eta_seconds == 0


def test_a_run_of_no_step_is_a_failure(warm: Warm, folder: Path, model_folder: Path) -> None:
    nothing = "from transformers import Trainer; Trainer.train = lambda self, **options: None"
    ended = run(warm, folder, model_folder, world=1, prelude=[nothing])
    assert ended.codes == [10], ended.logs
    assert "the data end after 0 of" in ended.records[0].message
    assert not (folder / "storage/uid-1/final").exists()


def test_a_memory_limit_that_kills_a_rank_is_named(folder: Path, model_folder: Path) -> None:
    """A real cgroup: the supervisor lives in it, a rank takes more than the limit and the kernel kills it."""
    v2 = Path("/sys/fs/cgroup/cgroup.controllers").exists()
    group = Path("/sys/fs/cgroup", "" if v2 else "memory", f"trl-test-{os.getpid()}")
    group.mkdir()
    # As a container sees it: its own group is the root.
    root = folder / "cgroup"
    (root if v2 else folder / "v1" / "memory").parent.mkdir(exist_ok=True)
    (root if v2 else folder / "v1" / "memory").symlink_to(group)
    try:
        (group / ("memory.max" if v2 else "memory.limit_in_bytes")).write_text(str(300 << 20))
        code = f"""
import functools, os, sys
from pathlib import Path
from trl_trainer import supervisor
from trl_trainer.checkpoints import fence
from trl_trainer.launch import records
open({str(group / "cgroup.procs")!r}, "w").write(str(os.getpid()))
job = supervisor.read_job({str(job_file(folder, model_folder, spec={}, numProcPerNode=1))!r})
fence.claim(Path(job.paths.storage) / job.uid, 0)
supervisor.command = lambda *a: [sys.executable, "-c", "print(len(b'x' * (1 << 30)))"]
supervisor.oom_kills = functools.partial(supervisor.oom_kills, Path({str(root if v2 else folder / "v1")!r}))
record = supervisor.supervise(job, "job.json", supervisor.Stop(300))
print(record.reason, records.exit_code(record), record.message)
"""
        run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
        said = "OutOfHostMemory 137 rank 0 was killed by the kernel for want of host memory: resources.limits.memory is"
        assert run.stdout.startswith(f"{said} 300.0 MiB for all processes of the pod"), run
        assert run.stdout.endswith("raise it\n"), run
    finally:
        group.rmdir()


def test_torchrun_that_is_killed_takes_the_ranks_with_it(folder: Path, model_folder: Path) -> None:
    kill = (
        "import os, signal, sys, time\n"
        f"open({str(folder)!r} + '/rank-' + os.environ['RANK'], 'w').write(str(os.getpid()))\n"
        f"while len([name for name in os.listdir({str(folder)!r}) if name.startswith('rank-')]) < 2: time.sleep(0.05)\n"
        "os.kill(os.getppid(), signal.SIGKILL) if os.environ['RANK'] == '0' else None\n"
        "time.sleep(600)\n"
    )
    record = supervise_stand_in(folder, model_folder, kill)
    assert (record.outcome, record.reason) == ("Failed", "Unknown")
    assert not [pid for path in folder.glob("rank-*") if Path("/proc", pid := path.read_text()).exists()]


def test_a_bare_torchrun_trains_the_same_job(warm: Warm, folder: Path, model_folder: Path) -> None:
    """Without our supervisor, as in somebody else's launcher."""
    job = job_file(folder, model_folder, spec={"training": {"maxSteps": 2}, "evaluation": {"enabled": False}})
    argv = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    run = subprocess.run(
        [*argv, "--module", "trl_trainer", "--job", str(job)], capture_output=True, text=True, timeout=300, check=False,
        env={**os.environ, **warm.environment(), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-4000:]
    assert steps(folder) == [2]
    assert (folder / "storage/uid-1/final/model.safetensors").exists()


def test_sigterm_to_the_supervisor_saves_and_exits_143(folder: Path, model_folder: Path) -> None:
    """The whole way, and nothing of it warm: supervisor, torchrun, ranks; and a second SIGTERM changes nothing."""
    spec = {"training": {"maxSteps": 100000}, "checkpoint": {"everySteps": 100000}}
    process = start_supervisor(job_file(folder, model_folder, spec=spec), folder)
    wait_for(lambda: any(line["step"] >= 3 for line in metrics(folder)), 300)
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGTERM)
    log, _ = process.communicate(timeout=240)
    assert process.returncode == 143, log
    record = ExitRecord.model_validate_json((folder / "termination-log").read_text())
    assert (record.outcome, record.reason) == ("Preempted", "Preempted")
    assert "is saved" in record.message
    [saved] = steps(folder)
    assert record.checkpoint == f"uid-1/checkpoint-{saved}"
    assert record.progress is not None
    assert record.progress.step == saved
    manifest = json.loads((folder / "storage" / "uid-1" / f"checkpoint-{saved}" / "MANIFEST.json").read_text())
    assert manifest["worldSize"] == 2
