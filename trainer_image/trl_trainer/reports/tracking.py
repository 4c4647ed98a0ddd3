"""TensorBoard and W&B through transformers' own callbacks: what they must be told, and their last word."""

import os
import sys
import threading
from pathlib import Path
from typing import Any

from trl_contract.jobfile import JobFile
from trl_contract.training import Wandb
from trl_trainer.launch.network import patiently

FINISH_SECONDS = 60.0
"""A tracker whose network is gone must not hold a finished job."""


def report_to(job: JobFile) -> list[str]:
    """Return the names of the trackers for TrainingArguments.report_to."""
    tracking = job.spec.tracking
    if tracking is None:
        return []
    return [name for name in ("tensorboard", "wandb") if getattr(tracking, name) is not None]


def begin(job: JobFile, work: Path, *, is_main: bool) -> None:
    """Tell the trackers where to write; call it before the trainer is made. Rank 0 begins the W&B run."""
    tracking = job.spec.tracking
    if tracking is not None and tracking.tensorboard is not None:
        os.environ["TENSORBOARD_LOGGING_DIR"] = str(work / tracking.tensorboard.path)
    if tracking is not None and tracking.wandb is not None and is_main:
        arguments = wandb_run(job, tracking.wandb, work, has_key="WANDB_API_KEY" in os.environ)
        patiently("W&B", lambda: _init(arguments))


def _init(arguments: dict[str, Any]) -> None:
    import wandb

    try:
        wandb.init(**arguments)
    except wandb.errors.CommError:
        # What is left of the try would hold the run's id.
        wandb.teardown()
        raise


def wandb_run(job: JobFile, given: Wandb, work: Path, *, has_key: bool) -> dict[str, Any]:
    """Return the arguments of wandb.init: one run across all attempts, its files on the storage volume.

    Without an API key W&B records offline, to be uploaded with `wandb sync` later. transformers' own callback takes
    the run that is there; left to begin one it would split WANDB_TAGS at commas, and fail without tags.
    """
    return {
        "project": given.project,
        "entity": given.entity,
        "name": job.name,
        "tags": list(given.tags),
        "id": job.uid,
        "resume": "allow",
        "dir": str(work),
        "mode": "online" if has_key else "offline",
    }


def finish() -> None:
    """Let W&B write its last lines: ranks end without the interpreter's exit handlers. It gets FINISH_SECONDS; what it
    has not sent by then lies on the storage volume and can be sent with `wandb sync`."""
    if "wandb" in sys.modules:
        last = threading.Thread(target=sys.modules["wandb"].finish, name="wandb", daemon=True)
        last.start()
        last.join(FINISH_SECONDS)
