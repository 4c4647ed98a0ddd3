"""DPO: preference pairs, a policy and a reference (TRL's DPOTrainer)."""

from typing import Any

from transformers import PreTrainedTokenizerBase
from trl import DPOConfig, DPOTrainer

from trl_contract.jobfile import JobFile
from trl_trainer.data import Data
from trl_trainer.distributed.world import Run
from trl_trainer.models import adapter, arguments, reference, source


def config(job: JobFile, *, output_dir: str, world: int, device: str, gradient_checkpointing: bool) -> dict[str, Any]:
    """Return the keyword arguments of DPOConfig for a resolved job. Pure."""
    dpo = job.spec.dpo
    return {
        **arguments.common(
            job, output_dir=output_dir, world=world, device=device, gradient_checkpointing=gradient_checkpointing
        ),
        "max_length": job.spec.training.max_length,
        "train_sampling_strategy": "random" if job.spec.dataset.shuffle else "sequential",
        "beta": dpo.beta,
        "loss_type": list(dpo.loss_type),
        "loss_weights": dpo.loss_weights,
        "label_smoothing": dpo.label_smoothing or 0.0,
        "precompute_ref_log_probs": dpo.reference_model.mode == "precompute",
        "model_init_kwargs": arguments.model_init(job, frozen=False),
    }


def trainer(run: Run, tokenizer: PreTrainedTokenizerBase, data: Data) -> DPOTrainer:
    """Return TRL's trainer for the job, model loaded."""
    args = DPOConfig(
        **config(
            run.job,
            output_dir=str(run.work),
            world=run.world,
            device=run.device,
            gradient_checkpointing=source.gradient_checkpointing(run.job),
        )
    )
    return DPOTrainer(
        model=source.path(run.job),
        ref_model=reference.explicit_reference(run),
        args=args,
        train_dataset=data.train,
        eval_dataset=data.eval,
        processing_class=tokenizer,
        peft_config=adapter.lora(run.job),
        quantization_config=adapter.quantization(run.job),
    )
