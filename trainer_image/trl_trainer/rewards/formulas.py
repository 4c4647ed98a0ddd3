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
    found = _parse(text, [*([LatexExtractionConfig(boxed_match_priority=0)] if latex else []), *_numbers(numeric)])
    return found or (_parse(f"${text}$", [LatexExtractionConfig()]) if latex else [])


def _found(text: str, numeric: bool, latex: bool) -> list[Any]:
    return _parse(text, [*(FORMULAS if latex else []), *_numbers(numeric)])


def _numbers(numeric: bool) -> list[Any]:
    return NUMBERS if numeric else []


def _parse(text: str, kinds: list[Any]) -> list[Any]:
    plain = SCIENTIFIC.sub(lambda found: f"{Decimal(found[0]):f}", text)
    result: list[Any] = parse(plain, kinds, parsing_timeout=SECONDS)
    return result
