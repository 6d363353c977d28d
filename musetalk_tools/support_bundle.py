"""`musetalk-orchestrator support-bundle`: one zip with what a question about a deployment needs, and without its secrets.

Settings are shown by type: numbers, switches and names in the clear, addresses without user, path and query, secrets only as set or
not set. Every text that goes in is redacted as logs are, and loses each secret value of this environment, wherever it stands.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import zipfile
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, get_args
from urllib.parse import quote, urlsplit

import httpx
from pydantic import SecretStr

from musetalk_agent.protocol.http import VERSION
from musetalk_agent.protocol.logs import redact

ANSWER_BYTES = 16 << 20
"""Most of one answer that is kept; `/debug/musetalk` of a full agent is under 1 MiB."""
LOG_BYTES = 8 << 20
"""The end of each log that is kept: at the default level an hour of a busy service is less."""
TIMEOUT_S = 10.0
SECRET, ADDRESS, PLAIN = "secret", "address", "plain"
AGENT_VARIABLES = {
    "AGENT_API_KEY": SECRET,
    "RENDERS_QUEUE": SECRET,
    **dict.fromkeys(
        (
            "AGENT_ENGINE AGENT_MAX_SESSIONS MUSETALK_DEVICE MUSETALK_PROFILE MUSETALK_PRECISION MUSETALK_LOOKAHEAD_MS "
            "MUSETALK_BBOX_SHIFT MUSETALK_RESTORE MUSETALK_FUSE KERNELS_DIR ALLOW_PRIVATE_URLS AVATAR_CACHE_DIR AVATAR_CACHE_BYTES "
            "MODELS_DIR AGENT_OPEN_METRICS LOG_LEVEL AGENT_DRAIN_S RENDERS_DIR RENDER_WORKERS DUB_SECONDS DUB_BYTES CAPTION_FONT "
            "AGENT_JUDGE_EVERY_S AGENT_MATTES_AHEAD"
        ).split(),
        PLAIN,
    ),
}
"""The agent's variables. The orchestrator does not import the agent's settings; a test compares the two."""
_NAMED_SECRETS = {"livekit_api_key", "livekit_inference_api_key"}
"""No secrets by themselves, but halves of pairs."""
_PACKAGES = (
    "livekit livekit-api livekit-protocol av numpy opencv-python-headless pillow fastapi starlette uvicorn websockets httpx "
    "pydantic torch diffusers transformers safetensors huggingface-hub ai-edge-litert onnxruntime piper-tts redis modal "
    "livekit-agents pipecat-ai opentelemetry-sdk"
).split()
_ORCHESTRATOR_CALLS = {
    "health.json": "/health",
    "debug-musetalk.json": "/debug/musetalk",
    "debug-audio.json": "/debug/audio",
    "sessions.json": "/sessions",
    "metrics.txt": "/metrics",
}
_AGENT_CALLS = {"health.json": "/health", "debug.json": "/debug", "metrics.txt": "/metrics"}


class BundleError(Exception):
    """The bundle cannot be written; the sentence names the file and the reason."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `support-bundle`."""
    parser.description = (
        "Writes a zip with versions, settings without secrets, the answers of the running services and logs. "
        "It holds names of rooms and sessions, hosts and paths: look into it before you send it."
    )
    parser.epilog = "exit codes: 0 written (manifest.json says what could not be reached), 1 not written, 2 wrong usage"
    parser.add_argument("-o", "--output", type=Path, help="default: musetalk-support-DATE-TIME.zip in this folder")
    parser.add_argument("--url", default="http://127.0.0.1:8080", help="the orchestrator (default: %(default)s)")
    parser.add_argument("--api-key", help="an operator's key (default: the first of ORCHESTRATOR_API_KEY)")
    parser.add_argument(
        "--agent-url", action="append", metavar="URL", help="an agent, asked with AGENT_API_KEY (default: AGENT_URL)"
    )
    parser.add_argument(
        "--log", action="append", type=Path, default=[], metavar="FILE", help="a log to add, its last 8 MiB; repeatable"
    )


