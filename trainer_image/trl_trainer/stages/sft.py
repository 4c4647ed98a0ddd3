"""SFT: texts, prompts with completions, or conversations (TRL's SFTTrainer)."""

import re
from functools import partial
from typing import Any

from transformers import PreTrainedTokenizerBase
from trl import SFTConfig, SFTTrainer, get_training_chat_template, pack_dataset

from trl_contract.jobfile import JobFile
from trl_contract.spec import SFTSpec
from trl_trainer.data import Data, DataReport, rows, template
from trl_trainer.data.rows import conversational
from trl_trainer.distributed.world import Run
from trl_trainer.errors import UserError
from trl_trainer.preflight import lengths, steps
from trl_trainer.rewards import Rewards
from trl_trainer.stage import Row, Stage
from trl_trainer.stages import balanced, common, preparation


def settings(job: JobFile[SFTSpec]) -> dict[str, Any]:
    sft = job.spec.sft
    return {
        **common.settings(job),
        "packing": sft.packing,
        "packing_strategy": sft.packing_strategy or "bfd",
        "loss_type": sft.loss_type,
        # Packed rows have other lengths, and their loss cannot be compared with that of the job's own rows.
        "eval_packing": False,
        "completion_only_loss": sft.completion_only_loss,
        "assistant_only_loss": sft.assistant_only_loss,
    }


class Trainer(balanced.BalancesRanks, preparation.TakesPreparedRows, SFTTrainer):
    pass


def trainer(run: Run, args: SFTConfig, tokenizer: PreTrainedTokenizerBase, data: Data, rewards: Rewards) -> Trainer:
    # The labels say it already; with the option TRL would look for conversations in the rows.
    args.assistant_only_loss = False
    return Trainer(**common.arguments(run, STAGE, args, tokenizer, data))


def total_steps(job: JobFile[SFTSpec], number: int) -> int | None:
    total = steps.of_rows(job, number)
    return job.spec.training.max_steps if job.spec.sft.packing else total


def check(job: JobFile[SFTSpec], tokenizer: Any, report: DataReport) -> None:
    """Raise UserError if the job asks for a loss that the data or the chat template do not allow."""
    if job.spec.sft.completion_only_loss and "completion" not in report.columns:
        raise UserError(
            "InvalidSpec", f"sft.completionOnlyLoss needs prompt and completion, but the data have {report.form}"
        )
    if not job.spec.sft.assistant_only_loss:
        return
    if not report.conversational:
        raise UserError("InvalidSpec", f"sft.assistantOnlyLoss needs conversations, but the data have {report.form}")
    try:
        training_template(tokenizer)
    except ValueError as error:
        raise UserError(
            "InvalidSpec",
            "sft.assistantOnlyLoss: the chat template does not mark assistant turns with {% generation %}:"
            f" set model.chatTemplate to one that does ({error})",
        ) from error


def findings(job: JobFile[SFTSpec], tokenizer: Any, report: DataReport) -> list[str]:
    """Return what to say of a loss on assistant turns that does not teach where they end."""
    end = template.end_of_turn(tokenizer) if job.spec.sft.assistant_only_loss else None
    if not end:
        return []
    asked = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hello"}]
    made = tokenizer.apply_chat_template(
        asked, chat_template=training_template(tokenizer), return_dict=True, return_assistant_tokens_mask=True
    )
    taught = [token for token, learnt in zip(made["input_ids"], made["assistant_masks"], strict=True) if learnt]
    if tokenizer.convert_tokens_to_ids(end) in taught:
        return []
    return [
        f"sft.assistantOnlyLoss: the chat template ends turns in {end} outside of {{% generation %}}, so the model will"
        f" not learn to stop: set model.chatTemplate to one with {end} before {{% endgeneration %}}"
    ]


def training_template(tokenizer: Any) -> str | None:
    """Return the chat template that marks assistant turns, or None if the tokenizer's own does. ValueError if there is
    none: TRL knows marked forms of well-known templates."""
    if re.search(r"\{%-?\s*generation\s*-?%\}", tokenizer.chat_template):
        return None
    return get_training_chat_template(tokenizer)


def tokenize(job: JobFile[SFTSpec], args: SFTConfig, tokenizer: Any, rows: Any, split: str) -> Any:
    given = job.spec.sft.completion_only_loss
    if job.spec.sft.packing and split == "train":
        # Packing cuts, and is done when all rows are there.
        args.max_length = None
    chat_template = training_template(tokenizer) if args.assistant_only_loss else None
    prepared = preparation.prepare(
        SFTTrainer,
        rows,
        tokenizer,
        args,
        {
            "chat_template": chat_template,
            "completion_only_loss": "completion" in next(iter(rows)) if given is None else given,
        },
        packing=False,
        formatting_func=None,
    )
    return filter(learnt, map(partial(mask, tokenizer, chat_template), prepared))


def mask(tokenizer: Any, chat_template: str | None, row: Row) -> Row:
    """Return the tokenized row without labels on the turns of weight 0, which TRL does not know."""
    if not conversational(row):
        return row
    labels = list(row["labels"])
    for turn in template.masked(tokenizer, row, chat_template=chat_template):
        labels[turn] = [-100] * len(labels[turn])
    return {**row, "labels": labels}


def learnt(row: Row) -> bool:
    """Return whether anything of a tokenized row is learnt."""
    return any(label != -100 for label in row["labels"])


def pack(job: JobFile[SFTSpec], rows: Any) -> Any:
    return pack_dataset(
        rows.select_columns(["input_ids", "labels"]), job.spec.max_length, job.spec.sft.packing_strategy or "bfd"
    )


STAGE = Stage(
    method="SFT",
    config=SFTConfig,
    settings=settings,
    trainer=trainer,
    shape=rows.sft,
    sequences=lengths.whole,
    total_steps=total_steps,
    tokens=("input_ids", "labels"),
    tokenize=tokenize,
    pack=lambda job: partial(pack, job) if job.spec.sft.packing else None,
    check=check,
    findings=findings,
    # TRL multiplies with the head's weight itself.
    adapts_head=False,
    metrics=(
        "entropy",
        "mean_token_accuracy",
        "num_tokens",
        "aux_loss",
    ),
)
