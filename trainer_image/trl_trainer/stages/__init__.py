"""The four stages: each says what differs by kind and builds TRL's own trainer."""

from trl_contract.base import Kind
from trl_contract.jobfile import JobFile
from trl_trainer.stage import Stage
from trl_trainer.stages import dpo, grpo, reward, sft
from trl_trainer.stages.preparation import tokenizing

__all__ = ["STAGES", "of", "tokenizing"]

STAGES: dict[Kind, Stage] = {"SFTJob": sft.STAGE, "RewardJob": reward.STAGE, "DPOJob": dpo.STAGE, "GRPOJob": grpo.STAGE}


def of(job: JobFile) -> Stage:
    """Return the stage of the job's kind."""
    return STAGES[job.kind]
