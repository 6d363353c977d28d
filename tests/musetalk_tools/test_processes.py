"""Ports for children."""

from __future__ import annotations

import socket

import pytest

from musetalk_tools import processes
from musetalk_tools.processes import free_port


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM], ids=["TCP", "UDP"])
def test_a_free_port_is_none_that_is_used_nor_one_that_connections_get(
    kind: socket.SocketKind, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert free_port(kind) in range(20_000, 32_768)
    taken, free = free_port(kind), free_port(kind)
    monkeypatch.setattr(processes, "_PORTS", [taken] * 99 + [free])
    with socket.socket(socket.AF_INET, kind) as other:
        other.bind(("127.0.0.1", taken))
        assert free_port(kind) == free
        monkeypatch.setattr(processes, "_PORTS", [taken] * 100)
        with pytest.raises(OSError, match="no free port"):
            free_port(kind)
