"""The specification mentions everything there is."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import pytest

from musetalk_agent.protocol import messages
from musetalk_agent.protocol.http import Suspicion
from musetalk_agent.protocol.problems import STATUS, ErrorCode
from tests.fakes.stage import Stage

DOC = (Path(__file__).parents[2] / "docs" / "protocol.md").read_text("utf-8")


async def test_every_route_is_described(running: Stage) -> None:
    for path, methods in running.app.openapi()["paths"].items():
        for method in methods:
            assert f"{method.upper()} {path}`" in DOC, f"{method} {path}"


@pytest.mark.parametrize("code", ErrorCode)
def test_every_error_code_is_described_with_its_status(code: ErrorCode) -> None:
    row = re.search(rf"^\| `{code.value}` \| (.+?) \|", DOC, re.MULTILINE)
    assert row, code
    over_websocket = re.match(r"1008", row[1])
    assert over_websocket or row[1] == str(STATUS.get(code, 422))


def test_every_message_type_is_described() -> None:
    types = {
        kind.model_fields["type"].default
        for kind in vars(messages).values()
        if isinstance(kind, type) and issubclass(kind, messages.Message) and "type" in kind.model_fields
    }
    assert len(types) >= 18
    for name in types:
        assert f"`{name}`" in DOC, name


def test_every_suspicion_and_limit_is_described() -> None:
    for name in [*Suspicion, *messages.Limits.model_fields, *messages.Hello.model_fields]:
        assert f"`{name}`" in DOC, name


def test_every_inner_message_is_described() -> None:
    for union in (messages.LinkMessage, messages.AgentMessage):
        for kind in get_args(get_args(union)[0]):
            assert f"`{kind.model_fields['type'].default}`" in DOC
