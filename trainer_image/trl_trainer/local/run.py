"""`python -m trl_trainer run`: the supervisor and the ranks of the image, with a progress bar instead of a cluster."""

import os
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from types import FrameType

from tqdm import tqdm

from trl_contract.acceptance import hubs
from trl_contract.jobfile import JOB_UID, JobFile
from trl_contract.report import ExitRecord, Metric, Progress
from trl_trainer import local
from trl_trainer.checkpoints import checkpoint
from trl_trainer.errors import UserError
from trl_trainer.launch.network import PATIENCE
from trl_trainer.launch.processes import end_with_parent
from trl_trainer.local import hub
from trl_trainer.local.receiver import Receiver
from trl_trainer.local.resource import Resource

REFRESH_SECONDS = 0.3
UNTOLD = re.compile(r"runtime|per_second|^num_tokens$|^epoch$")
"""Metrics of an evaluation that say nothing about the model."""
NO_STEPS = "{desc} {elapsed}"
"""What is shown until the number of steps is known."""
QUIET_REFRESH_SECONDS = 30.0
"""Between two lines of the bar where nobody watches it."""


def run(resource: Resource, places: local.Places) -> int:
    """Train a job to its end and return the supervisor's exit code. UserError before it starts."""
    job = local.here(resource, places, local.num_gpus())
    variables = user_variables(resource)
    work = Path(job.paths.storage) / job.uid
    hub.check(resource, has_rows=(work / "data" / "report.json").exists())
    work.mkdir(parents=True, exist_ok=True)
    device = "GPU" if job.has_gpus else "CPU"
    print(f"{job.kind} {job.name}: {job.num_proc_per_node} process(es) on the {device}; files in {work}", flush=True)
    (work / "job.json").write_text(job.model_dump_json(by_alias=True, exclude_none=True, indent=1))
    receiver = Receiver()
    with tempfile.TemporaryDirectory(prefix="trl-") as folder:
        message = Path(folder) / "termination-log"
        process = _start(work, _environment(job, receiver.url, message) | variables)
        with receiver:
            _watch(process, receiver)
        record = ExitRecord.model_validate_json(message.read_text()) if message.exists() else None
    _summarize(job, record, receiver.latest or (record.progress if record else None))
    return process.returncode if process.returncode >= 0 else 1


def _start(work: Path, variables: dict[str, str]) -> subprocess.Popen[bytes]:
    with (work / "trainer.log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "trl_trainer.supervisor", "--job", str(work / "job.json")],
            stdout=log,
            stderr=subprocess.STDOUT,
            env=variables,
            # Ctrl-C reaches this process only, and it decides.
            start_new_session=True,
            preexec_fn=end_with_parent,
        )


def user_variables(resource: Resource) -> dict[str, str]:
    """Return the variables of spec.env; UserError for one that comes from a Secret and is not exported here."""
    given = resource.cluster.env or []
    missing = [variable.name for variable in given if variable.value is None and variable.name not in os.environ]
    if missing:
        raise UserError("InvalidSpec", f"spec.env: from Secrets, not set here: {', '.join(missing)}; export first")
    return {variable.name: variable.value for variable in given if variable.value is not None}


def _environment(job: JobFile, url: str, message: Path) -> dict[str, str]:
    """As in a pod: no leftovers of another launcher, and no network unless the job names the hub."""
    leftovers = ("PET_", "KUBEFLOW_", JOB_UID)
    found = {name: value for name, value in os.environ.items() if not name.startswith(leftovers)}
    if not hubs(job.spec):
        found.setdefault("HF_HUB_OFFLINE", "1")
    # Whoever sits before it hears at once that there is no network, and starts it again.
    found.setdefault(PATIENCE, "0")
    return found | {"KUBEFLOW_TRAINER_SERVER_URL": url, "TRL_TERMINATION_LOG": str(message)}


def _watch(process: subprocess.Popen[bytes], receiver: Receiver) -> None:
    """Show progress until the supervisor ends; Ctrl-C and SIGTERM are passed on once, and it saves."""

    def stop(number: int, frame: FrameType | None) -> None:
        tqdm.write("stopping: saving what is trained; the same command continues from there", file=sys.stderr)
        process.send_signal(signal.SIGTERM)
        for other in (signal.SIGINT, signal.SIGTERM):
            signal.signal(other, signal.SIG_IGN)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    interval = REFRESH_SECONDS if sys.stderr.isatty() else QUIET_REFRESH_SECONDS
    try:
        with tqdm(desc="starting", unit="step", mininterval=interval, dynamic_ncols=True, bar_format=NO_STEPS) as bar:
            while True:
                _show(bar, receiver.latest)
                try:
                    process.wait(REFRESH_SECONDS)
                    break
                except subprocess.TimeoutExpired:
                    continue
            _show(bar, receiver.latest)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _show(bar: tqdm, progress: Progress | None) -> None:
    """Show what is done now, and of training also how far it is."""
    if progress is None:
        bar.update(0)
        return
    if bar.total is None and progress.total_steps:
        bar.bar_format = None
        bar.reset(progress.total_steps)
        bar.initial = progress.resumed_from_step or 0
    share = "" if progress.activity_percentage is None else f" {progress.activity_percentage} %"
    values = {metric.name: metric.value for metric in progress.metrics if metric.name in ("loss", "reward")}
    described = f"{progress.activity}{share}" + (": " if bar.total else "")
    changed, bar.desc = described != bar.desc, described
    bar.set_postfix(values, refresh=False)
    bar.update(max(0, progress.step - bar.n))
    if changed:
        bar.refresh()


def _summarize(job: JobFile, record: ExitRecord | None, progress: Progress | None) -> None:
    """Say how it ended, where the model is, and what it was worth before and after."""
    storage = Path(job.paths.storage)
    if record is None:
        print("Failed: the supervisor ended without a word")
    else:
        print(f"{record.outcome}{f' ({record.reason})' if record.reason else ''}: {record.message}")
        for artifact in record.artifacts:
            print(f"  {artifact.type:<10} {storage / artifact.uri}")
    if progress is not None and progress.evaluation is not None:
        _print_metrics(progress.evaluation.before, progress.evaluation.after)
    if progress is not None:
        shown = [f"{found.reason}: {found.message}. {found.hint}" for found in progress.training_warnings]
        for warning in [*shown, *progress.warnings]:
            print(f"  warning    {warning}")
    if record is not None and record.outcome == "Failed" and record.log:
        print(f"\n{record.log.strip()}\n")
    print(f"  {'log':<10} {storage / job.uid / 'trainer.log'}")
    saved = checkpoint.published_paths(storage / job.uid)
    if saved and (record is None or record.outcome != "Succeeded"):
        print(f"the same command continues from step {saved[0][0]}")


def _print_metrics(before: list[Metric], after: list[Metric]) -> None:
    values = {metric.name: metric.value for metric in before}
    rows = [(m.name, values[m.name], m.value) for m in after if m.name in values and not UNTOLD.search(m.name)]
    width = max((len(name) for name, _, _ in rows), default=0)
    print(f"  {'held-out rows':<{width}}  {'before':>12}  {'after':>12}")
    for name, old, new in rows:
        print(f"  {name:<{width}}  {old:>12}  {new:>12}")
