"""`docs/how-to/from-a-hand-made-setup.md` is true to the code: limits, codes, addresses, fields and settings that it names."""

from __future__ import annotations

import json
import re
import tomllib
from typing import Literal, get_origin

from musetalk_agent.avatars.limits import AvatarLimits
from musetalk_agent.avatars.quality_report import __file__ as quality
from musetalk_agent.engines.musetalk.config import UnetConfig
from musetalk_agent.engines.musetalk.weights_files import __file__ as files
from musetalk_agent.protocol.http import DiagnosisCode, Suspicion
from musetalk_agent.protocol.messages import PROTOCOL_VERSION
from musetalk_agent.protocol.problems import ErrorCode
from musetalk_tools.livekit_server import VERSION as LIVEKIT_SERVER
from orchestrator.audio.ingest import AudioLimits
from orchestrator.audio.segments import OPEN_SEGMENTS
from orchestrator.routes.session_routes import StartRequest
from tests.clients.printed import ROOT
from tests.fakes import weights
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


def section(title: str) -> str:
    """From a heading to the next one of the same or a higher level."""
    start = PAGE.index(title)
    level = len(title) - len(title.lstrip("#"))
    end = re.search(rf"^#{{1,{level}}} ", PAGE[start + len(title) :], re.MULTILINE)
    return PAGE[start : start + len(title) + end.start()] if end else PAGE[start:]


def rows(text: str) -> list[list[str]]:
    """Cells of the tables' lines, without heads and dividers of the first column."""
    lines = re.findall(r"^\| (.*) \|$", text, re.MULTILINE)
    return [[cell.strip() for cell in line.split(" | ")] for line in lines]


def test_every_field_of_musetalk_json_stands_with_upstreams_value() -> None:
    upstream = {name: value for name, value in weights.unet_config("full").items() if not name.startswith("_")}
    table = {
        row[0].strip("`"): row[1:] for row in rows(section("### `musetalk.json`, field by field")) if len(row) == 3
    }
    fields = {name: row for name, row in table.items() if name in UnetConfig.model_fields}
    assert {name: json.loads(row[0].strip("`")) for name, row in fields.items()} == upstream
    fixed = {name for name, field in UnetConfig.model_fields.items() if get_origin(field.annotation) is Literal}
    assert {name for name, row in fields.items() if row[1].startswith("refused")} == fixed
    assert f"these {len(UnetConfig.model_fields)} fields" in PAGE


def test_the_pins_are_the_manifests() -> None:
    manifest = tomllib.loads((ROOT / "models" / "manifest.toml").read_text("utf-8"))["file"]
    hub = {each["name"]: each for each in manifest if each["source"]["kind"] == "hub"}
    config = hub["musetalkV15/musetalk.json"]
    text = section("### `musetalk.json`, field by field")
    assert f"{config['size']} bytes" in text and config["sha256"] in text
    for name in ("musetalkV15/unet.pth", "sd-vae/config.json", "whisper/config.json"):
        source = hub[name]["source"]
        assert f"`{source['repo']}` | `{source['revision']}`" in text, name


def test_sdk_versions_are_the_pins() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    wanted = [
        *project["dependencies"],
        *(each for extra in project["optional-dependencies"].values() for each in extra),
    ]
    accepted = {match[1]: match[2] for each in wanted if (match := re.match(r"([\w.-]+(?:\[\w+\])?)(.*)", each))}
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split())
    for name in ("pipecat", "livekit_agents"):
        for line in (ROOT / "integrations" / name / "requirements.txt").read_text().split():
            package, found, version = line.partition("==")
            if found:
                pins.setdefault(package, version)
    checked = 0
    for row in rows(section("## SDK versions")):
        package = re.match(r"`([\w\[\]-]+)`", row[0])
        if package is not None:
            assert row[1] == f"`{accepted[package[1]]}`", package[1]
            assert row[2].startswith(f"`{pins[package[1].partition('[')[0]]}`"), package[1]
            checked += 1
    assert checked >= 13
    page = section("## SDK versions")
    assert f"| livekit-server | | {LIVEKIT_SERVER} |" in page
    client = re.search(
        r"livekit-client ([0-9.]+)", (ROOT / "orchestrator" / "web" / "vendor" / "README.md").read_text("utf-8")
    )
    assert client and f"| {client[1]}, served" in page
    flutter = re.search(
        r"livekit_client: (.+)", (ROOT / "docs" / "examples" / "flutter" / "pubspec.yaml").read_text("utf-8")
    )
    assert flutter and f"| `{flutter[1]}` |" in page
    assert f"`{project['requires-python']}`" in page
