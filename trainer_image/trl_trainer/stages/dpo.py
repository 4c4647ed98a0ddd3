"""DPO: preference pairs, a policy and a reference (TRL's DPOTrainer)."""

from typing import Any

from transformers import PreTrainedTokenizerBase
from trl import DPOConfig, DPOTrainer

from trl_contract.jobfile import JobFile
from trl_contract.spec import DPOSpec
from trl_trainer.data import Data, DataReport, rows
from trl_trainer.distributed.world import Run
from trl_trainer.errors import UserError
from trl_trainer.models import reference
from trl_trainer.preflight import lengths, steps
from trl_trainer.results.evaluation import preference_accuracy
from trl_trainer.rewards import Rewards
from trl_trainer.stage import Stage
from trl_trainer.stages import balanced, common, preparation, reference_log_probs


def settings(job: JobFile[DPOSpec]) -> dict[str, Any]:
    dpo = job.spec.dpo
    return {
        **common.settings(job),
        "beta": dpo.beta,
        "loss_type": list(dpo.loss_type),
        "loss_weights": dpo.loss_weights,
        "label_smoothing": dpo.label_smoothing or 0.0,
        "f_divergence_type": dpo.f_divergence_type,
        "f_alpha_divergence_coef": dpo.f_alpha_divergence_coef or 0.5,
        "ld_alpha": dpo.ld_alpha,
        "use_weighting": dpo.use_weighting,
    }


class Trainer(balanced.BalancesRanks, preparation.TakesPreparedRows, DPOTrainer):
    pass


def trainer(run: Run, args: DPOConfig, tokenizer: PreTrainedTokenizerBase, data: Data, rewards: Rewards) -> Trainer:
    # It is sharded before rank 0 may hold the other one whole.
    compared = reference.explicit_reference(run, args)
    return Trainer(ref_model=compared, **common.arguments(run, STAGE, args, tokenizer, data))


def ready(run: Run, trainer: Trainer) -> None:
    spec = run.job.spec
    assert isinstance(spec, DPOSpec), "this kind's"
    if spec.dpo.reference_model.mode == "precompute":
        reference_log_probs.precompute(run, trainer)


def check(job: JobFile[DPOSpec], tokenizer: PreTrainedTokenizerBase, report: DataReport) -> None:
    """The reference of an adapter on quantized weights is these, and they are sharded only when training begins."""
    if job.spec.dpo.reference_model.mode == "precompute" and job.spec.peft.method == "qlora" and job.world_size > 1:
        raise UserError(
            "InvalidSpec",
            "dpo.referenceModel.mode: precompute does not go with peft.method qlora and several processes; use auto,"
            " which takes the model with its adapter off and needs no memory of its own",
        )


STAGE = Stage(
    method="DPO",
    config=DPOConfig,
    settings=settings,
    trainer=trainer,
    ready=ready,
    shape=rows.prompted_pair,
    sequences=lengths.whole,
    total_steps=steps.of_rows,
    tokens=("prompt_ids", "chosen_ids", "rejected_ids"),
    tokenize=lambda job, args, tokenizer, rows, split: preparation.prepare(DPOTrainer, rows, tokenizer, args),
    check=check,
    # TRL multiplies with the head's weight itself.
    adapts_head=False,
    measures={"preference_accuracy": preference_accuracy},
    metrics=(
        "rewards/chosen",
        "rewards/rejected",
        "rewards/accuracies",
        "rewards/margins",
        "logps/chosen",
        "logps/rejected",
        "logits/chosen",
        "logits/rejected",
        "mean_token_accuracy",
        "entropy",
        "num_tokens",
        "aux_loss",
    ),
)
