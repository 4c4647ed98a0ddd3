"""The small types that the models of the status are made of."""

from dataclasses import dataclass
from typing import Annotated

from pydantic import ConfigDict, Field

from trl_contract.base import Int32, Model
from trl_operator.constants import MANAGER_PROGRESS

Text63 = Annotated[str, Field(max_length=63)]
Text256 = Annotated[str, Field(max_length=256)]
Text1024 = Annotated[str, Field(max_length=1024)]
Text2048 = Annotated[str, Field(max_length=2048)]
Decimal = Annotated[str, Field(max_length=32)]
Time = Annotated[str, Field(max_length=40, json_schema_extra={"format": "date-time"})]
Count = Annotated[Int32, Field(ge=0)]
Int64 = Annotated[int, Field(ge=0, json_schema_extra={"format": "int64"})]


@dataclass(frozen=True)
class Owner:
    """The field manager that writes a field; empty: none does as a whole."""

    manager: str


REPORTED = Owner(MANAGER_PROGRESS)
BY_ITS_FIELDS = Owner("")
BY_ITS_ITEMS = Owner("")
NO_LONGER_WRITTEN = Owner("")


class Part(Model):
    """A part of the status. It may be of another version of the operator: what is not known is passed over."""

    model_config = ConfigDict(extra="ignore", frozen=False)


def list_map(key: str) -> dict[str, object]:
    """Return the schema keys of a list that server-side apply merges by `key`."""
    return {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": [key]}
