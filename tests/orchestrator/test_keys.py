from __future__ import annotations

import json
from typing import Any

import pytest

from orchestrator.keys import Key, KeyLimits, KeyRing, KeysError, Scope, digest, generate, operators, parse

SECRET = "a-key-of-sixteen-or-more"


def entry(**fields: Any) -> dict[str, Any]:
    return {"name": "shop", "scope": "starter", "key": SECRET, **fields}


def keys(*entries: dict[str, Any]) -> tuple[Key, ...]:
    return parse(json.dumps(entries))


@pytest.mark.parametrize(
    ("scope", "covered"),
    [
        (Scope.OPERATOR, {Scope.OPERATOR, Scope.STARTER, Scope.VIEWER}),
        (Scope.STARTER, {Scope.STARTER, Scope.VIEWER}),
        (Scope.VIEWER, {Scope.VIEWER}),
    ],
)
def test_what_each_scope_covers(scope: Scope, covered: set[Scope]) -> None:
    assert {needed for needed in Scope if scope.covers(needed)} == covered


def test_a_key_counts_by_its_hash_or_as_it_is() -> None:
    other = generate()
    ring = KeyRing(())
    ring.replace(keys(entry(max_sessions=3), entry(name="tv", key=None, sha256=digest(other).hex(), scope="viewer")))
    shop, tv = ring.find(SECRET, 0.0), ring.find(other, 0.0)
    assert shop is not None and (shop.name, shop.scope, shop.limits) == ("shop", "starter", KeyLimits(max_sessions=3))
    assert tv is not None and (tv.name, tv.scope) == ("tv", "viewer")
    assert ring.find(SECRET + "x", 0.0) is None and ring.find("", 0.0) is None
    assert ring.find(digest(other).hex(), 0.0) is None


def test_a_key_ends() -> None:
    ring = KeyRing(())
    ring.replace(keys(entry(expires_at="2026-01-01T00:00:00+00:00")))
    end = 1767225600.0
    assert ring.find(SECRET, end - 1) is not None and ring.find(SECRET, end) is None


def test_two_keys_of_a_name_are_one_caller() -> None:
    ring = KeyRing(operators(["the-environments"]))
    ring.replace(keys(entry(), entry(key=SECRET + "-new")))
    assert ring.find(SECRET, 0.0) == ring.find(SECRET + "-new", 0.0) is not None
    environment = ring.find("the-environments", 0.0)
    assert environment is not None and environment.scope is Scope.OPERATOR


@pytest.mark.parametrize(
    ("text", "reported"),
    [
        ("{", "JSON"),
        ("{}", "array"),
        (json.dumps([entry(key="short-key")]), "0.key: .* at least 16"),
        (json.dumps([entry(scope="admin")]), "0.scope"),
        (json.dumps([entry(name="a b")]), "0.name"),
        (json.dumps([entry(), entry(sha256="0" * 64)]), "1: Value error, give either"),
        (json.dumps([entry(key=None)]), "0: Value error, give either"),
        (json.dumps([entry(sha256="xyz", key=None)]), "0.sha256"),
        (json.dumps([entry(colour="red")]), "0.colour"),
        (json.dumps([entry(max_sessions=-1)]), "0.max_sessions"),
        (json.dumps([entry(expires_at="2026-01-01T00:00:00")]), "0.expires_at"),
    ],
)
def test_a_wrong_file_says_where_and_tells_no_key(text: str, reported: str) -> None:
    with pytest.raises(KeysError, match=reported) as caught:
        parse(text)
    assert SECRET not in str(caught.value) and "short-key" not in str(caught.value)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize(
    ("entries", "reported"),
    [
        ([entry(), entry(key=SECRET + "2", scope="viewer")], "same scope"),
        ([entry(), entry(key=SECRET + "2", max_sessions=1)], "same scope and limits"),
        ([entry(), entry(name="other")], "twice"),
        ([entry(key=f"{SECRET}-{number}") for number in range(1024)], "1025 keys"),
        ([entry(name="environment")], "same scope"),
    ],
)
def test_what_does_not_go_together_changes_nothing(entries: list[dict[str, Any]], reported: str) -> None:
    ring = KeyRing(operators(["the-environments"]))
    with pytest.raises(KeysError, match=reported):
        ring.replace(keys(*entries))
    assert len(ring) == 1 and ring.find("the-environments", 0.0) is not None


def test_no_key_is_shown() -> None:
    (key,) = keys(entry())
    assert SECRET not in repr(key) and digest(SECRET).hex() not in repr(key)
