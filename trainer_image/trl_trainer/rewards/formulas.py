"""Finds numbers and formulas in texts and compares them, by math-verify.

`child.py` loads this file too, so nothing of ours is imported. Comparing belongs into a process that can be killed:
sympy computes 9^9^9 where a completion says so, and no signal interrupts it.
"""

import re
from decimal import Decimal
from functools import lru_cache
from typing import Any

from latex2sympy2_extended import NormalizationConfig
from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify

SECONDS = 2
"""Time limit of parsing or comparing where signals help."""

SCIENTIFIC = re.compile(r"(?<![\w.])\d+(?:\.\d+)?[eE][+-]?\d{1,3}(?!\w)")
"""math-verify reads 1e3 as 1."""

LAST_TAG = re.compile(r".*<answer>(.*?)(?:</answer>|\Z)", re.DOTALL)
LAST_BOX = re.compile(r".*\\boxed\s*\{((?:[^{}]|\{[^{}]*\})*)\}", re.DOTALL)
MATH = re.compile(r"(\$\$.+?\$\$|\$[^$\n]+\$|\\[(\[](?!\s*-?[\d.,]+\s*\\[)\]]).+?\\[)\]]|\\boxed\s*\{.+\})", re.DOTALL)
"""LaTeX that says more than a number: it stays as it is where formulas are looked for."""

FRACTION = re.compile(r"\\[dt]?frac\s*\{\s*(-?[\d.]+)\s*\}\s*\{\s*([\d.]+)\s*\}")
AROUND = re.compile(r"""</?\w+/?>|\\[()\[\]]|[<>{}\[\]"'`“”‘’«»|~≈]|\\(?=[%$])""")
"""What may touch a number and is no part of it."""
GROUP = re.compile(r"([\d)]\s*[-+*/^×÷]?\s*)?(-?)\(([^()]*)\)(\s*[-+*/^×÷]\s*[\d(])?")

NUMBERS = [ExprExtractionConfig()]
# TRL's accuracy_reward: in a box, or announced as the answer; not any formula on the way there.
FORMULAS = [
    LatexExtractionConfig(
        normalization_config=NormalizationConfig(units=True), boxed_match_priority=0, try_extract_without_anchor=False
    )
]


def equal(completions: list[str], answer: list[str], numeric: list[bool], latex: list[bool], **_: Any) -> list[float]:
    """Return 1 for each completion that says what its answer says, else 0."""
    return [
        float(verify(in_answer(wanted, *form), _found(text, *form), timeout_seconds=SECONDS))
        for text, wanted, *form in zip(completions, answer, numeric, latex, strict=True)
    ]


@lru_cache(maxsize=1024)
def in_answer(text: str, numeric: bool, latex: bool) -> list[Any]:
    """Return what the text of a right answer says; empty where it says nothing. With `latex` it may be a bare
    formula."""
    if not latex:
        return _found(text, numeric, latex)
    # Not bared: a formula needs its brackets.
    found = _parse(text, [LatexExtractionConfig(boxed_match_priority=0), *(NUMBERS if numeric else [])])
    found = found or _parse(f"${text}$", [LatexExtractionConfig()])
    if numeric and all(isinstance(one, str) for one in found):
        return _parse(_bare(text), NUMBERS) or found
    return found


def _found(text: str, numeric: bool, latex: bool) -> list[Any]:
    if not numeric:
        return _parse(text, FORMULAS)
    tag = LAST_TAG.match(text)
    if tag:
        text = tag[1]
    if not latex:
        box = LAST_BOX.match(text)
        return _parse(_bare(box[1] if box else text), NUMBERS)
    said = "".join(part if at % 2 else _bare(part) for at, part in enumerate(MATH.split(text)))
    return _parse(f"answer: {said}" if tag else said, [*FORMULAS, *NUMBERS])


def _bare(text: str) -> str:
    """Return the text with space in place of tags, brackets and quotes: math-verify finds no number that touches them,
    and would take an earlier one."""
    text = FRACTION.sub(r" \1/\2 ", text.replace("{,}", ",").replace("−", "-"))
    text = AROUND.sub(" ", text)
    while (inner := GROUP.sub(_without_brackets, text)) != text:
        text = inner
    return text


def _without_brackets(found: re.Match[str]) -> str:
    before, minus, inside, after = found.groups()
    is_sum = any(sign in inside.strip()[1:] for sign in "+-*/^×÷")
    if after or (before and before.strip()[-1] in "+-*/^×÷") or (minus and is_sum):
        return found[0]
    return f"{before or ''} {minus}{inside.strip()} "


def _parse(text: str, kinds: list[Any]) -> list[Any]:
    plain = SCIENTIFIC.sub(lambda found: f"{Decimal(found[0]):f}", text)
    result: list[Any] = parse(plain, kinds, parsing_timeout=SECONDS)
    return result
