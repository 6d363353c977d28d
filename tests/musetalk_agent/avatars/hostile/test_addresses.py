"""Addresses that must never be fetched, in every spelling; none may lead to a connection."""

from __future__ import annotations

import pytest

from musetalk_agent.avatars.limits import AvatarLimits
from musetalk_agent.avatars.sources import Fetcher, address_errors
from musetalk_agent.errors import AvatarError, AvatarFetchFailed, AvatarUrlForbidden
from musetalk_agent.protocol.addresses import checked_addresses, parse, system_resolver
from tests.musetalk_agent.avatars.hosts import hosting, ok, redirect

PORTS = {"http": 80, "https": 443}
LOOPBACK = [
    "http://127.0.0.1:{port}/a",
    "http://localhost:{port}/a",
    "http://LOCALHOST.:{port}/a",
    "http://127.0.0.1.:{port}/a",
    "http://127.255.255.254:{port}/a",
    "http://[::1]:{port}/a",
    "http://[::ffff:127.0.0.1]:{port}/a",
    "http://[::ffff:7f00:1]:{port}/a",
    "http://[0:0:0:0:0:0:0:1]:{port}/a",
    "http://[::127.0.0.1]:{port}/a",
    "http://[64:ff9b::127.0.0.1]:{port}/a",
    "http://[2002:7f00:1::]:{port}/a",
    "http://0.0.0.0:{port}/a",
    "http://[::]:{port}/a",
    "http://0:{port}/a",
]
NUMBERS = [
    "http://2130706433:{port}/a",
    "http://0x7f000001:{port}/a",
    "http://0x7f.1:{port}/a",
    "http://0177.0.0.1:{port}/a",
    "http://017700000001:{port}/a",
    "http://127.1:{port}/a",
    "http://127.0.1:{port}/a",
    "http://256.256.256.256:{port}/a",
    "http://1.2.3.4.5:{port}/a",
    "http://１２７.０.０.１:{port}/a",
]
PRIVATE = [
    "http://10.0.0.1/a",
    "http://172.16.0.1/a",
    "http://192.168.1.1/a",
    "http://[fd12:3456::1]/a",
]
NEVER = [
    "http://169.254.169.254/latest/meta-data/",
    "http://[::ffff:169.254.169.254]/latest/meta-data/",
    "http://[fd00:ec2::254]/latest/meta-data/",
    "http://[fd20:ce::254]/computeMetadata/v1/",
    "http://[fe80::1]/a",
    "http://168.63.129.16/a",
    "http://100.100.100.200/latest/meta-data/",
    "http://100.64.0.1/a",
    "http://192.0.0.192/a",
    "http://198.18.0.1/a",
    "http://224.0.0.1/a",
    "http://255.255.255.255/a",
    "http://240.0.0.1/a",
    "http://[ff02::1]/a",
    "http://[64:ff9b:1::a9fe:a9fe]/a",
]
SPELLINGS = [
    "http://user:pass@127.0.0.1:{port}/a",
    "http://user@example.com/a",
    "http://example.com@127.0.0.1:{port}/a",
    "http://example.com\\@127.0.0.1:{port}/a",
    "http://127.0.0.1%00.example.com:{port}/a",
    "http://127.0.0.1%2f@example.com/a",
    "http:/\\127.0.0.1:{port}/a",
    "http:///a",
    "http://",
    "file:///etc/passwd",
    "FILE:///etc/passwd",
    "ftp://127.0.0.1/a",
    "gopher://127.0.0.1:{port}/a",
    "data:application/zip;base64,UEsFBgAAAAAAAAAAAAAAAAAAAAAAAA==",
    "jar:http://127.0.0.1:{port}/a!/b",
    "unix:///var/run/docker.sock",
    "//127.0.0.1:{port}/a",
    "/etc/passwd",
    "127.0.0.1:{port}/a",
    "http://127.0.0.1:99999/a",
    "http://exa mple.com/a",
    "http://example.com\r\nHost: 127.0.0.1/a",
    "",
]


async def refused(url: str, *, allow_private: bool) -> AvatarError:
    async def write(piece: bytes) -> None:
        raise AssertionError("bytes arrived")

    async def resolver(name: str, port: int) -> list[str]:
        return ["127.0.0.1"] if name == "localhost" else ["93.184.216.34"]

    with pytest.raises(AvatarError) as caught:
        await Fetcher(AvatarLimits(), allow_private=allow_private, resolver=resolver).fetch(url, write)
    return caught.value


@pytest.mark.parametrize("allow_private", [False, True])
@pytest.mark.parametrize("url", NEVER)
async def test_never(url: str, allow_private: bool) -> None:
    """Asks the check alone: were it wrong, the test itself must not reach out."""
    with pytest.raises(AvatarUrlForbidden) as caught, address_errors():
        await checked_addresses(parse(url, PORTS).host, 80, system_resolver, allow_private=allow_private)
    assert caught.value.status == 422


@pytest.mark.parametrize("url", PRIVATE)
async def test_private_networks(url: str) -> None:
    host = parse(url, PORTS).host
    with pytest.raises(AvatarUrlForbidden), address_errors():
        await checked_addresses(host, 80, system_resolver, allow_private=False)
    assert await checked_addresses(host, 80, system_resolver, allow_private=True) == [host]


@pytest.mark.parametrize("host", ["93.184.216.34", "1.1.1.1", "2606:4700:4700::1111", "64:ff9b::101:101"])
async def test_public_addresses_pass(host: str) -> None:
    assert await checked_addresses(host, 80, system_resolver, allow_private=False) == [host]


@pytest.mark.parametrize("pattern", LOOPBACK + NUMBERS + SPELLINGS)
async def test_forbidden(pattern: str) -> None:
    async with hosting() as host:
        host.replies["/a"] = ok(b"reached")
        error = await refused(pattern.format(port=host.port), allow_private=False)
        assert isinstance(error, AvatarUrlForbidden) and error.status == 422
        assert not host.asked
        assert "pass" not in error.detail and "signature" not in error.detail


@pytest.mark.parametrize("pattern", NUMBERS + SPELLINGS)
async def test_forbidden_even_where_private_addresses_are_allowed(pattern: str) -> None:
    async with hosting() as host:
        host.replies["/a"] = ok(b"reached")
        assert isinstance(await refused(pattern.format(port=host.port), allow_private=True), AvatarUrlForbidden)
        assert not host.asked


@pytest.mark.parametrize(
    "location",
    [
        "file:///etc/passwd",
        "http://169.254.169.254/latest/meta-data/",
        "//169.254.169.254/x",
        "http://[fd00:ec2::254]/",
        "ftp://example.com/a",
        "http://a:b@127.0.0.1/",
        "http://2852039166/",
        "javascript:alert(1)",
        "http://[::ffff:a9fe:a9fe]/",
        "http://[",
    ],
)
async def test_redirects_are_checked_like_the_first_address(location: str) -> None:
    async with hosting() as host:
        host.replies["/a"] = redirect(location)
        assert isinstance(await refused(host.url(), allow_private=True), AvatarUrlForbidden)


async def test_unknown_names_fail_without_a_forbidden() -> None:
    async def write(piece: bytes) -> None:
        raise AssertionError("bytes arrived")

    async def resolver(name: str, port: int) -> list[str]:
        raise OSError("no such name")

    with pytest.raises(AvatarFetchFailed, match=r"nowhere\.example is not known"):
        await Fetcher(AvatarLimits(), resolver=resolver).fetch("http://nowhere.example/a?signature=s", write)
