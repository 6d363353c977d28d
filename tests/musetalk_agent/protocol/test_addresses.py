"""The rules of addresses; that none of the hostile spellings leads to a connection is in tests/musetalk_agent/avatars/hostile."""

from __future__ import annotations

import pytest

from musetalk_agent.protocol.addresses import AddressRefused, HostUnknown, checked_addresses, parse
from tests.loaded import loaded_by

PORTS = {"http": 80, "https": 443}


@pytest.mark.parametrize(
    ("url", "host", "port", "path"),
    [
        ("http://example.com", "example.com", 80, "/"),
        ("HTTPS://Example.COM./a?b=c&d#e", "example.com", 443, "/a?b=c&d"),
        (" https://example.com:8443/ä b%20c ", "example.com", 8443, "/%C3%A4%20b%20c"),
        ("http://[2606:4700::1111]:81/", "2606:4700::1111", 81, "/"),
        ("http://bücher.example/", "xn--bcher-kva.example", 80, "/"),
        ("https://example.com/a?redirect=http://b/c", "example.com", 443, "/a?redirect=http://b/c"),
    ],
)
def test_an_address_is_taken_apart(url: str, host: str, port: int, path: str) -> None:
    target = parse(url, PORTS)
    assert (target.host, target.port, target.path) == (host, port, path)


@pytest.mark.parametrize(
    "url",
    [
        "https://ｅxample.com/",
        "https://１２７.0.0.1/",
        "https://faß.example/",
        "https://a\tb.example/",
        "https://example.com\\@b/",
        "https://example.com:0/",
        "https://example.com:x/",
        "https://me@example.com/",
        "https://:pw@example.com/",
        "https://@example.com/",
        "https://0x7f.1/",
        "https://[::1/",
        "https://[fe80::1%25eth0]/",
        "rtmp://example.com/",
        "example.com",
    ],
)
def test_what_parsers_read_differently_is_refused(url: str) -> None:
    with pytest.raises(AddressRefused):
        parse(url, PORTS)


async def test_one_forbidden_address_forbids_the_host() -> None:
    async def resolver(host: str, port: int) -> list[str]:
        return {"mixed": ["93.184.216.34", "10.0.0.1"], "public": ["93.184.216.34"], "empty": []}[host]

    assert await checked_addresses("public", 443, resolver, allow_private=False) == ["93.184.216.34"]
    with pytest.raises(AddressRefused, match="mixed is at a private"):
        await checked_addresses("mixed", 443, resolver, allow_private=False)
    assert len(await checked_addresses("mixed", 443, resolver, allow_private=True)) == 2
    with pytest.raises(HostUnknown, match="no address"):
        await checked_addresses("empty", 443, resolver, allow_private=False)


def test_it_loads_nothing_but_the_standard_library() -> None:
    assert loaded_by("musetalk_agent.protocol.addresses", ("httpx", "httpcore", "pydantic", "idna", "anyio")) == []
