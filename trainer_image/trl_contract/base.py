"""The base class of every model here, and the small types that many fields share."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, GetJsonSchemaHandler, JsonValue, model_validator
from pydantic.alias_generators import to_camel
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

CONTRACT_VERSION: Literal[1] = 1

Kind = Literal["SFTJob", "RewardJob", "DPOJob", "GRPOJob"]
KINDS: tuple[Kind, ...] = ("SFTJob", "RewardJob", "DPOJob", "GRPOJob")


@dataclass(frozen=True)
class Rule:
    """What must hold between fields, for the API server and for Python."""

    cel: str
    message: str
    """What to change."""
    holds: Callable[[Any], bool]
    """The same as `cel`, of a model."""
    field: str = ""
    """The field that the API server names, below that of the model; the model itself if empty."""

    def entry(self) -> dict[str, JsonValue]:
        """Return the entry of x-kubernetes-validations."""
        return cel(self.cel, self.message) | ({"fieldPath": f".{self.field}"} if self.field else {})


class Broken(ValueError):
    """Rules do not hold; `rules` are all of them."""

    def __init__(self, rules: list[Rule]) -> None:
        super().__init__("; ".join(f"{rule.field}: {rule.message}" if rule.field else rule.message for rule in rules))
        self.rules = rules


class Model(BaseModel):
    """Immutable, strict about unknown fields, camelCase on the wire and snake_case in Python."""

    model_config = ConfigDict(
        alias_generator=to_camel,
        extra="forbid",
        frozen=True,
        populate_by_name=True,
        use_attribute_docstrings=True,
    )

    rules: ClassVar[tuple[Rule, ...]] = ()
    """All hold of every instance."""

    @model_validator(mode="after")
    def _rules_hold(self) -> Self:
        if broken := [rule for rule in self.rules if not rule.holds(self)]:
            raise Broken(broken)
        return self

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        found = handler(schema)
        if cls.rules:
            handler.resolve_ref_schema(found)["x-kubernetes-validations"] = [rule.entry() for rule in cls.rules]
        return found

    def to_wire(self) -> dict[str, Any]:
        """Return the JSON form: camelCase, without the fields that are unset (None)."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


def cel(rule: str, message: str) -> dict[str, JsonValue]:
    """Return one x-kubernetes-validations entry; the model's own validator must say the same in Python."""
    return {"rule": rule, "message": message}


def for_cel(pattern: str) -> str:
    """Return a regular expression as it stands in a text of a CEL rule."""
    return pattern.replace("\\", "\\\\")


RESOLVED = Field(json_schema_extra={"x-resolved": True})
"""Of a field whose default is none of the schema's: a profile or the admin may set another. The API server stores what
the user wrote; the default is named in the description, and is in the run's ConfigMap from attempt 0 on. Rules of the
API server's that read such a field hold where it is given; where it is not, the operator says the same in Accepted."""

Int32 = Annotated[int, Field(le=2**31 - 1)]
Name = Annotated[str, Field(min_length=1, max_length=253, pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")]
Key = Annotated[str, Field(min_length=1, max_length=253, pattern=r"^[-._a-zA-Z0-9]+$")]
Text = Annotated[str, Field(max_length=16384)]
LabelValue = Annotated[str, Field(max_length=63)]
QualifiedName = Annotated[str, Field(min_length=1, max_length=316)]
RelativePath = Annotated[
    str,
    Field(
        min_length=1,
        max_length=1024,
        pattern=r"^([^/\x00-\x1f.][^/\x00-\x1f]*|\.[^/\x00-\x1f.][^/\x00-\x1f]*)(/([^/\x00-\x1f.][^/\x00-\x1f]*|\.[^/\x00-\x1f.][^/\x00-\x1f]*))*$",
    ),
]
"""A path inside a volume: no leading slash, no `..`, no empty part, no control character."""
