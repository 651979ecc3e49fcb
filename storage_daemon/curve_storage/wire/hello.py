"""The first message of a connection: who is there, and its capability token."""

from __future__ import annotations

import msgspec


class Hello(msgspec.Struct):
    token: bytes
    client: str = ""
