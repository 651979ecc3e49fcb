"""What a plan may ask for. Each action carries the sentence that explains it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from curve_operator.tls import Authority


@dataclass(frozen=True)
class Apply:
    manifest: Mapping[str, Any]
    reason: str


@dataclass(frozen=True)
class Scale:
    """Replicas of a StatefulSet."""

    name: str
    replicas: int
    reason: str


@dataclass(frozen=True)
class StoreAuthority:
    """Write the CA; `authority` None: make the first one."""

    authority: Authority | None
    reason: str


@dataclass(frozen=True)
class IssueCertificate:
    """A certificate for `secret`, signed by `authority`. keep: (cert, key) to leave, only the trust bundle is new."""

    authority: Authority
    secret: str
    common_name: str
    sans: tuple[str, ...]
    component: str
    reason: str
    keep: tuple[bytes, bytes] | None = None


@dataclass(frozen=True)
class StoreKeyring:
    """document and history as in `keyring`; empty: make the first one."""

    reason: str
    document: bytes = b""
    history: str = ""


@dataclass(frozen=True)
class CreatePool:
    name: str
    replicas: int
    zones: int
    copysets: int
    scatter_width: int
    reason: str


@dataclass(frozen=True)
class SetFinalizers:
    finalizers: tuple[str, ...]
    reason: str


Action = Apply | Scale | StoreAuthority | IssueCertificate | StoreKeyring | CreatePool | SetFinalizers


@dataclass(frozen=True)
class Finding:
    """One condition of the status: a role's state and what it waits for."""

    type: str
    ok: bool | None
    reason: str
    message: str = ""


@dataclass
class Plan:
    actions: list[Action] = field(default_factory=list)
    waiting: list[str] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    updating: bool = False

    def add(self, action: Action) -> None:
        self.actions.append(action)

    def wait(self, sentence: str) -> None:
        if sentence not in self.waiting:
            self.waiting.append(sentence)
