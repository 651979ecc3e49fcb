from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curve_csi import volume_id
from curve_storage.errors import InvalidArgument, NotFound


@given(number=st.integers(min_value=0, max_value=2**64 - 1))
def test_round_trip(number: int) -> None:
    made = volume_id.make("c-1", "ssd", number)
    assert volume_id.parse(str(made)) == made
    assert len(str(made)) <= volume_id.MAX_ID


def test_longest_parts_fit() -> None:
    assert len(str(volume_id.make("c" * 48, "p" * 48, 2**64 - 1))) <= 128


@pytest.mark.parametrize("text", ["nonsense", "1.a.b", "2.a.b.1", "1.a.b.xyz", "1.a.b.", "x" * 500])
def test_foreign_ids_are_not_found(text: str) -> None:
    with pytest.raises(NotFound):
        volume_id.parse(text)


def test_empty_id_is_invalid() -> None:
    with pytest.raises(InvalidArgument):
        volume_id.parse("")


@pytest.mark.parametrize("word", ["a.b", "", "a/b", "x" * 49])
def test_bad_words_are_refused(word: str) -> None:
    with pytest.raises(InvalidArgument):
        volume_id.make("cluster", word, 1)


def test_path_of_plain_and_odd_names() -> None:
    assert volume_id.path_for("pvc-12") == "/csi/pvc-12"
    odd = volume_id.path_for("Ünï/../x" * 10)
    assert odd.startswith("/csi/h.") and "/" not in odd[5:]
    assert odd == volume_id.path_for("Ünï/../x" * 10)
    assert volume_id.path_for("a" * 128) != volume_id.path_for("a" * 127)


@pytest.mark.parametrize("name", ["", "x" * 129])
def test_bad_names(name: str) -> None:
    with pytest.raises(InvalidArgument):
        volume_id.path_for(name)


@given(one=st.text(min_size=1, max_size=128), two=st.text(min_size=1, max_size=128))
def test_different_names_have_different_paths(one: str, two: str) -> None:
    assert (volume_id.path_for(one) == volume_id.path_for(two)) == (one == two)
