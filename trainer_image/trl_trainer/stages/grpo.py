"""GRPO: prompts, sampled completions and rewards (TRL's GRPOTrainer, transformers generation)."""

from typing import Any

from transformers import PreTrainedTokenizerBase
from trl import GRPOConfig, GRPOTrainer

from trl_contract.jobfile import JobFile
from trl_contract.spec import GRPOSpec
from trl_trainer.data import Data, DataReport, rows
from trl_trainer.data.turns import BadRow
from trl_trainer.distributed.world import Run
from trl_trainer.errors import UserError
from trl_trainer.models import reference
from trl_trainer.preflight import steps
from trl_trainer.rewards import Rewards, builtin
from trl_trainer.stage import Row, Stage
from trl_trainer.stages import common
from trl_trainer.stages.row_order import TakesRowsInOrder


def settings(job: JobFile[GRPOSpec]) -> dict[str, Any]:
    grpo = job.spec.grpo
    generation = grpo.generation
    is_geometric = grpo.reward_aggregation == "geometric_mean"
    weights = [reward.weight for reward in grpo.rewards]
    return {
        "shuffle_dataset": job.spec.dataset.shuffle,
        "chat_template_kwargs": job.spec.dataset.chat_template_kwargs,
        "beta": grpo.beta,
        "num_generations": grpo.num_generations,
        "num_iterations": grpo.num_iterations,
        "steps_per_generation": job.spec.steps_per_generation,
        "loss_type": grpo.loss_type,
        "scale_rewards": grpo.scale_rewards,
        "epsilon": grpo.epsilon,
        "epsilon_high": grpo.epsilon_high,
        "delta": grpo.delta,
        "top_entropy_quantile": grpo.top_entropy_quantile,
        "importance_sampling_level": grpo.importance_sampling_level,
        "mask_truncated_completions": grpo.mask_truncated_completions,
        # TRL logs every reward, and learns from the last one (rewards.geometric_mean).
        "multi_objective_aggregation": "sum_then_normalize" if is_geometric else grpo.reward_aggregation,
        "reward_weights": [*[0.0] * len(weights), 1.0] if is_geometric else weights,
        "max_completion_length": generation.max_completion_length,
        "temperature": generation.temperature,
        "top_p": generation.top_p,
        "top_k": generation.top_k or 0,
        "repetition_penalty": generation.repetition_penalty,
    }


class Trainer(TakesRowsInOrder, GRPOTrainer):
    pass


def trainer(run: Run, args: GRPOConfig, tokenizer: PreTrainedTokenizerBase, data: Data, rewards: Rewards) -> Trainer:
    with reference.in_grpo(run, args):
        made = Trainer(reward_funcs=rewards.reward_funcs, **common.arguments(run, STAGE, args, tokenizer, data))
    for function in rewards.functions:
        function.is_counted = lambda: made.model.training
    return made


def check_row(job: JobFile[GRPOSpec], row: Row) -> None:
    """Raise BadRow if a reward that may not fail cannot compare with the row's answer."""
    for reward in job.spec.rewards:
        compared = reward.similarity or reward.accuracy
        if compared is None or reward.on_error != "fail":
            continue
        if compared.column not in row:
            raise BadRow(
                f"grpo.rewards.{reward.name} compares with column {compared.column}, and the row has {', '.join(row)};"
                " dataset.columns can rename one"
            )
        try:
            builtin.answer(compared, row[compared.column])
        except ValueError as error:
            raise BadRow(f"grpo.rewards.{reward.name}: {error}") from error


def check(job: JobFile[GRPOSpec], tokenizer: Any, report: DataReport) -> None:
    """Raise UserError if a reward compares with a column that no row has."""
    for reward in job.spec.rewards:
        compared = reward.similarity or reward.accuracy
        if compared is not None and compared.column not in report.columns:
            raise UserError(
                "InvalidSpec",
                f"grpo.rewards.{reward.name}: the data have no column {compared.column}, only"
                f" {', '.join(report.columns)}; dataset.columns can rename one",
            )


STAGE = Stage(
    method="GRPO",
    config=GRPOConfig,
    settings=settings,
    trainer=trainer,
    shape=rows.prompt,
    sequences=lambda row, eos: [],
    total_steps=steps.of_prompts,
    check_row=check_row,
    check=check,
    # TRL multiplies with the head's weight itself.
    adapts_head=False,
    metrics=(
        "reward",
        "reward_std",
        "frac_reward_zero_std",
        "kl",
        "entropy",
        "policy_loss",
        "num_tokens",
        "aux_loss",
        "completions/mean_length",
        "completions/min_length",
        "completions/max_length",
        "completions/clipped_ratio",
        "completions/mean_terminated_length",
        "completions/min_terminated_length",
        "completions/max_terminated_length",
        "clip_ratio/low_mean",
        "clip_ratio/high_mean",
        "clip_ratio/region_mean",
        "clip_ratio/low_min",
        "clip_ratio/high_max",
        "cispo_clip_ratio",
        "vespo/phi_seq_mean",
    ),
)
