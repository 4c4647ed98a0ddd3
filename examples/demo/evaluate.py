"""Compares the base and the tuned model on the held-out pairs; prints one JSON object per model and their answers.

    python evaluate.py EVAL.JSONL BASE_MODEL TUNED_MODEL

For each model alike: `accuracy`, the share of held-out pairs with sum log p(chosen) > sum log p(rejected); `margin`,
the mean of that difference; `chosenNll`, nats per token of the chosen replies; and of 64 answers sampled at temperature
1 with a fixed seed the shares that are `wellFormed` and that are well-formed and act (`acting`), as check.py says.
"""

import json
import sys
from pathlib import Path

import torch
from check import acts, is_well_formed
from data import Message
from transformers import AutoModelForCausalLM, AutoTokenizer

SAMPLES = 64
MAX_NEW_TOKENS = 96
SEED = 1
BATCH = 32


@torch.no_grad()
def log_probs(model, tokenizer, rows, column: str) -> tuple[list[float], list[int]]:
    """Return for each row the sum of the log-probabilities of one completion's tokens, and their number."""
    sums, counts = [], []
    for start in range(0, len(rows), BATCH):
        batch = rows[start : start + BATCH]
        prompts = [_tokens(tokenizer, row["prompt"], True) for row in batch]
        wholes = [_tokens(tokenizer, row["prompt"] + row[column], False) for row in batch]
        inputs = tokenizer.pad({"input_ids": wholes}, return_tensors="pt", padding_side="right")
        logits = model(**inputs).logits[:, :-1].float().log_softmax(-1)
        taken = logits.gather(2, inputs["input_ids"][:, 1:, None]).squeeze(2)
        for i, (prompt, whole) in enumerate(zip(prompts, wholes, strict=True)):
            assert whole[: len(prompt)] == prompt, "the chat template must render a prompt as the start of the whole"
            sums.append(taken[i, len(prompt) - 1 : len(whole) - 1].sum().item())
            counts.append(len(whole) - len(prompt))
    return sums, counts


@torch.no_grad()
def answers(model, tokenizer, prompts: list[list[Message]]) -> list[tuple[str, bool]]:
    """Return for each prompt one answer sampled at temperature 1, and whether it ended by itself."""
    torch.manual_seed(SEED)
    ids = {"input_ids": [_tokens(tokenizer, prompt, True) for prompt in prompts]}
    inputs = tokenizer.pad(ids, return_tensors="pt", padding_side="left")
    output = model.generate(
        **inputs, do_sample=True, temperature=1.0, top_p=1.0, top_k=0, max_new_tokens=MAX_NEW_TOKENS
    )
    new = output[:, inputs["input_ids"].shape[1] :].tolist()
    end = tokenizer.eos_token_id
    return [(tokenizer.decode(ids[: ids.index(end)] if end in ids else ids), end in ids) for ids in new]


def _tokens(tokenizer, messages: list[Message], for_answer: bool) -> list[int]:
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=for_answer)
    return tokenizer(text)["input_ids"]


def evaluate(path: str, rows) -> dict[str, object]:
    """Return the measures of one model and its answers."""
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(path)
    chosen, lengths = log_probs(model, tokenizer, rows, "chosen")
    rejected, _ = log_probs(model, tokenizer, rows, "rejected")
    differences = [c - r for c, r in zip(chosen, rejected, strict=True)]
    sampled = rows[:SAMPLES]
    said = answers(model, tokenizer, [row["prompt"] for row in sampled])
    judged = list(zip(sampled, said, strict=True))
    return {
        "accuracy": sum(d > 0 for d in differences) / len(rows),
        "margin": sum(differences) / len(rows),
        "chosenNll": -sum(chosen) / sum(lengths),
        "wellFormed": sum(is_well_formed(row["prompt"], *answer) for row, answer in judged) / len(judged),
        "acting": sum(acts(row["prompt"], row["intent"], *answer) for row, answer in judged) / len(judged),
        "pairs": len(rows),
        "answers": [{"prompt": row["prompt"], "answer": text} for row, (text, _) in judged],
    }


def main(data: str, base: str, tuned: str) -> None:
    rows = [json.loads(line) for line in Path(data).read_text().splitlines()]
    for name, path in (("base", base), ("tuned", tuned)):
        print(json.dumps({"model": name, **evaluate(path, rows)}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
