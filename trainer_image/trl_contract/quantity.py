"""Kubernetes quantities as numbers."""

from decimal import Decimal

_POWERS = {prefix: index + 1 for index, prefix in enumerate("kMGTPE")}


def amount(quantity: int | str) -> Decimal:
    """Return what a quantity like 2, 500m, 1.5G or 16Gi stands for."""
    text = str(quantity)
    if text.endswith("i"):
        return Decimal(text[:-2]) * Decimal(1024) ** _POWERS[text[-2].replace("K", "k")]
    if text.endswith("m"):
        return Decimal(text[:-1]) / 1000
    if text[-1] in _POWERS:
        return Decimal(text[:-1]) * Decimal(1000) ** _POWERS[text[-1]]
    return Decimal(text)
