"""The token with which chunkservers speak to each other, signed with the cluster's keyring and renewed in time."""

from __future__ import annotations

from curve_storage.clock import Clock
from curve_storage.wire.token import CLUSTER_SCOPE, Keyring

_VALID = 3600.0
_RENEW = 600.0
_SKEW = 60.0


class ClusterToken:
    """Calling it gives the token; the same object as long as it is good and signed with the active key."""

    def __init__(self, keyring: Keyring, clock: Clock) -> None:
        self._keyring = keyring
        self._clock = clock
        self._token = b""
        self._key = ""
        self._signed = 0.0

    def __call__(self) -> bytes:
        now = self._clock.wall()
        self._keyring.refresh()
        # By the time of day, as its expiry: a token signed while the clock was wrong goes as soon as it is set right.
        fresh = self._signed - _SKEW <= now < self._signed + _RENEW
        if not self._token or not fresh or self._keyring.active != self._key:
            self._key = self._keyring.active
            self._token = self._keyring.sign(CLUSTER_SCOPE, epoch=0, rights="rw", expires=now + _VALID)
            self._signed = now
        return self._token