def run(arguments: argparse.Namespace) -> int:
    """Writes the bundle and prints its path. Returns the exit code."""
    now = datetime.now(UTC)
    output: Path = arguments.output or Path(f"musetalk-support-{now:%Y%m%d-%H%M%S}.zip")
    try:
        bundle = SupportBundle(os.environ, arguments.api_key)
        bundle.add_logs(arguments.log)
        bundle.add_settings()
        bundle.add_answers(arguments.url, arguments.agent_url or _listed(os.environ.get("AGENT_URL", "")))
        bundle.write(output, now)
    except BundleError as error:
        print(f"support-bundle: {error}", file=sys.stderr)
        return 1
    for name, problem in bundle.problems.items():
        print(f"support-bundle: {name} is not in the bundle: {problem}", file=sys.stderr)
    print(output)
    return 0


class SupportBundle:
    """Collects texts, redacted on the way in. `environment` is where settings, keys and the values to remove come from."""

    def __init__(self, environment: Mapping[str, str], api_key: str | None = None) -> None:
        self._environment = environment
        self._api_key = api_key or next(iter(_listed(environment.get("ORCHESTRATOR_API_KEY", ""))), "")
        self._secrets = _secret_values(environment, self._api_key)
        self._texts: dict[str, str] = {}
        self.problems: dict[str, str] = {}
        """What could not be collected, with the reason."""

    def add(self, name: str, text: str) -> None:
        """Adds a file. Secret values of the environment, and whatever logs redact, are removed from the text."""
        for secret in self._secrets:
            text = text.replace(secret, "***")
        self._texts[name] = redact(text)

    def add_logs(self, paths: Iterable[Path]) -> None:
        """Adds the end of each file. Raises BundleError where one cannot be read."""
        for number, path in enumerate(paths, 1):
            try:
                with path.open("rb") as source:
                    size = source.seek(0, os.SEEK_END)
                    source.seek(max(0, size - LOG_BYTES))
                    data = source.read(LOG_BYTES)
            except OSError as error:
                raise BundleError(f"the log {path} cannot be read: {error.strerror}") from None
            if size > LOG_BYTES:  # a cut first line may begin in the middle of a secret, which nothing would recognise
                data = data.partition(b"\n")[2]
            self.add(f"logs/{number}-{path.name}", data.decode("utf-8", "replace"))

    def add_settings(self) -> None:
        """Adds versions, and the variables of both services that are set."""
        versions = {"musetalk-livekit": VERSION, "python": platform.python_version(), "platform": platform.platform()}
        self._json("versions.json", versions | {"cpus": os.cpu_count(), "packages": _packages()})
        kinds = orchestrator_variables()
        self._json("settings-orchestrator.json", _shown(kinds, self._environment))
        self._json("settings-agent.json", _shown(AGENT_VARIABLES, self._environment))

    def add_answers(self, url: str, agents: Iterable[str]) -> None:
        """Asks the orchestrator and each agent. A call that fails becomes a line of `problems`."""
        self._ask("orchestrator", url, self._api_key, _ORCHESTRATOR_CALLS)
        key = next(iter(_listed(self._environment.get("AGENT_API_KEY", ""))), "")
        for number, agent in enumerate(agents, 1):
            self._ask(f"agent-{number}", agent, key, _AGENT_CALLS)

    def write(self, output: Path, now: datetime) -> None:
        """Writes the zip, readable by its owner only. Raises BundleError; an existing file stays as it is."""
        manifest = {
            "created": now.isoformat(timespec="seconds"),
            "files": sorted(self._texts),
            "missing": self.problems,
        }
        self._json("manifest.json", manifest)
        try:
            descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            raise BundleError(f"{output} exists already: name another file with -o") from None
        except OSError as error:
            raise BundleError(f"{output} cannot be written: {error.strerror}") from None
        try:
            with os.fdopen(descriptor, "wb") as file, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
                for name, text in self._texts.items():
                    archive.writestr(name, text)
        except OSError as error:
            output.unlink(missing_ok=True)
            raise BundleError(f"{output} cannot be written: {error.strerror}") from None

    def _json(self, name: str, value: object) -> None:
        self.add(name, json.dumps(value, indent=2, ensure_ascii=False) + "\n")

    def _ask(self, folder: str, url: str, key: str, calls: Mapping[str, str]) -> None:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        try:
            with httpx.Client(base_url=url, headers=headers, timeout=TIMEOUT_S) as http:
                for name, path in calls.items():
                    try:
                        self.add(f"{folder}/{name}", _answer(http, path))
                    except (httpx.HTTPError, BundleError) as error:
                        self._missing(f"{folder}/{name}", error)
        except (httpx.InvalidURL, ValueError) as error:
            self._missing(folder, error)

    def _missing(self, name: str, error: Exception) -> None:
        self.problems[name] = redact(str(error) or type(error).__name__)


