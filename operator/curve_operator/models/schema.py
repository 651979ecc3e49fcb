"""A pydantic model's JSON schema → the structural OpenAPI v3 schema that a CRD takes."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

DROPPED = ("title", "discriminator", "$defs", "additionalProperties", "const")
RULES = "x-kubernetes-validations"


def structural(model: type[BaseModel], *, defaults: bool = True) -> dict[str, Any]:
    """References inlined, optional fields without null: what the API server accepts.

    defaults: keep them (a spec is filled in when it is stored) or leave them out (a status says only what was seen).
    """
    document = model.model_json_schema(by_alias=True, mode="validation")
    schema = _convert(document, document.get("$defs", {}))
    _settle_defaults(schema, defaults)
    return schema


def _settle_defaults(schema: dict[str, Any], keep: bool) -> None:
    for child in [*schema.get("properties", {}).values(), schema.get("items"), schema.get("additionalProperties")]:
        if isinstance(child, dict):
            _settle_defaults(child, keep)
    if not keep:
        schema.pop("default", None)
    elif isinstance(schema.get("default"), dict):
        # complete, because the API server checks a default against the rules before it fills in what is inside
        children = schema.get("properties", {}).items()
        schema["default"] = {name: child["default"] for name, child in children if "default" in child}


def _convert(node: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    merged = dict(node)
    reference = merged.pop("$ref", None)
    if reference is not None:
        # rules of the field and of the referenced class both apply
        target = dict(definitions[reference.rsplit("/", 1)[1]])
        both = target.get(RULES, []) + merged.get(RULES, [])
        merged = {**target, **merged}
        if both:
            merged[RULES] = both
        return _convert(merged, definitions)
    if merged.get("x-kubernetes-preserve-unknown-fields"):
        keep = ("type", "description", "x-kubernetes-preserve-unknown-fields")
        return {key: merged[key] for key in keep if key in merged}
    if "anyOf" in merged:
        options = [option for option in merged.pop("anyOf") if option.get("type") != "null"]
        if len(options) != 1:
            raise ValueError(f"a field of several types has no structural schema: {options}")
        if merged.get("default", ...) is None:
            del merged["default"]
        # what the field says itself (items, rules, description) stands above the option
        return _convert({**options[0], **merged}, definitions)
    result: dict[str, Any] = {key: value for key, value in merged.items() if key not in DROPPED}
    if "const" in merged:
        result["enum"] = [merged["const"]]
    if "properties" in merged:
        result["properties"] = {name: _convert(child, definitions) for name, child in merged["properties"].items()}
        result["type"] = "object"
    elif isinstance(merged.get("additionalProperties"), dict):
        result["additionalProperties"] = _convert(merged["additionalProperties"], definitions)
        result.setdefault("maxProperties", 100)
    if "items" in merged:
        result["items"] = _convert(merged["items"], definitions)
    return result
