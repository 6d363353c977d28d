"""RTMP addresses: what is refused, what is connected to, and that the key is never reported."""

from __future__ import annotations

import pytest

from musetalk_agent.errors import RtmpUrlForbidden
from musetalk_agent.protocol.problem_body import Problem
from musetalk_agent.protocol.problems import ErrorCode
from musetalk_agent.publishers.rtmp.address import check_rtmp, redact


def resolver(*addresses: str):  # type: ignore[no-untyped-def]
    async def resolve(host: str, port: int) -> list[str]:
        if not addresses:
            raise OSError("no such host")
        return list(addresses)

    return resolve


@pytest.mark.parametrize(
    ("url", "app", "key", "port"),
    [
        ("rtmp://stream.example/live/topsecret", "live", "topsecret", 1935),
        ("rtmps://stream.example:4443/live/topsecret?sign=1", "live", "topsecret?sign=1", 4443),
        ("rtmps://stream.example/app/instance/topsecret", "app/instance", "topsecret", 443),
    ],
)
async def test_an_address_is_taken_apart_and_hides_its_key(url: str, app: str, key: str, port: int) -> None:
    address = await check_rtmp(url, False, resolver("93.184.216.34", "2606:2800:220:1::1"))
    assert (address.app, address.key, address.port) == (app, key, port)
    assert address.addresses == ("93.184.216.34", "2606:2800:220:1::1")
    for reported in (repr(address), str(address), address.tc_url, redact(url)):
        assert "topsecret" not in reported and "stream.example" in reported


@pytest.mark.parametrize(
    "url",
    [
        "http://stream.example/live/topsecret",
        "rtmpt://stream.example/live/topsecret",
        "rtmp://user:topsecret@stream.example/live/k",
        "rtmp:///live/topsecret",
        "rtmp://stream.example/live",
        "rtmp://stream.example/live/",
        "rtmp://stream.example//topsecret",
        "rtmp://2130706433/live/topsecret",
        "rtmp://127.0.0.1/live/topsecret",
        "rtmp://[::ffff:10.0.0.1]/live/topsecret",
        "rtmp://169.254.169.254/live/topsecret",
        "file:///etc/passwd",
        "not an address",
        "rtmp://stream.example:99999/live/topsecret",
    ],
)
async def test_what_is_not_a_public_rtmp_address_is_refused_without_its_key(url: str) -> None:
    with pytest.raises(RtmpUrlForbidden) as refused:
        await check_rtmp(url, False, resolver("93.184.216.34"))
    assert refused.value.code is ErrorCode.RTMP_URL_FORBIDDEN
    assert "topsecret" not in str(Problem.of(refused.value))


@pytest.mark.parametrize(
    ("url", "reported"),
    [
        ("rtmp://stream.example:1935/live/topsecret", "rtmp://stream.example:1935/…"),
        ("rtmps://[2606::1]:443/live/topsecret", "rtmps://[2606::1]:443/…"),
        ("rtmp://user:topsecret@stream.example/live/k", "rtmp://stream.example/…"),
        ("rtmp://stream.example?topsecret", "rtmp://stream.example/…"),
        ("rtmp://user:top/secret@stream.example/live/topsecret", "…"),
        ("rtmp://stream.example\\live\\topsecret", "…"),
        ("rtmp://stream.example;topsecret", "…"),
        ("rtmp://stream.example#topsecret", "…"),
        ("rtmp://stream.example:topsecret/live", "…"),
        ("rtmp:/stream.example/topsecret", "…"),
        ("topsecret", "…"),
        ("", "…"),
    ],
)
def test_a_log_has_a_host_and_a_port_or_nothing(url: str, reported: str) -> None:
    assert redact(url) == reported


async def test_private_hosts_are_reached_only_where_allowed_and_metadata_never() -> None:
    url = "rtmp://stream.example/live/k"
    with pytest.raises(RtmpUrlForbidden):
        await check_rtmp(url, False, resolver("93.184.216.34", "10.0.0.7"))
    assert (await check_rtmp(url, True, resolver("10.0.0.7"))).addresses == ("10.0.0.7",)
    for address in ("169.254.169.254", "fe80::1"):
        with pytest.raises(RtmpUrlForbidden):
            await check_rtmp(url, True, resolver(address))
    with pytest.raises(RtmpUrlForbidden):
        await check_rtmp(url, True, resolver())
