"""Kubernetes quantities."""

import re
from decimal import Decimal
from typing import Annotated

from pydantic import Field, PlainValidator

QUANTITY = r"^[0-9]+(\.[0-9]+)?(m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei)?$"
MAX_QUANTITY_LENGTH = 32


def _quantity(value: object) -> int | str:
    if isinstance(value, str) and len(value) <= MAX_QUANTITY_LENGTH and re.fullmatch(QUANTITY, value):
        return value
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    raise ValueError("must be a quantity greater than or equal to 0, like 2, 500m or 16Gi")


Quantity = Annotated[
    int | str,
    PlainValidator(_quantity, json_schema_input_type=int | str),
    Field(
        json_schema_extra={
            "x-kubernetes-int-or-string": True,
            "pattern": QUANTITY,
            "maxLength": MAX_QUANTITY_LENGTH,
            # Pattern and length hold for strings, this for integers.
            "minimum": 0,
        },
    ),
]
"""A Kubernetes quantity that is not negative, like 2, 500m or 16Gi."""

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
