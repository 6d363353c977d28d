"""Which models serve a conversation: the session's choice, else the deployment's, else the embedded ones."""

from __future__ import annotations

from typing import Any, Literal

import pytest
from pydantic import ValidationError

from musetalk_agent.protocol.problems import ErrorCode, ProblemError
from orchestrator.conversation.conversation_messages import Provider
from orchestrator.conversation.options import ConversationOptions, ConversationRequest, InferenceAccess, ModelChoice
from orchestrator.settings import SettingsError, load

ENVIRONMENT = {
    "LIVEKIT_URL": "wss://a-project.livekit.cloud",
    "LIVEKIT_API_KEY": "the-key",
    "LIVEKIT_API_SECRET": "the-livekit-secret",
    "ORCHESTRATOR_API_KEY": "first-key",
    "AGENT_URL": "http://a:1",
    "AGENT_API_KEY": "the-agent-key",
}
KIND: Literal["llm"] = "llm"


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)


def test_the_sessions_choice_comes_first() -> None:
    deployment = Provider(base_url="http://a/v1", model="a")
    options = ConversationOptions(llm=deployment)
    assert options.chosen(KIND, None) == deployment and options.chosen("tts", None) is None
    own = options.chosen(KIND, ModelChoice(base_url="http://b/v1/", model="b", api_key="k"))
    assert own == Provider(base_url="http://b/v1", model="b", api_key="k")


def test_livekits_models_are_the_deployments_to_pay() -> None:
    choice = ModelChoice(provider="livekit", model="openai/gpt-4o-mini")
    with pytest.raises(ProblemError, match="LIVEKIT_INFERENCE_API_KEY") as caught:
        ConversationOptions().chosen(KIND, choice)
    assert (caught.value.code, caught.value.field) == (ErrorCode.CONVERSATION_UNAVAILABLE, "conversation.llm")
    got = ConversationOptions(inference=InferenceAccess("http://gateway/v1", "k", "s3cret")).chosen(KIND, choice)
    assert got is not None and (got.dialect, got.base_url, got.model) == ("livekit", "http://gateway/v1", choice.model)
    assert (got.api_key, got.api_secret) == ("k", "s3cret") and "s3cret" not in repr(got)


@pytest.mark.parametrize(
    "given",
    [
        {"model": "m"},
        {"provider": "livekit", "model": "m", "base_url": "http://elsewhere/v1"},
        {"provider": "livekit", "model": "m", "api_key": "k"},
        {"provider": "other", "model": "m", "base_url": "http://elsewhere/v1"},
    ],
)
def test_half_a_choice_is_refused(given: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        ModelChoice.model_validate(given)


def test_models_by_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLM_MODEL", "livekit:openai/gpt-4o-mini")
    monkeypatch.setenv("TTS_BASE_URL", "http://speech:8000/v1/")
    monkeypatch.setenv("TTS_MODEL", "kokoro")
    monkeypatch.setenv("TTS_VOICE", "af_heart")
    options = load().conversation_options
    assert options.llm is not None and options.llm.model == "openai/gpt-4o-mini"
    assert (options.llm.dialect, options.llm.api_key, options.llm.api_secret) == (
        "livekit",
        "the-key",
        "the-livekit-secret",
    )
    assert options.tts == Provider(base_url="http://speech:8000/v1", model="kokoro") and options.tts_voice == "af_heart"
    assert options.stt is None
    monkeypatch.setenv("LIVEKIT_INFERENCE_API_KEY", "cloud")
    monkeypatch.setenv("LIVEKIT_INFERENCE_API_SECRET", "cloud-secret")
    monkeypatch.setenv("LIVEKIT_INFERENCE_URL", "http://gateway/v1")
    assert load().conversation_options.inference == InferenceAccess("http://gateway/v1", "cloud", "cloud-secret")
    assert "cloud-secret" not in repr(load()) + repr(load().conversation_options)


@pytest.mark.parametrize("name", ["LLM_MODEL", "STT_MODEL", "TTS_MODEL"])
def test_a_livekit_of_ones_own_has_no_inference(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("LIVEKIT_URL", "ws://127.0.0.1:7880")
    assert load().conversation_options.inference is None
    monkeypatch.setenv(name, "livekit:openai/gpt-4o-mini")
    with pytest.raises(SettingsError, match=f"{name}: livekit: needs a project of LiveKit Cloud"):
        load()


def test_a_realtime_model_is_all_three(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REALTIME_BASE_URL", "wss://realtime.example/v1/")
    monkeypatch.setenv("REALTIME_API_KEY", "realtime-key")
    monkeypatch.setenv("REALTIME_VOICE", "cedar")
    options = load().conversation_options
    serving = options.serving(ConversationRequest())
    assert serving.llm == serving.stt == serving.tts and serving.llm is not None and serving.voice == "cedar"
    assert (serving.llm.dialect, serving.llm.base_url, serving.llm.model, serving.llm.api_key) == (
        "realtime",
        "wss://realtime.example/v1",
        "gpt-realtime",
        "realtime-key",
    )
    assert serving.names == dict.fromkeys(("llm", "stt", "tts"), "gpt-realtime")
    own = {"realtime": {"base_url": "http://a/v1", "model": "m", "voice": "marin"}}
    serving = options.serving(ConversationRequest.model_validate(own))
    assert serving.names["llm"] == "m" and serving.voice == "marin"
    llm = {"base_url": "http://a/v1", "model": "m"}
    named = options.serving(ConversationRequest.model_validate({"llm": llm, "voice": "elevenlabs:ada"}))
    assert named.names == {"llm": "m", "stt": "embedded", "tts": "elevenlabs:ada"}
    with pytest.raises(ValidationError, match="leave llm, stt and tts out"):
        ConversationRequest.model_validate({**own, "llm": llm})
