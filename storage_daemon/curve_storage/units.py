"""Byte sizes: constants, parsing of what users type ("10Gi", "512M", 4096) and printing."""

from __future__ import annotations

import re

from curve_storage.errors import InvalidArgument

KiB = 1 << 10
MiB = 1 << 20
GiB = 1 << 30
TiB = 1 << 40

BLOCK_SIZE = 4 * KiB
CHUNK_SIZE = 16 * MiB
SEGMENT_SIZE = GiB
CHUNKS_PER_SEGMENT = SEGMENT_SIZE // CHUNK_SIZE

_SUFFIX = {
    "": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "P": 10**15, "K": 10**3,
    "Ki": KiB, "Mi": MiB, "Gi": GiB, "Ti": TiB, "Pi": 1 << 50,
}  # fmt: skip
_SIZE = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*([kKMGTP]i?|)(?:B|iB)?\s*$")


def parse_size(text: str | int) -> int:
    """Bytes for a Kubernetes-style quantity; raises InvalidArgument naming the accepted forms."""
    if isinstance(text, int):
        return text
    match = _SIZE.match(text)
    if match is None or match.group(2) not in _SUFFIX:
        raise InvalidArgument(f"{text!r} is not a size", todo="Use a number with Ki, Mi, Gi, Ti or k, M, G, T: 10Gi")
    return int(float(match.group(1)) * _SUFFIX[match.group(2)])


def format_size(size: float) -> str:
    """Binary units with at most one decimal: 1073741824 → '1 GiB'."""
    value = float(size)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(value) < 1024 or unit == "TiB":
            text = f"{value:.1f}".rstrip("0").rstrip(".")
            return f"{text} {unit}"
        value /= 1024
    raise AssertionError("unreachable")
