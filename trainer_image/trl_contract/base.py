"""The base class of every model here, and the small types that many fields share."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue
from pydantic.alias_generators import to_camel

CONTRACT_VERSION: Literal[1] = 1

Kind = Literal["SFTJob", "RewardJob", "DPOJob", "GRPOJob"]
KINDS: tuple[Kind, ...] = ("SFTJob", "RewardJob", "DPOJob", "GRPOJob")


class Model(BaseModel):
    """Immutable, strict about unknown fields, camelCase on the wire and snake_case in Python."""

    model_config = ConfigDict(
        alias_generator=to_camel,
        extra="forbid",
        frozen=True,
        populate_by_name=True,
        use_attribute_docstrings=True,
    )

    def to_wire(self) -> dict[str, Any]:
        """Return the JSON form: camelCase, without the fields that are unset (None)."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


def cel(rule: str, message: str) -> dict[str, JsonValue]:
    """Return one x-kubernetes-validations entry; the model's own validator must say the same in Python."""
    return {"rule": rule, "message": message}


Int32 = Annotated[int, Field(le=2**31 - 1)]
Name = Annotated[str, Field(min_length=1, max_length=253, pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")]
Key = Annotated[str, Field(min_length=1, max_length=253, pattern=r"^[-._a-zA-Z0-9]+$")]
Text = Annotated[str, Field(max_length=16384)]
RelativePath = Annotated[
    str,
    Field(
        min_length=1,
        max_length=1024,
        pattern=r"^([^/\x00-\x1f.][^/\x00-\x1f]*|\.[^/\x00-\x1f.][^/\x00-\x1f]*)(/([^/\x00-\x1f.][^/\x00-\x1f]*|\.[^/\x00-\x1f.][^/\x00-\x1f]*))*$",
    ),
]
"""A path inside a volume: no leading slash, no `..`, no empty part, no control character."""
