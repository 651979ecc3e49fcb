"""The token with which chunkservers speak to each other, signed with the cluster's keyring and renewed in time."""

from __future__ import annotations

from curve_storage.clock import Clock
from curve_storage.wire.token import CLUSTER_SCOPE, Keyring

_VALID = 3600.0
_RENEW = 600.0


class ClusterToken:
    """Calling it gives the token; the same object as long as it is good and signed with the active key."""

    def __init__(self, keyring: Keyring, clock: Clock) -> None:
        self._keyring = keyring
        self._clock = clock
        self._token = b""
        self._key = ""
        self._renew_at = 0.0

    def __call__(self) -> bytes:
        now = self._clock.monotonic()
        self._keyring.refresh()
        if not self._token or now >= self._renew_at or self._keyring.active != self._key:
            self._key = self._keyring.active
            self._token = self._keyring.sign(CLUSTER_SCOPE, epoch=0, rights="rw", expires=self._clock.wall() + _VALID)
            self._renew_at = now + _RENEW
        return self._token
