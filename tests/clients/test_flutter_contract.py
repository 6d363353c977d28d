"""The Flutter sample is not compiled here; what it says to the orchestrator, and expects of it, is held to the real thing."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, get_args

import pytest

from musetalk_agent.protocol.http import SessionState
from musetalk_agent.protocol.messages import CLIENT_TYPES, ServerMessage
from musetalk_agent.protocol.problem_body import Problem
from orchestrator.conversation.options import ConversationRequest
from tests.clients.printed import ROOT
from tests.fakes.stage import Stage, stage

APP = ROOT / "docs" / "examples" / "flutter"
PROTOCOL = (ROOT / "docs" / "protocol.md").read_text("utf-8")
CALL = re.compile(r"_call\('(GET|POST)', '([^']+)'(?:, \{(.*?)\})?\)", re.DOTALL)
SERVER = {kind.model_fields["type"].default: set(kind.model_fields) - {"type"} for kind in get_args(ServerMessage)}


def dart(name: str) -> str:
    return (APP / "lib" / name).read_text("utf-8")


def calls() -> Iterator[tuple[str, str, set[str], set[str]]]:
    """Method, path, fields of the body, fields that are read of the answer; of every call in the app."""
    code = dart("orchestrator.dart")
    for call in CALL.finditer(code):
        body = set(re.findall(r"'(\w+)':", call[3] or ""))
        rest = code[call.end() : code.find("\n  }\n", call.end())]
        yield call[1], call[2].replace("$sessionId", "{session_id}"), body, set(re.findall(r"answer\['(\w+)'\]", rest))


def schema(document: dict[str, Any], operation: dict[str, Any]) -> set[str]:
    """Fields of an operation's JSON body."""
    if "requestBody" not in operation:
        return set()
    reference = operation["requestBody"]["content"]["application/json"]["schema"]["$ref"]
    return set(document["components"]["schemas"][reference.rpartition("/")[2]]["properties"])


async def answers(on: Stage) -> dict[str, set[str]]:
    """Fields of real answers, by path."""
    started = await on.start()
    path = f"/session/{started['session_id']}"
    state, cleared = await on.http.get(path), await on.http.post(f"{path}/interrupt")
    stopped = await on.http.post(f"{path}/stop")
    return {
        "/session/start": set(started),
        "/session/{session_id}": set(state.json()),
        "/session/{session_id}/interrupt": set(cleared.json()),
        "/session/{session_id}/stop": set(stopped.json()),
        "/session/{session_id}/speak": {"segment"} if '→ 202 `{"segment"}`' in PROTOCOL else set(),
    }


async def test_every_call_is_one_of_the_api() -> None:
    async with stage() as on:
        document, real = on.app.openapi(), await answers(on)
    made = list(calls())
    assert {path for _, path, _, _ in made} == set(real)
    for method, path, body, read in made:
        operation = document["paths"][path][method.lower()]
        assert body <= schema(document, operation), path
        assert read <= real[path], path
    code = dart("orchestrator.dart")
    assert {"code", "detail"} <= set(Problem.model_fields)
    started = set(re.findall(r"json\['(\w+)'\]", code[: code.index("class Orchestrator")]))
    assert {"session_id", "audio_url"} <= started <= real["/session/start"]
    assert set(re.findall(r"json\['(\w+)'\]", code[code.index("class Orchestrator") :])) == {"code", "detail"}


@pytest.mark.parametrize("name", ["audio_link.dart", "avatar.dart"])
def test_every_message_is_one_of_the_protocol(name: str) -> None:
    code = dart(name)
    switch = code[code.index("switch (message['type'])") :]
    switch = switch[: switch.index("\n    }\n")]
    cases = re.split(r"\n      (?=case |default)", switch)[1:]
    assert len(cases) >= 4
    for case in cases:
        types = re.findall(r"'([\w.]+)'", case.partition(":")[0])
        fields = set(re.findall(r"message\['(\w+)'\]", case))
        for kind in types:
            assert fields <= SERVER[kind], f"{kind}: {fields}"


def test_what_it_sends_and_the_states_it_knows() -> None:
    link, avatar = dart("audio_link.dart"), dart("avatar.dart")
    sent = set(re.findall(r"_Item\.control\(_position, '([\w.]+)'\)", link)) | set(
        re.findall(r"\{'type': '(\w+)'\}", link)
    )
    assert sent == CLIENT_TYPES
    states = set(re.search(r"enum AvatarState \{([^}]*)\}", avatar)[1].replace(" ", "").split(","))  # type: ignore[index]
    assert {state.value for state in SessionState} == states - {"off"}
    transports = set(re.search(r"The transport of the avatar's media: (.*)\.", avatar)[1].replace("`", "").split(", "))  # type: ignore[index]
    row = re.search(r"^\| `publisher.changed` \|.*another way: (.*) \|$", PROTOCOL, re.MULTILINE)
    assert row and transports == set(re.findall(r"`(\w+)`", row[1]))


def test_a_conversation_asks_for_what_there_is_and_reads_the_rooms_topics() -> None:
    code = dart("conversation.dart")
    asked = code[code.index("static const request") : code.index("};")]
    assert set(re.findall(r"'(\w+)': ", asked)) <= set(ConversationRequest.model_fields)
    assert set(re.findall(r"'(lk\.\w+)'", code)) == {"lk.transcription", "lk.chat", "lk.segment_id"}
    assert "'conversation': conversation" in dart("orchestrator.dart")
    captions = (ROOT / "docs" / "reference" / "captions.md").read_text("utf-8")
    assert "topic `lk.transcription`" in captions and "`lk.segment_id`" in captions and "`lk.chat`" in PROTOCOL


def test_sample_is_complete_and_its_dependencies_are_declared() -> None:
    pubspec = (APP / "pubspec.yaml").read_text("utf-8")
    for package in ("livekit_client", "http", "flutter_webrtc"):
        assert re.search(rf"^  {package}: ", pubspec, re.MULTILINE), package
    for file in (APP / "lib").iterdir():
        for imported in re.findall(r"^import '([^']+)'", file.read_text("utf-8"), re.MULTILINE):
            package = re.match(r"package:(\w+)/", imported)
            assert imported.startswith("dart:") or package or (APP / "lib" / imported).is_file(), imported
            assert not package or f"  {package[1]}:" in pubspec, imported
