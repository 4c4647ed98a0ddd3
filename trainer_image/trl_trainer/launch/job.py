"""What every process of an attempt reads first: the job file, and what the libraries must be told."""

from pathlib import Path

from pydantic import ValidationError

from trl_contract.jobfile import JobFile
from trl_trainer.errors import UserError

JOB_FILE = "/etc/trl/job.json"


def read_job(path: str) -> JobFile:
    """Return the job file; UserError(InvalidSpec) names the field that is wrong."""
    try:
        return JobFile.model_validate_json(Path(path).read_text())
    except FileNotFoundError:
        raise UserError("InvalidSpec", f"{path}: no such file; give the job file with --job") from None
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
