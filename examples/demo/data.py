"""Draws the demo's conversations from phrases.yaml: preference pairs for DPO, and a mixed corpus for the base model.

    python data.py FOLDER      writes train.jsonl and eval.jsonl: prompt, chosen, rejected as TRL reads them

Everything follows from a seed. No prompt of eval.jsonl occurs in train.jsonl or in the base model's corpus.
"""

import json
import random
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

PHRASES = yaml.safe_load(Path(__file__).with_name("phrases.yaml").read_text())
TRAIN_PAIRS = 2048
EVAL_PAIRS = 256

Message = dict[str, str]


@dataclass(frozen=True)
class Case:
    """One customer with one problem: what the slots of the phrases stand for."""

    intent: str
    name: str
    product: str
    order: str

    def fill(self, phrase: str) -> str:
        return phrase.format(name=self.name, product=self.product, order=self.order)


def draw_case(rng: random.Random) -> Case:
    return Case(
        intent=rng.choice(list(PHRASES["intents"])),
        name=rng.choice(PHRASES["names"]),
        product=rng.choice(PHRASES["products"]),
        order=str(rng.randrange(100, 1000)),
    )


def draw_prompt(rng: random.Random, case: Case) -> list[Message]:
    """Return the conversation up to the agent's turn, in one of four forms; it always ends with the customer."""
    customer, intent = PHRASES["customer"], PHRASES["intents"][case.intent]
    greeting, ask = rng.choice(customer["greetings"]), rng.choice(intent["ask"])
    introduction = rng.choice(["", rng.choice(customer["introductions"])])
    ending = rng.choice(customer["endings"])
    whole = [greeting, introduction, ask, ending]
    form = rng.choice(["single", "single", "welcomed", "order asked", "unhappy"])
    if form == "welcomed":
        turns = [[rng.choice(customer["openings"])], [rng.choice(customer["welcomes"])], [introduction, ask, ending]]
    elif form == "order asked":
        about = [greeting, introduction, intent["about"], ending]
        turns = [about, [rng.choice(customer["asks_order"])], [rng.choice(customer["gives_order"])]]
    elif form == "unhappy":
        turns = [whole, draw_curt(rng, case), [rng.choice(customer["unhappy"]), ending]]
    else:
        turns = [whole]
    roles = ["user", "assistant"]
    return [{"role": roles[i % 2], "content": _join(case, turn)} for i, turn in enumerate(turns)]


def draw_polite(rng: random.Random, case: Case, prompt: list[Message]) -> tuple[list[str], list[str]]:
    """Return the phrases before and after what the agent does, with slots that the prompt has filled only."""
    polite = PHRASES["polite"]
    return [rng.choice(_sayable(polite["openings"], case, prompt))], [rng.choice(polite["endings"])]


def draw_act(rng: random.Random, case: Case, prompt: list[Message]) -> list[str]:
    acts = _sayable(PHRASES["intents"][case.intent]["act"], case, prompt)
    return rng.sample(acts, rng.choice([1, 1, 1, 2]))


def draw_curt(rng: random.Random, case: Case) -> list[str]:
    curt = PHRASES["curt"]
    body = rng.choice([rng.choice(curt["bodies"]), *PHRASES["intents"][case.intent]["curt"]])
    return [rng.choice(["", rng.choice(curt["openings"])]), body, rng.choice(curt["endings"])]


def draw_chosen(rng: random.Random, case: Case, prompt: list[Message]) -> str:
    before, after = draw_polite(rng, case, prompt)
    return _join(case, [*before, *draw_act(rng, case, prompt), *after])


def draw_mixed(rng: random.Random, case: Case, prompt: list[Message]) -> str:
    """Return an answer as the base model's teachers gave it: mostly curt, sometimes good, sometimes half of each."""
    before, after = draw_polite(rng, case, prompt)
    kind = rng.random()
    if kind < 0.45:
        return draw_chosen(rng, case, prompt)
    if kind < 0.55:
        return _join(case, [*before, *after])
    return _join(case, draw_curt(rng, case))


def draw_pair(rng: random.Random) -> dict[str, object]:
    case = draw_case(rng)
    prompt = draw_prompt(rng, case)
    return {
        "prompt": prompt,
        "chosen": [{"role": "assistant", "content": draw_chosen(rng, case, prompt)}],
        "rejected": [{"role": "assistant", "content": _join(case, draw_curt(rng, case))}],
        "intent": case.intent,
    }


def pairs() -> tuple[list[dict[str, object]], list[dict[str, object]]]:
    """Return the training and the held-out pairs: prompts are all different."""
    rng = random.Random("pairs")
    seen: set[str] = set()
    rows = []
    while len(rows) < TRAIN_PAIRS + EVAL_PAIRS:
        row = draw_pair(rng)
        key = json.dumps(row["prompt"])
        if key not in seen:
            seen.add(key)
            rows.append(row)
    return rows[:TRAIN_PAIRS], rows[TRAIN_PAIRS:]


def conversations() -> Iterator[list[Message]]:
    """Yield conversations with mixed answers without end; none has the prompt of a preference pair.

    Each ends with the agent's note on the case: to write it is to have read the customer, which a small model learns
    sooner from notes than from answers.
    """
    seen = {json.dumps(row["prompt"]) for rows in pairs() for row in rows}
    rng = random.Random("base")
    while True:
        case = draw_case(rng)
        prompt = draw_prompt(rng, case)
        if json.dumps(prompt) not in seen:
            answer = {"role": "assistant", "content": draw_mixed(rng, case, prompt)}
            yield [*prompt, answer, {"role": "note", "content": note(case, prompt)}]


def write(folder: Path) -> None:
    for name, rows in zip(("train", "eval"), pairs(), strict=True):
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(text)


def note(case: Case, prompt: list[Message]) -> str:
    return ", ".join([case.intent, *(case.fill(slot) for slot in _sayable(["{product}", "#{order}"], case, prompt))])


def _sayable(phrases: list[str], case: Case, prompt: list[Message]) -> list[str]:
    said = " ".join(message["content"] for message in prompt if message["role"] == "user")
    slots = {"{name}": case.name, "{product}": case.product, "{order}": f"#{case.order}"}
    unknown = [slot for slot, value in slots.items() if value not in said]
    return [phrase for phrase in phrases if not any(slot in phrase for slot in unknown)]


def _join(case: Case, phrases: list[str]) -> str:
    return " ".join(case.fill(phrase) for phrase in phrases if phrase)


if __name__ == "__main__":
    write(Path(sys.argv[1]))
