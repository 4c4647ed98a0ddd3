"""Reward model: preference pairs and a head with one output (TRL's RewardTrainer)."""

from typing import Any

from transformers import PreTrainedTokenizerBase
from trl import RewardConfig, RewardTrainer

from trl_contract.jobfile import JobFile
from trl_contract.spec import RewardSpec
from trl_trainer.data import Data, rows
from trl_trainer.distributed.world import Run
from trl_trainer.preflight import lengths, steps
from trl_trainer.rewards import Rewards
from trl_trainer.stage import Stage
from trl_trainer.stages import balanced, common, preparation


def settings(job: JobFile[RewardSpec]) -> dict[str, Any]:
    return {
        **common.settings(job),
        "center_rewards_coefficient": job.spec.reward.center_rewards_coefficient,
    }


class Trainer(balanced.BalancesRanks, preparation.TakesPreparedRows, RewardTrainer):
    pass


def trainer(run: Run, args: RewardConfig, tokenizer: PreTrainedTokenizerBase, data: Data, rewards: Rewards) -> Trainer:
    """The head has random weights of the job's seed."""
    return Trainer(**common.arguments(run, STAGE, args, tokenizer, data))


STAGE = Stage(
    method="reward modelling",
    config=RewardConfig,
    settings=settings,
    trainer=trainer,
    shape=rows.pair,
    sequences=lengths.whole,
    total_steps=steps.of_rows,
    tokens=("chosen_ids", "rejected_ids"),
    tokenize=lambda job, args, tokenizer, rows, split: preparation.prepare(RewardTrainer, rows, tokenizer, args),
    task_type="SEQ_CLS",
    metrics=(
        "accuracy",
        "margin",
        "min_reward",
        "mean_reward",
        "max_reward",
        "num_tokens",
        "aux_loss",
    ),
)
