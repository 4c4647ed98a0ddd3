"""Judges an answer: is it well-formed, and does the agent act? Deterministic, by the phrases of phrases.yaml alone.

Well-formed: the answer ended by itself, and each of its sentences is one of the demo's language, none twice; a name, a
product or an order number in it is one that the customer gave. It acts: well-formed, at least one sentence is a deed or
a promise for just this customer's problem, and none is curt.
"""

import re
from functools import cache

from data import PHRASES, Message

SLOTS = {"{name}": PHRASES["names"], "{product}": PHRASES["products"], "{order}": [r"\d{3}"]}


@cache
def sentences(kind: str, intent: str = "") -> re.Pattern[str]:
    """Return a pattern for one phrase of a kind: polite, curt, or act (of one intent)."""
    intents = PHRASES["intents"]
    if kind == "act":
        phrases = intents[intent]["act"]
    elif kind == "polite":
        phrases = [phrase for group in PHRASES["polite"].values() for phrase in group]
    else:
        curts = [*PHRASES["curt"].values(), *(other["curt"] for other in intents.values())]
        phrases = [phrase for group in curts for phrase in group]
    return re.compile("|".join(_pattern(phrase) for phrase in phrases if phrase))


@cache
def _any_act() -> re.Pattern[str]:
    return re.compile("|".join(sentences("act", intent).pattern for intent in PHRASES["intents"]))


def _pattern(phrase: str) -> str:
    parts = re.split(r"(\{\w+\})", phrase)
    return "".join(f"(?:{'|'.join(SLOTS[part])})" if part in SLOTS else re.escape(part) for part in parts)


def _said(prompt: list[Message], answer: str) -> bool:
    """Tell whether all names, products and order numbers of the answer occur in what the customer wrote."""
    customer = " ".join(message["content"] for message in prompt if message["role"] == "user")
    used = re.findall(r"\d{3,}|" + "|".join(rf"\b{word}\b" for word in PHRASES["names"] + PHRASES["products"]), answer)
    return all(word in customer for word in used)


def split(answer: str) -> list[str]:
    return re.split(r"(?<=[.!?]) ", answer)


def is_well_formed(prompt: list[Message], answer: str, ended: bool) -> bool:
    parts = split(answer)
    known = all(
        sentences("polite").fullmatch(part) or sentences("curt").fullmatch(part) or _any_act().fullmatch(part)
        for part in parts
    )
    return ended and known and len(set(parts)) == len(parts) and _said(prompt, answer)


def acts(prompt: list[Message], intent: str, answer: str, ended: bool) -> bool:
    parts = split(answer)
    return (
        is_well_formed(prompt, answer, ended)
        and any(sentences("act", intent).fullmatch(part) for part in parts)
        and not any(sentences("curt").fullmatch(part) for part in parts)
    )
