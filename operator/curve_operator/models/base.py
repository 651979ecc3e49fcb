"""What every model of the resource shares: camelCase names on the wire, CEL rules kept beside the fields they guard."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

NODE_NAME = Annotated[str, Field(max_length=253, pattern=r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$")]
ABSOLUTE_PATH = Annotated[str, Field(max_length=512, pattern=r"^/[^\s:]*$")]
PORT = Annotated[int, Field(ge=1, le=65535)]
QUANTITY = Annotated[str, Field(max_length=32, pattern=r"^[0-9]+(\.[0-9]+)?([KMGTPE]i?|k)?$")]
IMAGE = Annotated[str, Field(min_length=1, max_length=512, pattern=r"^\S+$")]


class ApiModel(BaseModel):
    """Unknown fields are ignored here: the API server has refused or pruned them before the operator sees them."""

    model_config = ConfigDict(extra="ignore", alias_generator=to_camel, populate_by_name=True, frozen=True)


def rule(expression: str, message: str, **more: Any) -> dict[str, Any]:
    """One CEL rule of `x-kubernetes-validations`."""
    return {"rule": expression, "message": message, **more}


def rules(*items: dict[str, Any]) -> dict[str, Any]:
    return {"x-kubernetes-validations": list(items)}


def opaque() -> dict[str, Any]:
    """A part of the pod specification that is handed on as it is; the API server checks it in the pods."""
    return {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
