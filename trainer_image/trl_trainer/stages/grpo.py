"""GRPO: prompts, sampled completions and rewards (TRL's GRPOTrainer, transformers generation)."""

from typing import Any

from transformers import PreTrainedTokenizerBase
from trl import GRPOConfig, GRPOTrainer

from trl_contract.jobfile import JobFile
from trl_trainer.data import Data
from trl_trainer.distributed.world import Run
from trl_trainer.models import adapter, arguments, source
from trl_trainer.rewards import Rewards


def config(job: JobFile, *, output_dir: str, world: int, device: str, gradient_checkpointing: bool) -> dict[str, Any]:
    """Return the keyword arguments of GRPOConfig for a resolved job. Pure."""
    grpo = job.spec.grpo
    generation = grpo.generation
    return {
        **arguments.common(
            job, output_dir=output_dir, world=world, device=device, gradient_checkpointing=gradient_checkpointing
        ),
        "shuffle_dataset": job.spec.dataset.shuffle,
        "beta": grpo.beta,
        "num_generations": grpo.num_generations,
        "num_iterations": grpo.num_iterations,
        "loss_type": grpo.loss_type,
        "scale_rewards": grpo.scale_rewards,
        "epsilon": grpo.epsilon,
        "epsilon_high": grpo.epsilon_high,
        "importance_sampling_level": grpo.importance_sampling_level,
        "mask_truncated_completions": grpo.mask_truncated_completions,
        "multi_objective_aggregation": grpo.reward_aggregation,
        "reward_weights": [reward.weight for reward in grpo.rewards],
        "max_completion_length": generation.max_completion_length,
        "temperature": generation.temperature,
        "top_p": generation.top_p,
        "top_k": generation.top_k or 0,
        "repetition_penalty": generation.repetition_penalty,
        "model_init_kwargs": arguments.model_init(job, frozen=False),
    }


def trainer(run: Run, tokenizer: PreTrainedTokenizerBase, data: Data, rewards: Rewards) -> GRPOTrainer:
    """Return TRL's trainer for the job, model loaded."""
    args = GRPOConfig(
        **config(
            run.job,
            output_dir=str(run.work),
            world=run.world,
            device=run.device,
            gradient_checkpointing=source.gradient_checkpointing(run.job),
        )
    )
    made = GRPOTrainer(
        model=source.path(run.job),
        reward_funcs=rewards.functions,
        args=args,
        train_dataset=data.train,
        eval_dataset=data.eval,
        processing_class=tokenizer,
        peft_config=adapter.lora(run.job),
        quantization_config=adapter.quantization(run.job),
    )
    for function in rewards.functions:
        function.is_counted = lambda: made.model.training
    return made
