"""Reward model: preference pairs and a head with one output (TRL's RewardTrainer)."""

from typing import Any

from transformers import PreTrainedTokenizerBase
from trl import RewardConfig, RewardTrainer

from trl_contract.jobfile import JobFile
from trl_trainer.data import Data
from trl_trainer.distributed.world import Run
from trl_trainer.models import adapter, arguments, source


def config(job: JobFile, *, output_dir: str, world: int, device: str, gradient_checkpointing: bool) -> dict[str, Any]:
    """Return the keyword arguments of RewardConfig for a resolved job. Pure."""
    return {
        **arguments.common(
            job, output_dir=output_dir, world=world, device=device, gradient_checkpointing=gradient_checkpointing
        ),
        "max_length": job.spec.training.max_length,
        "train_sampling_strategy": "random" if job.spec.dataset.shuffle else "sequential",
        "center_rewards_coefficient": job.spec.reward.center_rewards_coefficient,
        "model_init_kwargs": arguments.model_init(job, frozen=False),
    }


def trainer(run: Run, tokenizer: PreTrainedTokenizerBase, data: Data) -> RewardTrainer:
    """Return TRL's trainer for the job, model loaded, its head with random weights of the job's seed."""
    args = RewardConfig(
        **config(
            run.job,
            output_dir=str(run.work),
            world=run.world,
            device=run.device,
            gradient_checkpointing=source.gradient_checkpointing(run.job),
        )
    )
    return RewardTrainer(
        model=source.path(run.job),
        args=args,
        train_dataset=data.train,
        eval_dataset=data.eval,
        processing_class=tokenizer,
        # SEQ_CLS makes peft train and save the new head beside the adapter.
        peft_config=adapter.lora(run.job, "SEQ_CLS"),
        quantization_config=adapter.quantization(run.job),
    )
