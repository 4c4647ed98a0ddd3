"""What the description of a field says beside its meaning: its values, its range with the unit, its default.

Made of the schema itself, so that `kubectl explain` and docs/reference tell what the API server holds.
"""

import re
from typing import Any

from trl_operator.api.schema import INT32_MAX, Schema

UNITS = {
    "accuracy": "a share",
    "domains": "places",
    "dropout": "a share",
    "enough": "occurrences",
    "epochs": "epochs",
    "examples": "",
    "generations": "completions",
    "iterations": "passes",
    "keep": "checkpoints",
    "length": "tokens",
    "limit": "bytes",
    "memory": "bytes",
    "minutes": "minutes",
    "nodes": "nodes",
    "node": "processes",
    "patience": "evaluations",
    "quantile": "a share",
    "rate": "a share",
    "ratio": "a share",
    "restarts": "restarts",
    "rows": "rows",
    "seconds": "seconds",
    "size": "bytes",
    "skew": "pods",
    "smoothing": "a share",
    "split": "a share",
    "steps": "steps",
    "workers": "processes",
    "max": "words",
    "min": "words",
    "target": "words",
    "cache": "tokens",
    "ttlSecondsAfterFinished": "seconds",
    "topK": "tokens",
    "topP": "a share",
    "perDeviceBatchSize": "",
    "gradientAccumulationSteps": "micro-steps",
    "stepsPerGeneration": "micro-steps",
    "adamBeta1": "",
    "adamBeta2": "",
    "adamEpsilon": "",
    "alpha": "",
    "beta": "",
    "centerRewardsCoefficient": "",
    "delta": "",
    "epsilon": "",
    "epsilonHigh": "",
    "fAlphaDivergenceCoef": "",
    "ldAlpha": "",
    "learningRate": "",
    "maxGradNorm": "",
    "r": "",
    "repetitionPenalty": "",
    "seed": "",
    "step": "",
    "temperature": "",
    "weight": "",
    "weightDecay": "",
}
"""What numbers count, by the name of the field, or else by its last word; empty: nothing, or what its words say. Every
number of a spec is here."""


def unit(name: str) -> str | None:
    """Return what the number in a field counts; None if that is not known."""
    return UNITS.get(name, UNITS.get(re.split("(?=[A-Z])", name)[-1].lower()))


def of_spec(name: str, node: Schema, required: bool, resolved: Any = None) -> str:
    """Return the description of a field of a spec: the words that `node` has, then its values and its default.

    `resolved` is a default that is none of the schema's. Bounds are those of the model, as numbers.
    """
    words = node.get("description", "")
    counted = unit(name) or ""
    values = _values(node, "" if counted.removeprefix("a ") in words.lower() else counted)
    sentences = (words, _sentence(values), _default(node, words, required, resolved))
    return " ".join(sentence for sentence in sentences if sentence)


def of_status(name: str, node: Schema, required: bool, resolved: Any = None) -> str:
    """Return the description of a field of the status, which nobody has to fill in: the words, then the values if
    these are named ones."""
    return " ".join(part for part in (node.get("description", ""), _sentence(_names(node))) if part)


def _sentence(words: str) -> str:
    return f"{words[0].upper()}{words[1:]}." if words else ""


def _names(node: Schema) -> str:
    names = [said(name) for name in node.get("enum", [])]
    return f"{'one of' if len(names) > 1 else 'only'} {', '.join(names)}" if names else ""


def _values(node: Schema, counted: str = "") -> str:
    if "enum" in node:
        return _names(node)
    if "x-kubernetes-int-or-string" in node:
        return f"a quantity of {counted}, like 16Gi" if counted else "a quantity, like 2, 500m or 16Gi"
    match node.get("type"):
        case "integer" | "number":
            high = None if node.get("maximum") == INT32_MAX else node.get("maximum")
            low, above, below = node.get("minimum"), node.get("exclusiveMinimum"), node.get("exclusiveMaximum")
            return ", ".join(part for part in (counted, _range(low, high, bool(above), bool(below))) if part)
        case "string" if "format" not in node:
            return _many("character", node.get("minLength"), node.get("maxLength"))
        case "array":
            items = _many("item", node.get("minItems"), node.get("maxItems"))
            return ", each ".join(part for part in (items, _values(node["items"])) if part)
        case "object" if "additionalProperties" in node:
            entries = _many("entry", None, node.get("maxProperties")).replace("entrys", "entries")
            return ", each ".join(part for part in (entries, _values(node["additionalProperties"])) if part)
    return ""


def _many(what: str, low: int | None, high: int | None) -> str:
    found = _range(low or None, high)
    return f"{found} {what}{'' if high == 1 else 's'}" if found else ""


def _range(low: float | None, high: float | None, above: bool = False, below: bool = False) -> str:
    if low is not None and high is not None and not above and not below:
        return said(low) if low == high else f"{said(low)} to {said(high)}"
    least = "" if low is None else f"{'above' if above else 'at least'} {said(low)}"
    most = "" if high is None else f"{'below' if below else 'at most'} {said(high)}"
    return ", ".join(part for part in (least, most) if part)


def _default(node: Schema, words: str, required: bool, resolved: Any) -> str:
    if required:
        return "Required."
    default = node.get("default") if resolved is None else resolved
    if "properties" in node or node.get("items", {}).get("properties"):
        return ""  # its fields say theirs
    if default is not None:
        return f"Default: {said(default)}."
    # Words that tell what follows where a field is not given tell the default.
    return "" if re.search(r"\bunset\b|\bdefault\b", words, re.IGNORECASE) else "No default."


def said(value: Any) -> str:
    """Return a value as it is written in a manifest."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{', '.join(said(item) for item in value)}]"
    if isinstance(value, float):
        return re.sub(r"\.?0*e-0*", "e-", f"{value:e}") if 0 < abs(value) < 0.001 else f"{value:.12g}"
    return str(value)
