"""SFT: texts, prompts with completions, or conversations (TRL's SFTTrainer)."""

from typing import Any

from transformers import PreTrainedTokenizerBase
from trl import SFTConfig, SFTTrainer

from trl_contract.jobfile import JobFile
from trl_trainer.data import Data
from trl_trainer.distributed.world import Run
from trl_trainer.models import adapter, arguments, source


def config(job: JobFile, *, output_dir: str, world: int, device: str, gradient_checkpointing: bool) -> dict[str, Any]:
    """Return the keyword arguments of SFTConfig for a resolved job. Pure."""
    sft = job.spec.sft
    return {
        **arguments.common(
            job, output_dir=output_dir, world=world, device=device, gradient_checkpointing=gradient_checkpointing
        ),
        "max_length": job.spec.training.max_length,
        "train_sampling_strategy": "random" if job.spec.dataset.shuffle else "sequential",
        "packing": sft.packing,
        # Packed rows have other lengths, and their loss cannot be compared with that of the job's own rows.
        "eval_packing": False,
        "completion_only_loss": sft.completion_only_loss,
        "assistant_only_loss": sft.assistant_only_loss,
        "model_init_kwargs": arguments.model_init(job, frozen=False),
    }


def trainer(run: Run, tokenizer: PreTrainedTokenizerBase, data: Data) -> SFTTrainer:
    """Return TRL's trainer for the job, model loaded."""
    args = SFTConfig(
        **config(
            run.job,
            output_dir=str(run.work),
            world=run.world,
            device=run.device,
            gradient_checkpointing=source.gradient_checkpointing(run.job),
        )
    )
    return SFTTrainer(
        model=source.path(run.job),
        args=args,
        train_dataset=data.train,
        eval_dataset=data.eval,
        processing_class=tokenizer,
        peft_config=adapter.lora(run.job),
        quantization_config=adapter.quantization(run.job),
    )
