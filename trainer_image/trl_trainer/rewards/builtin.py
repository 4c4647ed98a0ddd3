"""The built-in rewards: each a pure function of the completion's text and, for some, of the right answer.

A ValueError says why a row cannot be scored (an answer that is missing or has no number); a completion can always be.
"""

import json
import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import jsonschema
from referencing import Registry
from referencing.exceptions import Unresolvable
from referencing.jsonschema import specification_with

from trl_contract.rewards import (
    AccuracyReward,
    FormatReward,
    JsonSchemaReward,
    KeywordReward,
    LengthReward,
    RegexReward,
    SimilarityReward,
)
from trl_trainer.errors import UserError
from trl_trainer.rewards.limits import time_limit

MATCH_SECONDS = 2
"""Time limit of one match: some patterns need longer than the universe has existed."""

Text = Callable[[str], float]
Compare = Callable[[str, Any], float]


def length(given: LengthReward) -> Text:
    """With n words (separated by white space): max(0, 1 - |n - target| / target), or 1 if min <= n <= max, else 0."""

    def score(text: str) -> float:
        words = len(text.split())
        if given.target is not None:
            return max(0.0, 1 - abs(words - given.target) / given.target)
        assert given.min is not None
        assert given.max is not None
        return float(given.min <= words <= given.max)

    return score


def keyword(given: KeywordReward) -> Text:
    """1 if any, all or none of the words occur at word boundaries, whatever their case, else 0; with n occurrences of
    any min(1, n / enough)."""
    patterns = [
        re.compile(r"(?<!\w)" + r"\s+".join(map(re.escape, word.split())) + r"(?!\w)", re.IGNORECASE)
        for word in given.words
    ]

    def score(text: str) -> float:
        found = [len(pattern.findall(text)) for pattern in patterns]
        if given.mode == "any":
            return min(1.0, sum(found) / (given.enough or 1))
        return float(all(found) if given.mode == "all" else not any(found))

    return score


def regex(given: RegexReward) -> Text:
    """1 if the pattern is found anywhere in the completion, else 0."""
    try:
        pattern = re.compile(given.pattern)
    except re.error as error:
        raise UserError("InvalidSpec", f"regex.pattern {given.pattern!r} is no regular expression: {error}") from error

    def score(text: str) -> float:
        with time_limit(MATCH_SECONDS):
            return float(pattern.search(text) is not None)

    return score


def format_(given: FormatReward) -> Text:
    """1 if the completion, without white space around it, is the template with anything in place of each `...`."""
    first, *rest = given.template.strip().split("...")

    def score(text: str) -> float:
        text = text.strip()
        if not rest:
            return float(text == first)
        *middle, last = rest
        at, end = len(first), len(text) - len(last)
        if at > end or not text.startswith(first) or not text.endswith(last):
            return 0.0
        for literal in middle:
            found = text.find(literal, at, end)
            if found < 0:
                return 0.0
            at = found + len(literal)
        return 1.0

    return score


def json_schema(given: JsonSchemaReward) -> Text:
    """1 if the completion is JSON that satisfies the schema, else 0."""
    try:
        schema = json.loads(given.schema_)
        kind = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
        kind.check_schema(schema)
    except (json.JSONDecodeError, jsonschema.SchemaError) as error:
        raise UserError("InvalidSpec", f"jsonSchema.schema is no JSON schema: {error}".split("\n")[0]) from error
    _check_references(schema, kind.META_SCHEMA["$schema"])
    # An empty registry: nothing is downloaded.
    validator = kind(schema, registry=Registry())

    def score(text: str) -> float:
        try:
            value = json.loads(text, parse_constant=_refuse_constant)
            with time_limit(MATCH_SECONDS):
                return float(validator.is_valid(value))
        except (ValueError, RecursionError):
            # No JSON, a number of thousands of digits, or nested too deeply: nothing that a schema could be meant for.
            return 0.0

    return score


def _check_references(schema: Any, dialect: str) -> None:
    """Raise UserError for a $ref that leads nowhere inside the schema: no completion could be scored."""
    form = specification_with(dialect)
    root = form.create_resource(schema)
    left, seen = [(Registry().resolver_with_root(root), root)], set()
    while left:
        resolver, part = left.pop()
        if id(part.contents) in seen:
            continue
        seen.add(id(part.contents))
        left += [(resolver.in_subresource(inner), inner) for inner in part.subresources()]
        for name in ("$ref", "$dynamicRef"):
            if not isinstance(part.contents, dict) or name not in part.contents:
                continue
            try:
                found = resolver.lookup(part.contents[name])
            except Unresolvable as error:
                raise UserError(
                    "InvalidSpec",
                    f"jsonSchema.schema: {name} {part.contents[name]!r} leads nowhere: it must be inside of the schema,"
                    " like #/$defs/name, for nothing is downloaded",
                ) from error
            left.append((found.resolver, form.create_resource(found.contents)))


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def similarity(given: SimilarityReward) -> Compare:
    """F1 of the words (runs of letters and digits, whatever their case) that completion and reference share, each as
    often as it is in both; 1 if both have none."""

    def score(text: str, reference: Any) -> float:
        ours, theirs = _words(text), _words(answer(given, reference))
        if not ours or not theirs:
            return float(ours == theirs)
        # 2PR / (P + R), with precision and recall over the same shared count.
        return 2 * (ours & theirs).total() / (ours.total() + theirs.total())

    return score


def accuracy(given: AccuracyReward) -> Compare:
    """1 if the completion is the answer, both stripped, else 0. Numbers and formulas are mathematics.py's."""

    def score(text: str, wanted: Any) -> float:
        return float(text.strip() == answer(given, wanted).strip())

    return score


def answer(given: SimilarityReward | AccuracyReward, value: Any) -> str:
    """Return the text of a row's right answer; ValueError if nothing can be compared with it."""
    if value is None or isinstance(value, bool | list | dict):
        raise ValueError(f"column {given.column} is {value!r}: it must be text or a number")
    text = str(value)
    if isinstance(given, AccuracyReward) and (given.numeric or given.latex):
        # Only here: sympy takes over a second, and few jobs need it.
        from trl_trainer.rewards import formulas

        if not formulas.in_answer(text, given.numeric, given.latex):
            what = " and no ".join(["number"] * given.numeric + ["formula"] * given.latex)
            raise ValueError(f"column {given.column} has no {what}: {text[:80]!r}")
    return text


def _words(text: str) -> Counter[str]:
    return Counter(re.findall(r"\w+", text.casefold()))
