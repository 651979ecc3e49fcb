"""How a program finds its cluster: one small YAML file `{mds: [host:port, …], tls: {ca, cert, key}}`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from pydantic import Field

from curve_storage.config import ConfigModel, TlsFiles, load
from curve_storage.errors import ConfigError

SYSTEM_CONFIG = Path("/etc/curve/client.yaml")
CONFIG_VARIABLE = "CURVE_CLIENT_CONFIG"


class ClientConfig(ConfigModel):
    mds: list[str] = Field(min_length=1, description="host:port of the MDS members; any order")
    tls: TlsFiles | None = None


def playground_directory(environ: Mapping[str, str] = os.environ) -> Path:
    """Where `curve playground` keeps its cluster unless told otherwise."""
    data_home = environ.get("XDG_DATA_HOME") or str(Path(environ.get("HOME") or "/root") / ".local/share")
    return Path(data_home) / "curve" / "playground"


def find_config_file(explicit: Path | None = None, environ: Mapping[str, str] = os.environ) -> Path:
    """The first of: `explicit`, $CURVE_CLIENT_CONFIG, /etc/curve/client.yaml, the playground's. Raises ConfigError."""
    if explicit is not None:
        return explicit
    if environ.get(CONFIG_VARIABLE):
        return Path(environ[CONFIG_VARIABLE])
    playground = playground_directory(environ) / "client.yaml"
    for candidate in (SYSTEM_CONFIG, playground):
        if candidate.is_file():
            return candidate
    raise ConfigError(
        "no cluster is configured here",
        where=f"{SYSTEM_CONFIG}, {playground}",
        todo=f"Start one with `curve playground up`, or name its client file with --config or {CONFIG_VARIABLE}",
    )


def load_client_config(explicit: Path | None = None, environ: Mapping[str, str] = os.environ) -> ClientConfig:
    """The client configuration in force; a relative or absent file, an unknown key: ConfigError with the place."""
    # CURVE_TLS and the like belong to daemons: a client file is taken as it is written.
    return load(ClientConfig, find_config_file(explicit, environ), {})
