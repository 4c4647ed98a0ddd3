"""The base model's tokenizer."""

import difflib
import os
from typing import Any

from transformers import AutoTokenizer

from trl_contract.jobfile import JobFile
from trl_trainer.errors import UserError
from trl_trainer.launch.network import HUB, patiently
from trl_trainer.models.source import check_hub, path, read_config

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.", "spiece.model", "sentencepiece", "tekken.json")
"""How the names of the files begin that hold a vocabulary. Without one transformers makes an empty tokenizer."""


def load_tokenizer(job: JobFile) -> Any:
    """Return the base model's tokenizer, with the chat template and the tokens that the job gives, and with a padding
    token.

    UserError if there is no such model, it has no tokenizer that can be read, or that does not know such a token.
    """
    where, hub = path(job), job.spec.model.hub
    revision = job.spec.model.revision
    names = os.listdir(where) if job.paths.model is not None else check_hub(where, revision, "model")
    if names is not None and not any(name.startswith(TOKENIZER_FILES) for name in names):
        raise UserError("ModelNotFound", f"model: {where} has no tokenizer: put the files of save_pretrained beside it")
    # transformers reads it too, and fails in its own words.
    read_config(where, revision, "model")
    try:
        found = patiently(HUB, lambda: AutoTokenizer.from_pretrained(where, revision=revision))
    except (ValueError, OSError) as error:
        if isinstance(error, OSError) and hub is not None:
            raise  # whatever it is, it is not known to be a mistake
        raise UserError("ModelNotFound", f"model: the tokenizer of {where} cannot be read: {error}") from error
    if job.spec.model.chat_template is not None:
        found.chat_template = job.spec.model.chat_template
    found.add_tokens(job.spec.model.add_tokens or [])
    for field, name in (("eosToken", "eos_token"), ("padToken", "pad_token")):
        token = getattr(job.spec.model, name)
        if token is not None:
            _check_known(found, f"model.{field}", token)
            setattr(found, name, token)
    if found.pad_token is None:
        found.pad_token = found.eos_token
    return found


def _check_known(tokenizer: Any, field: str, token: str) -> None:
    """Raise UserError if `token` is none of the vocabulary; transformers would add it, and the model knows no such."""
    if token in tokenizer.get_vocab():
        return
    special = [str(known) for known in tokenizer.added_tokens_decoder.values()]
    near = difflib.get_close_matches(token, special, 3, 0.0)
    raise UserError(
        "InvalidSpec", f"{field}: {token} is no token of the model; the nearest special ones are {', '.join(near)}"
    )
