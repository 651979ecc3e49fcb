"""Where the other chunkservers are, as the MDS says in its heartbeat replies; kept on the disk, so that copysets find
their peers after a restart also while no MDS can be asked."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from curve_storage.chunkserver.atomic_file import write_atomic
from curve_storage.telemetry import logs

FILE = "addresses.json"

log = logs.get("addresses")


class AddressBook:
    """Implements consensus.api.Addresses."""

    def __init__(self, path: Path | None = None) -> None:
        """path: the file to keep it in; None: memory only."""
        self._path = path
        self._known: dict[int, str] = {}
        if path is not None and path.exists():
            try:
                self._known = {int(node): str(address) for node, address in json.loads(path.read_text()).items()}
            except (ValueError, AttributeError) as error:
                log.warning("the stored addresses are not readable, the MDS will tell them", error=str(error))

    def address(self, node: int) -> str | None:
        return self._known.get(node)

    def update(self, addresses: Mapping[int, str]) -> None:
        """Adds and replaces; unknown ones stay, since an MDS that has just started may not name everybody yet. An
        address belongs to the node that has it now: nobody else is looked for there any more."""
        owners = {address: node for node, address in addresses.items()}
        known = {node: at for node, at in {**self._known, **addresses}.items() if owners.get(at, node) == node}
        if known == self._known:
            return
        self._known = known
        if self._path is not None:
            try:
                write_atomic(self._path, json.dumps(self._known).encode())
            except OSError as error:
                log.warning("the addresses are not stored", error=str(error))
