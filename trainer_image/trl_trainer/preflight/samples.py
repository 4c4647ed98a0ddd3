"""Whether the model can answer evaluation.samplePrompts."""

from typing import Any

from jinja2 import TemplateError

from trl_contract.evaluation import MAX_ANSWER_TOKENS
from trl_contract.jobfile import JobFile
from trl_trainer.data import template
from trl_trainer.errors import UserError
from trl_trainer.preflight.architecture import Architecture


def check(job: JobFile, tokenizer: Any, base: Architecture, *, conversational: bool) -> None:
    """Raise UserError for a sample prompt that the chat template refuses, or that is, with its answer, longer than the
    table of positions that the model looks them up in."""
    for i, prompt in enumerate(job.spec.sample_prompts):
        field = f"evaluation.samplePrompts[{i}]: {prompt[:40]!r}"
        try:
            length = len(template.asked(tokenizer, prompt, job.spec.dataset, conversational=conversational))
        except (TemplateError, TypeError, ValueError) as error:
            remedy = "change it, dataset.systemPrompt, dataset.chatTemplateKwargs or model.chatTemplate, or remove it"
            raise UserError("InvalidSpec", f"{field}: the chat template refuses it ({error}): {remedy}") from error
        if base.looks_up_positions and base.positions is not None and length + MAX_ANSWER_TOKENS > base.positions:
            remedy = "shorten it" if base.positions > MAX_ANSWER_TOKENS else "remove it"
            raise UserError(
                "InvalidSpec",
                f"{field}: {length} tokens and an answer of up to {MAX_ANSWER_TOKENS} are more than the"
                f" {base.positions} positions that a {base.name} has: {remedy}",
            )
