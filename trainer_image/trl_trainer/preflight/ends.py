"""Where prompts, turns and texts end: a model that does not learn to stop does not stop."""

from typing import Any

from transformers import GenerationConfig

from trl_contract.jobfile import JobFile
from trl_trainer.data import Written, template
from trl_trainer.preflight import lengths
from trl_trainer.preflight.architecture import Architecture, stops
from trl_trainer.stage import Row, Stage

LOOKED_AT = 100
"""Rows; a doubled token is in all of them, or in none."""
TOKENS = ("eos_token_id", "pad_token_id", "bos_token_id")
"""Settings of a model and of its generation that a job's tokenizer decides."""


def findings(job: JobFile, stage: Stage, tokenizer: Any, base: Architecture, rows: Written) -> list[str]:
    """Return what to say about the ends of turns, and about tokens that begin or end a text twice."""
    looked_at = rows.train.take(range(LOOKED_AT))
    found = [*_doubled(stage, tokenizer, looked_at), *_plain(tokenizer, looked_at)]
    found += [
        f"model.chatTemplate: the chat template leaves out {what}: nothing of it is learnt; set a template that renders"
        " it, or take it out of the rows"
        for what in template.left_out(tokenizer, looked_at)
    ]
    if stage.is_classifier or not rows.report.conversational:
        return found
    end, eos = template.end_of_turn(tokenizer), tokenizer.eos_token
    if end == "":
        found.append(
            f"model.chatTemplate: the template ends the assistant's turns in no special token, so the model will not"
            f" learn to stop: set one that ends them in {eos}"
        )
    elif end is not None and end != eos and tokenizer.convert_tokens_to_ids(end) not in base.stops:
        found.append(
            f"model.eosToken: the chat template ends turns in {end}, and the model stops at {eos}; the exported"
            f" generation_config stops at both, but what reads the tokenizer alone will not: set eosToken to {end}"
        )
    return found


def make_savable(model: Any) -> None:
    """Take settings of generation from a model that contradict each other, as a temperature without sampling does:
    transformers loads them and refuses to save them. The export has those of the base's file."""
    if not model.can_generate():
        return
    given = model.generation_config
    try:
        given.validate(strict=True)
    except ValueError:
        ends = {name: getattr(given, name) for name in TOKENS}
        model.generation_config = GenerationConfig(**ends)


def stop_there(model: Any, tokenizer: Any) -> None:
    """Make a model stop also where the chat template ends turns."""
    end = template.end_of_turn(tokenizer) if tokenizer.chat_template else None
    ids = stops(model)
    if end and model.can_generate() and tokenizer.convert_tokens_to_ids(end) not in ids:
        model.generation_config.eos_token_id = [*ids, tokenizer.convert_tokens_to_ids(end)]


def _plain(tokenizer: Any, looked_at: list[Row]) -> list[str]:
    """Return what to say of prompts and answers that are plain text."""
    prompted = [row for row in looked_at if isinstance(row.get("prompt"), str)]
    if not prompted:
        return []
    found = []
    if tokenizer.chat_template:
        found.append(
            "prompts are plain text, and the chat template of the model is not used: if it is for chats, set"
            " dataset.asConversation, which makes turns of prompt and answer"
        )
    pairs = [(row["prompt"], row[name]) for row in prompted for name in ("completion", "chosen") if name in row]
    joined = sum(not (prompt[-1].isspace() or answer[:1].isspace()) for prompt, answer in pairs)
    if joined:
        found.append(
            f"in {joined} of {len(pairs)} rows that were looked at no space divides prompt and answer: put one, or a"
            " line break, at the end of the prompt"
        )
    return found


def _doubled(stage: Stage, tokenizer: Any, looked_at: list[Row]) -> list[str]:
    texts = [t for row in looked_at for t in stage.sequences(row, tokenizer.eos_token or "") or [lengths.prompt(row)]]
    ids = lengths.tokenized(tokenizer, texts)
    found = []
    for token, where, ends in (
        (tokenizer.bos_token_id, "begin", [one[:2] for one in ids]),
        (tokenizer.eos_token_id, "end", [one[-2:] for one in ids]),
    ):
        number = ends.count([token, token])
        if number and token is not None:
            name = tokenizer.convert_ids_to_tokens(token)
            found.append(
                f"{number} of {len(ids)} sequences that were looked at {where} with {name} twice: the text has it, and"
                " the tokenizer adds it: take it out of the text, or save a tokenizer that does not add it"
            )
    return found
