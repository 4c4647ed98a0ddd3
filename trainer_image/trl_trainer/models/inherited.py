"""What earlier jobs have left for this one: looked at before anything of it is loaded."""

from pathlib import Path

from trl_contract.jobfile import JobFile
from trl_trainer.errors import UserError
from trl_trainer.files import digest


def check(job: JobFile) -> None:
    """UserError(ArtifactChanged) unless each folder that an earlier job has left is what it was when that job ended.

    Every file is read once, as fast as the storage and the processor's sha256 are; what is loaded next is then in the
    page cache.
    """
    paths = job.paths
    fields = {paths.model: "model", paths.reference_model: "dpo.referenceModel.source"}
    fields |= {path: f"grpo.rewards.{name}.rewardModel" for name, path in paths.rewards.items()}
    for folder, expected in (job.digests or {}).items():
        if not Path(folder).is_dir():
            raise UserError("ArtifactChanged", f"{fields[folder]}: {folder}, which an earlier job has left, is gone")
        if (found := digest(Path(folder))) != expected:
            raise UserError(
                "ArtifactChanged",
                f"{fields[folder]}: {folder} is no longer what an earlier job has left there: its digest is {found},"
                f" and was {expected}: restore it, or run that job anew",
            )
