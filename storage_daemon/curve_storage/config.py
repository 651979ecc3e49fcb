"""Typed configuration: one YAML file per daemon, checked by a pydantic model, unknown keys refused.

An environment variable `CURVE_<FIELD>__<SUBFIELD>` overrides a scalar of the file.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from curve_storage.errors import ConfigError


class ConfigModel(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TlsFiles(ConfigModel):
    """PEM files of a mutual-TLS identity; re-read when they change, so rotation needs no restart."""

    ca: Path
    cert: Path
    key: Path


class EtcdConfig(ConfigModel):
    endpoints: list[str] = Field(min_length=1, description="host:port or http(s)://host:port of the members")
    tls: TlsFiles | None = None
    prefix: str = Field(default="", description="Key prefix, for several clusters on one etcd")


ModelT = TypeVar("ModelT", bound=BaseModel)


def load(model: type[ModelT], path: Path, environ: Mapping[str, str] = os.environ) -> ModelT:
    """Read and check `path`. Raises ConfigError that names the file, the field and what it should be."""
    try:
        text = path.read_text()
    except OSError as error:
        raise ConfigError(
            f"cannot read the configuration: {error.strerror}", where=str(path), todo="Pass --config FILE"
        ) from error
    try:
        data = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise ConfigError(f"not valid YAML: {error}", where=str(path), todo="Correct the file") from error
    if not isinstance(data, dict):
        raise ConfigError("the top level must be a mapping", where=str(path), todo="Write KEY: VALUE lines")
    for name, value in environ.items():
        if name.startswith("CURVE_") and "__" not in name[6:] and _is_scalar(model, name[6:].lower()):
            data[name[6:].lower()] = yaml.safe_load(value)
        elif name.startswith("CURVE_") and "__" in name[6:]:
            _override(data, name[6:].lower().split("__"), value, model)
    return parse(model, data, where=str(path))


def parse(model: type[ModelT], data: Any, *, where: str) -> ModelT:
    try:
        return model.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "(top level)"
        raise ConfigError(f"{field}: {first['msg']}", where=where, todo="Correct this field and start again") from error


def _is_scalar(model: type[BaseModel], field: str) -> bool:
    """Whether a variable of that name can mean this field; CURVE_ETCD, say, names a program and no mapping."""
    if field not in model.model_fields:
        return False
    annotation = model.model_fields[field].annotation
    return not (isinstance(annotation, type) and issubclass(annotation, BaseModel))


def _override(data: dict[str, Any], path: list[str], value: str, model: type[BaseModel]) -> None:
    if path[0] not in model.model_fields:
        return
    node = data
    for part in path[:-1]:
        child = node.setdefault(part, {})
        if not isinstance(child, dict):
            raise ConfigError(f"{part} is not a mapping", where="environment", todo="Unset the variable")
        node = child
    node[path[-1]] = yaml.safe_load(value)
