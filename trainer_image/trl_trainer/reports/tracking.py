"""TensorBoard and W&B through transformers' own callbacks: what they must be told, and their last word."""

import os
import sys
import threading
from pathlib import Path

from trl_contract.jobfile import JobFile

FINISH_SECONDS = 60.0
"""A tracker whose network is gone must not hold a finished job."""


def report_to(job: JobFile) -> list[str]:
    """Return the names of the trackers for TrainingArguments.report_to."""
    tracking = job.spec.tracking
    if tracking is None:
        return []
    return [name for name in ("tensorboard", "wandb") if getattr(tracking, name) is not None]


def variables(job: JobFile, work: Path, environment: dict[str, str]) -> dict[str, str]:
    """Return the variables that the trackers read: one run across all attempts, files on the storage volume.

    Without an API key W&B records offline, to be uploaded with `wandb sync` later.
    """
    tracking = job.spec.tracking
    found: dict[str, str] = {}
    if tracking is not None and tracking.tensorboard is not None:
        found["TENSORBOARD_LOGGING_DIR"] = str(work / tracking.tensorboard.path)
    if tracking is not None and tracking.wandb is not None:
        found |= {
            "WANDB_PROJECT": tracking.wandb.project,
            "WANDB_TAGS": ",".join(tracking.wandb.tags),
            "WANDB_RUN_ID": job.uid,
            "WANDB_RESUME": "allow",
            "WANDB_DIR": str(work),
            "WANDB_MODE": "online" if environment.get("WANDB_API_KEY") else "offline",
        }
        if tracking.wandb.entity is not None:
            found["WANDB_ENTITY"] = tracking.wandb.entity
    return found


def configure(job: JobFile, work: Path) -> None:
    """Set the variables; call it before the trainer is made."""
    os.environ.update(variables(job, work, dict(os.environ)))


def finish() -> None:
    """Let W&B write its last lines: ranks end without the interpreter's exit handlers. It gets FINISH_SECONDS; what it
    has not sent by then lies on the storage volume and can be sent with `wandb sync`."""
    if "wandb" in sys.modules:
        last = threading.Thread(target=sys.modules["wandb"].finish, name="wandb", daemon=True)
        last.start()
        last.join(FINISH_SECONDS)
