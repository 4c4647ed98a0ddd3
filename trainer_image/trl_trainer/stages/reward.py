"""Reward model: preference pairs and a head with one output (TRL's RewardTrainer)."""

from typing import Any

from transformers import PreTrainedTokenizerBase
from trl import RewardConfig, RewardTrainer

from trl_contract.jobfile import JobFile
from trl_contract.spec import RewardSpec
from trl_trainer.data import Data, rows
from trl_trainer.distributed.world import Run
from trl_trainer.models import adapter, base
from trl_trainer.preflight import lengths, steps
from trl_trainer.rewards import Rewards
from trl_trainer.stage import Stage
from trl_trainer.stages import balanced, preparation


def settings(job: JobFile[RewardSpec]) -> dict[str, Any]:
    return {
        "max_length": job.spec.max_length,
        "activation_offloading": job.spec.activation_offloading,
        "train_sampling_strategy": "random" if job.spec.dataset.shuffle else "sequential",
        "center_rewards_coefficient": job.spec.reward.center_rewards_coefficient,
    }


class Trainer(balanced.BalancesRanks, preparation.TakesPreparedRows, RewardTrainer):
    pass


def trainer(run: Run, args: RewardConfig, tokenizer: PreTrainedTokenizerBase, data: Data, rewards: Rewards) -> Trainer:
    """The head has random weights of the job's seed."""
    model = base.trained(run, STAGE, args)
    return Trainer(
        model=model,
        args=args,
        train_dataset=data.train,
        eval_dataset=data.eval,
        processing_class=tokenizer,
        # SEQ_CLS makes peft train and save the new head beside the adapter.
        peft_config=adapter.lora(run.job, STAGE.task_type, model),
        quantization_config=base.quantization(run),
    )


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
