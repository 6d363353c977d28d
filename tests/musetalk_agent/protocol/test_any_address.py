"""The address guard, whatever is written: no spelling of a private address passes, and every public one does."""

from __future__ import annotations

import ipaddress
import socket

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from musetalk_agent.protocol.addresses import AddressRefused, HostUnknown, checked_addresses, literal, parse, permitted

PORTS = {"http": 80, "https": 443}
PRIVATE = ["127.0.0.0/8", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"]
NEVER = [
    "169.254.0.0/16",
    "0.0.0.0/8",
    "100.64.0.0/10",
    "198.18.0.0/15",
    "224.0.0.0/4",
    "240.0.0.0/4",
    "168.63.129.16/32",
]


def within(blocks: list[str]) -> st.SearchStrategy[ipaddress.IPv4Address]:
    return st.one_of([st.ip_addresses(v=4, network=block) for block in blocks])  # type: ignore[misc]  # hypothesis' own typing of v


def carriers(inner: ipaddress.IPv4Address) -> list[ipaddress.IPv6Address]:
    """The IPv6 addresses in which an IPv4 address travels."""
    number = int(inner)
    return [
        ipaddress.IPv6Address(0xFFFF << 32 | number),  # mapped
        ipaddress.IPv6Address(number),  # compatible
        ipaddress.IPv6Address(0x0064FF9B << 96 | number),  # NAT64
        ipaddress.IPv6Address(0x2002 << 112 | number << 80 | 1),  # 6to4
        ipaddress.IPv6Address(0x20010000 << 96 | 0x08080808 << 64 | number ^ 0xFFFFFFFF),  # Teredo, the client
        ipaddress.IPv6Address(0x20010000 << 96 | number << 64 | 0x08080808 ^ 0xFFFFFFFF),  # Teredo, the server
    ]


@given(within(PRIVATE + NEVER))
def test_no_address_of_a_private_or_reserved_block_is_public_nor_is_what_carries_it(
    address: ipaddress.IPv4Address,
) -> None:
    assert not permitted(address, allow_private=False)
    assume(int(address) > 1)  # ::0 and ::1 have a meaning of their own, and are refused as well
    assert not any(permitted(one, allow_private=False) for one in carriers(address))


@given(within(NEVER))
def test_what_is_never_connected_to_is_not_opened_with_the_private_ones(address: ipaddress.IPv4Address) -> None:
    assert not permitted(address, allow_private=True)
    assume(int(address) > 1)
    assert not any(permitted(one, allow_private=True) for one in carriers(address))


@given(within(PRIVATE))
def test_private_addresses_are_open_where_they_are_allowed(address: ipaddress.IPv4Address) -> None:
    assert permitted(address, allow_private=True)


@given(st.ip_addresses(v=4))
def test_every_global_address_passes_but_for_the_special_ones(address: ipaddress.IPv4Address) -> None:
    special = [
        ipaddress.ip_network(block)
        for block in [*PRIVATE, *NEVER, "192.0.0.0/24", "192.88.99.0/24", "100.100.100.200/32"]
    ]
    assume(address.is_global and not any(address in block for block in special))
    assert permitted(address, allow_private=False) and permitted(address, allow_private=True)


def spellings(address: ipaddress.IPv4Address) -> list[str]:
    """What C libraries read as this address."""
    a, b, c, d = address.packed
    number = int(address)
    return [
        str(number),
        hex(number),
        f"0{number:o}",
        f"{a}.{number & 0xFFFFFF}",
        f"{a}.{b}.{number & 0xFFFF}",
        f"0x{a:x}.{b}.{c}.{d}",
        f"0{a:o}.{b}.{c}.0{d:o}",
        f"{a}.{b}.{c}.{d:#x}",
    ]


@given(st.ip_addresses(v=4), st.sampled_from(["", "."]))
def test_a_number_that_is_no_plain_address_is_refused_although_the_system_would_take_it(
    address: ipaddress.IPv4Address, end: str
) -> None:
    for written in spellings(address):
        assume(written != str(address))
        assert socket.inet_aton(written) == address.packed  # so the system reads it
        with pytest.raises(AddressRefused):
            parse(f"http://{written}{end}/x", PORTS)


@given(st.ip_addresses(v=4), st.integers(1, 65_535))
def test_a_plain_address_is_taken_apart_as_it_is(address: ipaddress.IPv4Address, port: int) -> None:
    target = parse(f"https://{address}:{port}/a?b=c", PORTS)
    assert (target.host, target.port, target.path) == (str(address), port, "/a?b=c")
    assert literal(target.host) == address


@given(st.text(max_size=60))
def test_whatever_is_written_is_taken_apart_or_refused(text: str) -> None:
    for url in (text, f"http://{text}", f"https://host.example/{text}", f"http://host.example:{text}/"):
        try:
            target = parse(url, PORTS)
        except AddressRefused as refused:
            assert refused.detail
            continue
        assert target.scheme in PORTS and 0 < target.port < 65_536
        assert target.host == target.host.lower() and target.host.isascii() and "@" not in target.host
        assert target.path.startswith("/") and target.path.isascii()
        assert not any(ord(sign) <= 32 or sign in "#\\\x7f" for sign in target.path)
        again = parse(f"{target.scheme}://{_host(target.host)}:{target.port}{target.path}", PORTS)
        assert (again.host, again.port) == (target.host, target.port)


def _host(host: str) -> str:
    return f"[{host}]" if ":" in host else host


@given(st.lists(st.ip_addresses(), min_size=1, max_size=4), st.booleans())
async def test_one_address_at_fault_refuses_the_name_and_else_all_come_back(
    found: list[ipaddress.IPv4Address | ipaddress.IPv6Address], allow_private: bool
) -> None:
    async def resolver(host: str, port: int) -> list[str]:
        return [str(one) for one in found]

    good = all(permitted(one, allow_private=allow_private) for one in found)
    if good:
        addresses = await checked_addresses("a.example", 443, resolver, allow_private=allow_private)
        assert addresses == [str(one) for one in found]
    else:
        with pytest.raises(AddressRefused) as refused:
            await checked_addresses("a.example", 443, resolver, allow_private=allow_private)
        assert not isinstance(refused.value, HostUnknown)