def _answer(http: httpx.Client, path: str) -> str:
    """The body of a GET. A service that is not ready answers 503 with its reason, which belongs in the bundle."""
    with http.stream("GET", path) as response:
        body = bytearray()
        for chunk in response.iter_bytes():
            body += chunk
            if len(body) > ANSWER_BYTES:
                raise BundleError(f"the answer is larger than {ANSWER_BYTES} bytes")
        if response.status_code not in (200, 503):
            raise BundleError(f"status {response.status_code}: {body[:200].decode('utf-8', 'replace')}")
        return body.decode("utf-8", "replace")


def orchestrator_variables() -> dict[str, str]:
    """Each variable of `musetalk-orchestrator serve`, and how it may be shown: secret, address or plain."""
    from orchestrator.settings import Settings  # the command line is built without it

    kinds = {}
    for name, field in Settings.model_fields.items():
        if field.annotation is SecretStr or SecretStr in get_args(field.annotation) or name in _NAMED_SECRETS:
            kinds[name.upper()] = SECRET
        elif name.endswith(("_url", "_origins")):
            kinds[name.upper()] = ADDRESS
        else:
            kinds[name.upper()] = PLAIN
    return kinds


def _shown(kinds: Mapping[str, str], environment: Mapping[str, str]) -> dict[str, Any]:
    """The variables that are set. Addresses keep scheme, host and port."""
    shown: dict[str, Any] = {}
    for name, kind in kinds.items():
        value = environment.get(name)
        if value is None:
            continue
        if kind == SECRET:
            shown[name] = "(set)" if value.strip() else "(empty)"
        elif kind == ADDRESS:
            shown[name] = [_host(each) for each in _listed(value)]
        else:
            shown[name] = value
    return shown


def _host(address: str) -> str:
    """Scheme, host and port of an address; user, path and query may be secret, and so may what is no address."""
    if address == "*":
        return address
    try:
        parts = urlsplit(address)
        port = f":{parts.port}" if parts.port else ""
    except ValueError:
        return "(not an address)"
    return f"{parts.scheme}://{parts.hostname}{port}" if parts.scheme and parts.hostname else "(not an address)"


def _secret_values(environment: Mapping[str, str], api_key: str) -> list[str]:
    """What must not stand in the bundle, as it is and as JSON and addresses write it; the longest first."""
    kinds = orchestrator_variables() | AGENT_VARIABLES
    values = {api_key}
    for name, kind in kinds.items():
        value = environment.get(name, "")
        if kind == SECRET:
            values |= {value, *_listed(value)}
        elif kind == ADDRESS:
            values |= {each for each in _listed(value) if each != _host(each)} - {"*"}
    written = {form for value in values for form in (value, json.dumps(value)[1:-1], quote(value, safe=""))}
    return sorted((form for form in written if len(form) > 3), key=len, reverse=True)


def _packages() -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def _listed(value: str) -> list[str]:
    return [part.strip() for part in value.split(",") if part.strip()]
