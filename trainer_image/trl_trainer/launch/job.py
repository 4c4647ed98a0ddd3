"""What every process of an attempt reads first: the job file, and what the libraries must be told."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from trl_contract.base import Model
from trl_contract.jobfile import JOB_UID, AttemptFile, JobFile
from trl_trainer.errors import TrainerError, UserError

JOB_FILE = "/etc/trl/job.json"
ATTEMPT_FILE = "attempt.json"
AWAITED_SECONDS = 150
"""Then the pod gives way to those of the earlier job, at no cost: a new one reads the file anew."""

M = TypeVar("M", bound=Model)


def read_job(path: str) -> JobFile:
    """Return the job file, with what the attempt's file beside it says if it is a run's; UserError(InvalidSpec) names
    the field that is wrong."""
    job = _read(JobFile, Path(path), "give the job file with --job")
    if job.contract_version == 1:
        return job
    attempt = _read(AttemptFile, Path(path).with_name(ATTEMPT_FILE), "a job file of version 2 needs it beside it")
    size = attempt.per_device_batch_size
    spec = job.spec if size is None else job.spec.with_micro_batch(size)
    return job.model_copy(update={"attempt": attempt.attempt, "spec": spec, "shrunk": size is not None})


def await_own(job: JobFile, path: str, environment: Mapping[str, str]) -> JobFile:
    """Return the job file, read again until it is that of the pod's own job. TrainerError after AWAITED_SECONDS.

    Of a job that was deleted and created again under its name, a kubelet may mount what it still knows of the earlier
    one's ConfigMaps. It mends that within a minute or two, but not of an immutable one as long as any pod uses it, this
    one included. Its uid names the folder to resume from.
    """
    own, end = environment.get(JOB_UID, job.uid), time.monotonic() + AWAITED_SECONDS
    if job.uid != own:
        print(f"supervisor: waiting for the job file: {path} is of {job.uid}, not of {own}", flush=True)
    while job.uid != own:
        if time.monotonic() > end:
            message = f"{path} is still that of {job.uid}, an earlier job of this name whose pods have yet to end"
            raise TrainerError("Preempted", message)
        time.sleep(1)
        job = read_job(path)
    return job


def _read(model: type[M], path: Path, remedy: str) -> M:
    try:
        return model.model_validate_json(path.read_text())
    except FileNotFoundError:
        raise UserError("InvalidSpec", f"{path}: no such file; {remedy}") from None
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UserError("InvalidSpec", f"{path}: {where}: {first['msg']}") from None


def library_settings(job: JobFile) -> dict[str, str]:
    """Return what the libraries must be told before they are imported."""
    work = Path(job.paths.storage) / job.uid
    return {
        # Our own reporter posts from a thread of its own; transformers' would post from the training thread.
        "DISABLE_KUBEFLOW_INTEGRATION": "TRUE",
        # What is downloaded or cached of the data may be larger than the node's own disk.
        "HF_DATASETS_CACHE": str(work / "cache" / "datasets"),
        "TOKENIZERS_PARALLELISM": "false",
    }
