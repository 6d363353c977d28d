"""`docs/how-to/from-a-hand-made-setup.md` is true to the code: limits, codes, addresses, fields and settings that it names."""

from __future__ import annotations

import re

from musetalk_agent.avatars.limits import AvatarLimits
from musetalk_agent.avatars.quality_report import __file__ as quality
from musetalk_agent.engines.musetalk.weights_files import __file__ as files
from musetalk_agent.protocol.http import DiagnosisCode, Suspicion
from musetalk_agent.protocol.messages import PROTOCOL_VERSION
from musetalk_agent.protocol.problems import ErrorCode
from orchestrator.audio.ingest import OPEN_SEGMENTS, AudioLimits
from orchestrator.routes.sessions import StartRequest
from tests.clients.printed import ROOT
from tests.fakes.stage import stage

PAGE = (ROOT / "docs" / "how-to" / "from-a-hand-made-setup.md").read_text("utf-8")
PROTOCOL = (ROOT / "docs" / "protocol.md").read_text("utf-8")


def test_limits_are_those_of_the_code() -> None:
    clip, sound = AvatarLimits(), AudioLimits()
    waits = (clip.fetch_seconds, clip.fetch_connect_seconds, clip.fetch_silence_seconds)
    mib, gib = clip.zip_entry_bytes >> 20, clip.zip_bytes >> 30
    for sentence in (
        f"| the file | {clip.source_bytes >> 20} MiB |",
        "{:.0f} s in all, {:.0f} s to connect, {:.0f} s of silence, ".format(*waits)
        + f"{clip.fetch_redirects} redirects",
        f"{clip.zip_entries:,}; {mib} MiB; {gib} GiB; {clip.zip_ratio} times the packed size",
        f"| frames | {clip.frames:,} (two minutes at 25 fps); a video {clip.video_seconds:.0f} s |",
        f"{clip.side_pixels_min} pixels a side at least, ",
        f"up to {sound.message_bytes >> 20} MiB",
        f"At most {sound.backlog_s:.0f} s and {OPEN_SEGMENTS} segments may wait (`backlog_exceeded`), "
        f"and {sound.bytes_per_s >> 20} MiB a second",
        f"`protocol`, {PROTOCOL_VERSION} today",
    ):
        assert sentence in PAGE, sentence
    assert clip.picture_pixels == 4096 * 4096
    assert clip.frames == 2 * 60 * 25


def test_codes_are_codes() -> None:
    known = {*map(str, ErrorCode), *map(str, DiagnosisCode), *map(str, Suspicion)}
    first = "avatar|weights|audio|engine|track|room|rtmp|no|silent|wrong|invalid|at|backlog|rate"
    named = set(re.findall(rf"`((?:{first})_[a-z_]+)`", PAGE))
    named -= {"avatar_id", "audio_bytes_received", "audio_url", "room_name", "rtmp_url", "engine_note"}
    assert len(named) > 15
    assert named <= known, named - known
    assert "`unknown_type`" in PROTOCOL and "`clip_short`" in PAGE
    with open(quality, encoding="utf-8") as source:
        assert '"clip_short"' in source.read()


async def test_addresses_and_fields_are_those_of_the_api() -> None:
    async with stage() as on:
        paths = on.app.openapi()["paths"]
    right = re.findall(r"^\| [^|]*\| `(GET|POST) (/[^`\s]+)`", PAGE, re.MULTILINE)
    assert len(right) >= 6
    for method, path in right:
        assert method.lower() in paths[path], path
    start = PAGE[PAGE.index("## Fields of the start") : PAGE.index("## Models")]
    fields = re.findall(r"^\| [^|]+\| `(\w+)`", start, re.MULTILINE)
    assert len(fields) >= 6
    assert set(fields) <= set(StartRequest.model_fields)


def test_folders_and_settings_exist() -> None:
    with open(files, encoding="utf-8") as source:
        code = source.read()
    for folder in ("musetalkV15", "sd-vae-ft-mse", "whisper", "face-parse-bisent"):
        assert folder in PAGE and folder in code, folder
    operations = (ROOT / "docs" / "how-to" / "operations.md").read_text("utf-8")
    for setting in re.findall(r"`((?:MUSETALK|MODELS|ALLOW)_[A-Z_]+)", PAGE):
        assert f"`{setting}`" in operations, setting
    for target in re.findall(r"\]\(([^)#]+)", PAGE):
        assert (ROOT / "docs" / "how-to" / target).exists(), target


async def test_what_the_page_says_of_wrong_messages_and_fields_is_so() -> None:
    async with stage() as on:
        wrong = await on.http.post("/session/start", json={"room": "stage", "frameZipUrl": "https://example.org/f.zip"})
        assert (wrong.status_code, wrong.json()["code"], wrong.json()["field"]) == (
            422,
            "invalid_request",
            "frameZipUrl",
        )
        async with on.live() as (_, line):
            await line.say("flush")
            assert (await line.wait("warning"))["code"] == "unknown_type"
            await line.socket.send('{"audio": "AAAA"}')
            assert (await line.wait("error"))["code"] == "invalid_message"
