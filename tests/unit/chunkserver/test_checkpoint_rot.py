"""One flipped bit in what a checkpoint says of a replica."""

from __future__ import annotations

import pytest

from curve_storage.chunkserver import copyset_meta
from curve_storage.errors import Corruption


def test_any_flipped_bit_of_a_checkpoint_file_is_refused() -> None:
    meta = copyset_meta.CopysetMeta(group=7, index=9, term=3, chunks=[1, 2, 1 << 40], hollow=[3])
    good = copyset_meta.encode(meta)
    assert copyset_meta.decode(good, where="here") == meta
    for bit in range(8 * len(good)):
        rotten = bytearray(good)
        rotten[bit // 8] ^= 1 << bit % 8
        with pytest.raises(Corruption) as raised:
            copyset_meta.decode(bytes(rotten), where="here")
        assert raised.value.where == "here" and raised.value.todo
