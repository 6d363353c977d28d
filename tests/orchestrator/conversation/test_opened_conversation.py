"""A conversation as the service keeps it: a reply that breaks off, what waits for an answer, and what a take-over brings along."""

from __future__ import annotations

import pytest

from orchestrator.conversation.conversation_messages import ChatMessage, HistoryMessage
from orchestrator.conversation.opened_conversation import HISTORY_MAX, KEPT_BYTES, OpenedConversation
from orchestrator.worker_pipe import HEADER_LIMIT, encode


def message(number: int, role: str = "user", text: str = "Hello.") -> HistoryMessage:
    return HistoryMessage.model_validate({"id": f"msg_{number}", "role": role, "text": text, "created_at": number})


def texts(conversation: OpenedConversation) -> list[tuple[str, bool]]:
    return [(each.text, each.interrupted) for each in conversation.messages]


def test_a_reply_that_breaks_off_is_in_the_history_as_far_as_the_avatar_had_it() -> None:
    conversation = OpenedConversation("ses_1", state="speaking")
    conversation.add(message(1))
    for words in ("I am ", "happy "):
        conversation.said(words)
    half = conversation.broken_off()
    assert half is not None and texts(conversation) == [("Hello.", False), ("I am happy ", True)]
    assert conversation.state == "away" and conversation.broken_off() is None


def test_a_reply_that_was_said_is_there_once() -> None:
    conversation = OpenedConversation("ses_1")
    conversation.said("I am ")
    conversation.add(message(1, "assistant", "I am happy."))
    assert conversation.broken_off() is None and texts(conversation) == [("I am happy.", False)]


def test_a_question_is_given_to_be_answered_once() -> None:
    conversation = OpenedConversation("ses_1")
    assert not conversation.unanswered
    conversation.add(message(1))
    assert conversation.unanswered
    conversation.given()
    assert not conversation.unanswered, "it may be what the worker died of"
    conversation.add(message(2))
    assert conversation.unanswered
    conversation.add(message(3, "assistant"))
    assert not conversation.unanswered


def test_another_process_goes_on_with_all_of_it() -> None:
    conversation = OpenedConversation("ses_1")
    conversation.add(message(1, text="Wie heißt du? 你好"))
    conversation.said("I am ")
    waiting = ChatMessage(session_id="ses_1", message_id="msg_9", text="And?")
    conversation.waiting["msg_9"] = waiting
    packed = conversation.pack()
    assert packed.isascii() and "heißt" not in packed
    found = OpenedConversation.unpack("ses_1", packed)
    assert texts(found) == [("Wie heißt du? 你好", False), ("I am ", True)] and found.waiting == {"msg_9": waiting}
    assert texts(conversation) == [("Wie heißt du? 你好", False)], "here the reply goes on"


def test_what_is_kept_is_bounded_and_has_the_newest() -> None:
    conversation = OpenedConversation("ses_1")
    for number in range(HISTORY_MAX + 5):
        conversation.add(message(number, text=f"{number} " * 100))
    assert len(conversation.messages) == HISTORY_MAX
    found = OpenedConversation.unpack("ses_1", conversation.pack())
    size = sum(len(each.model_dump_json()) for each in found.messages)
    assert KEPT_BYTES - 2000 < size <= KEPT_BYTES
    assert found.messages == conversation.messages[-len(found.messages) :]
    assert len(conversation.pack()) < 2 * KEPT_BYTES


@pytest.mark.parametrize("text", ["Hello.", "你好，" * 300, '"\\n' * 900])
def test_a_new_worker_gets_the_newest_messages_that_fit_into_one_message_of_the_pipe(text: str) -> None:
    conversation = OpenedConversation("ses_1")
    for number in range(HISTORY_MAX):
        conversation.add(message(number, text=text))
    history = conversation.history()
    assert history and list(history) == conversation.messages[-len(history) :]
    header = {"history": [each.model_dump(mode="json") for each in history]}
    assert len(encode(header)) < HEADER_LIMIT // 2, "instructions and functions have as much room again"


@pytest.mark.parametrize("packed", ["", "e30=", "x", "eJwDAAAAAAE="])
def test_what_is_damaged_is_refused(packed: str) -> None:
    with pytest.raises(ValueError):
        OpenedConversation.unpack("ses_1", packed)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"opening": None}, "starting"),
        ({"running": False}, "worker_away"),
        ({"state": "away"}, "not_in_room"),
        ({"trouble": "no such room"}, "not_in_room"),
        ({"failures": {"tts": "503", "stt": "401"}}, "stt_failed"),
        ({"failures": {"llm": "401"}}, "llm_failed"),
        ({"failures": {"tts": "503"}, "microphone": "none"}, "tts_failed"),
        ({"microphone": "none"}, "microphone_none"),
        ({"microphone": "muted"}, "microphone_muted"),
        ({"microphone": "silent"}, "microphone_silent"),
        ({"microphone": "late"}, "microphone_late"),
        ({}, "ok"),
    ],
)
def test_why_it_does_not_answer(change: dict[str, object], code: str) -> None:
    fields = {"opening": lambda: None, "state": "listening", "microphone": "heard"} | change
    running = bool(fields.pop("running", True))
    conversation = OpenedConversation("ses_1", **fields)  # type: ignore[arg-type]
    found = conversation.debug(running=running)["diagnosis"]
    assert found["code"] == code
    for detail in [conversation.trouble, *conversation.failures.values()][:1]:
        assert detail is None or detail in found["message"]


def test_a_failure_is_forgotten_once_that_part_works() -> None:
    conversation = OpenedConversation("ses_1")
    conversation.note("warning", {"code": "conversation_provider", "part": "stt", "detail": "stt: 401"})
    conversation.note("warning", {"code": "conversation_provider", "part": "llm", "detail": "llm: 503"})
    assert conversation.failures == {"stt": "stt: 401", "llm": "llm: 503"}
    conversation.note("user.transcript", {"text": "Hello?", "final": True})
    assert conversation.failures == {"llm": "llm: 503"}
    conversation.note("reply.started", {})
    assert conversation.failures == {}
