"""The base model's tokenizer."""

import os
from typing import Any

from transformers import AutoTokenizer

from trl_contract.jobfile import JobFile
from trl_trainer.errors import UserError
from trl_trainer.models.source import check_hub, path

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.", "spiece.model", "sentencepiece", "tekken.json")
"""How the names of the files begin that hold a vocabulary. Without one transformers makes an empty tokenizer."""


def load_tokenizer(job: JobFile) -> Any:
    """Return the base model's tokenizer, with the job's chat template if it gives one and with a padding token.

    UserError if there is no such model, or it has no tokenizer that can be read.
    """
    where, hub = path(job), job.spec.model.hub
    revision = job.spec.model.revision
    names = os.listdir(where) if job.paths.model is not None else check_hub(where, revision, "model")
    if names is not None and not any(name.startswith(TOKENIZER_FILES) for name in names):
        raise UserError("ModelNotFound", f"model: {where} has no tokenizer: put the files of save_pretrained beside it")
    try:
        found = AutoTokenizer.from_pretrained(where, revision=revision)
    except (ValueError, OSError) as error:
        if isinstance(error, OSError) and hub is not None:
            raise  # the hub does not answer, which may pass
        raise UserError("ModelNotFound", f"model: the tokenizer of {where} cannot be read: {error}") from error
    if job.spec.model.chat_template is not None:
        found.chat_template = job.spec.model.chat_template
    if found.pad_token is None:
        found.pad_token = found.eos_token
    return found
