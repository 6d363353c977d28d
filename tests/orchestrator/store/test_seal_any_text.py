"""Sealed texts: whatever was closed opens again, and whatever was not closed under this key is refused and no crash."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.store.session_store import Seal, SealBroken, derive

SEAL = Seal(derive("secret", "sessions", "dep_1"))
_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=300)


@given(text=_text)
def test_what_was_sealed_opens_again_and_shows_nothing(text: str) -> None:
    sealed = SEAL.encrypt(text)
    assert SEAL.decrypt(sealed) == text and sealed.isascii()
    assert len(text) < 6 or text not in sealed
    assert SEAL.encrypt(text) != sealed, "the same secret twice does not look the same"


@given(
    text=_text, other=st.tuples(st.text(), st.text(), st.text()).filter(lambda o: o != ("secret", "sessions", "dep_1"))
)
def test_another_secret_purpose_or_deployment_does_not_open_it(text: str, other: tuple[str, str, str]) -> None:
    try:
        key = derive(*other)
    except UnicodeEncodeError:
        return
    with pytest.raises(SealBroken):
        Seal(key).decrypt(SEAL.encrypt(text))


@settings(max_examples=300)
@given(text=_text, at=st.integers(0, 10_000), char=st.characters())
def test_one_character_changed_is_noticed(text: str, at: int, char: str) -> None:
    sealed = SEAL.encrypt(text)
    at %= len(sealed)
    damaged = sealed[:at] + char + sealed[at + 1 :]
    if damaged == sealed:
        assert SEAL.decrypt(damaged) == text
        return
    try:
        opened = SEAL.decrypt(damaged)
    except SealBroken:
        return
    assert opened == text, "bits of the last character that base64 does not use"


@given(junk=st.text(max_size=200))
def test_junk_is_a_broken_seal(junk: str) -> None:
    with pytest.raises(SealBroken):
        SEAL.decrypt(junk)
